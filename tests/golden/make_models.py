"""Record what transformers computes, for tests that run without it: python -m tests.golden.make_models [NAME...]

Writes into tests/golden/models: NAME.npz for each module of tests/models/variants (its variants with weights from
`random_source`; rotary tables), and real.json (the two built-in models, dequantized by the gguf package). Made with
transformers 5.23.0, torch 2.13.0 on a CPU, float32, eager attention.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.text import load_tokenizer
from tests.models.harness import prompt_of
from tests.models.variants import MODULES
from tests.parity import reference

FOLDER = Path(__file__).parent / "models"
PROMPT, NEW, TOP = 41, 64, 20
POSITIONS = (0, 20, 40)
PROMPTS = {
    "smollm2-135m": (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
        "def fibonacci(n):\n    ",
        "Der Zug nach Köln fährt um 8:15 Uhr ab, und",
    ),
    "gemma3-270m": (
        "The capital of France is",
        "def fibonacci(n):\n    ",
        "Der Zug nach Köln fährt um 8:15 Uhr ab, und",
    ),
}


def tiny(variants: Mapping[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """For each variant: logits at POSITIONS of a random prompt, 64 greedy tokens, frequencies and their magnitude."""
    found: dict[str, np.ndarray] = {}
    for name, config in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            model = reference.write_checkpoint(config, Path(folder))
        prompt = prompt_of(config["vocab_size"], PROMPT)
        found[f"{name}/logits"] = reference.Session(model).step(prompt)[list(POSITIONS)]
        found[f"{name}/greedy"] = np.asarray(reference.Session(model).greedy(prompt, NEW), np.int32)
        for kind, (frequencies, magnitude) in reference.ropes(model).items():
            found[f"{name}/rope/{kind}"] = np.append(frequencies, magnitude)
    return found


def real(name: str) -> list[dict[str, Any]]:
    """For each prompt: the TOP largest logits at some positions, and 64 greedy tokens."""
    path = resolve(name)
    model = reference.open_gguf(name, path)
    tokenizer = load_tokenizer(open_checkpoint(path).tokenizer)
    records = []
    for text in PROMPTS[name]:
        prompt = tokenizer.encode(text)
        logits = reference.Session(model).step(prompt)
        positions = sorted({0, len(prompt) // 2, len(prompt) - 1})
        top = torch.tensor(logits[positions]).topk(TOP)
        records.append(
            {
                "text": text,
                "prompt": prompt,
                "positions": positions,
                "top_ids": top.indices.tolist(),
                "top_logits": [[round(value, 5) for value in row] for row in top.values.tolist()],
                "greedy": reference.Session(model).greedy(prompt, NEW),
            }
        )
    return records


def main(names: list[str]) -> None:
    """Write the files of these names, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name, module in MODULES.items():
        if not names or name in names:
            np.savez_compressed(FOLDER / f"{name}.npz", **tiny(module.VARIANTS))
    if not names or "real" in names:
        write_real()


def write_real() -> None:
    """Write real.json."""
    records = {name: real(name) for name in PROMPTS}
    lines = (f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in records.items())
    (FOLDER / "real.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
