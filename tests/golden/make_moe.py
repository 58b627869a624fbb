"""Record what transformers computes for mixtures of experts: python -m tests.golden.make_moe [NAME ...]

Writes tests/golden/models/moe.npz: every variant of tests/models/moe_variants.py, or those named beside what is there.
Weights are those of `random_source`, read by transformers from a checkpoint as it is published. Made with transformers
5.23.0, torch 2.13.0 on a CPU, float32, eager attention.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.golden.make_models import FOLDER, NEW, POSITIONS, PROMPT
from tests.models.harness import prompt_of
from tests.models.moe_variants import MOE
from tests.parity import reference

FILE = FOLDER / "moe.npz"


def record(name: str) -> dict[str, np.ndarray]:
    """Logits at POSITIONS of a random prompt, and 64 greedy tokens after it."""
    with tempfile.TemporaryDirectory() as folder:
        model = reference.write_stored(MOE[name], Path(folder))
    prompt = prompt_of(MOE[name]["vocab_size"], PROMPT)
    logits = reference.Session(model).step(prompt)[list(POSITIONS)]
    greedy = reference.Session(model).greedy(prompt, NEW)
    return {f"{name}/logits": logits, f"{name}/greedy": np.asarray(greedy, np.int32)}


def main(names: list[str]) -> None:
    """Write the file."""
    found = dict(np.load(FILE)) if names and FILE.exists() else {}
    for name in names or MOE:
        found |= record(name)
    np.savez_compressed(FILE, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
