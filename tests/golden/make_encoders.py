"""Record what transformers computes of models that pool: python -m tests.golden.make_encoders

Writes tests/golden/models/encoders.npz: of every variant of tests/models/encoders.py, weights from `random_checkpoint`,
the states at POSITIONS of a text (for BERT the second half is a second text), and the scores of rerankers. Made with
transformers 5.23.0, torch 2.13.0 on a CPU, float32, eager attention.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.models.encoders import ENCODERS, LENGTH, POSITIONS, RERANKERS, SECOND, text_of
from tests.parity import encoders as reference

FILE = Path(__file__).parent / "models" / "encoders.npz"


def main() -> None:
    """Write the file."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in ENCODERS.items():
            model = reference.write_encoder(config, Path(folder))
            second = SECOND if config["type_vocab_size"] > 1 else None
            text = text_of(config["vocab_size"], LENGTH)
            found[f"{name}/states"] = reference.states(model, text, second)[list(POSITIONS)]
        for name, config in RERANKERS.items():
            model = reference.write_encoder(config, Path(folder))
            second = SECOND if config["type_vocab_size"] > 1 else None
            found[f"{name}/score"] = np.float32(reference.score(model, text_of(config["vocab_size"], LENGTH), second))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
