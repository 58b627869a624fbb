"""Record what diffusers and transformers compute of parts of image models: python -m tests.golden.make_images

Writes tests/golden/models/images.npz: of every variant of tests/models/image/variants.py, weights from `random_source`:
CLIP's outputs and T5's states at POSITIONS, and Flux's velocity on each grid. Made with transformers 5.23.0, diffusers
0.42.1, torch 2.13.0 on a CPU, float32, eager attention.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.models.image.harness import GRIDS, POSITIONS, FluxInputs, clip_tokens, tokens_of
from tests.models.image.variants import CLIPS, FLUXES, T5S
from tests.parity import images as reference

FILE = Path(__file__).parent / "models" / "images.npz"


def main() -> None:
    """Write the file."""
    found: dict[str, np.ndarray] = {}
    for name, config in CLIPS.items():
        out = reference.clip(reference.model_of(name), clip_tokens(config))
        found |= {f"{name}/{key}": out[key][:, POSITIONS] for key in ("hidden", "penultimate")}
        found[f"{name}/pooled"] = out["pooled"]
    for name, config in T5S.items():
        found[f"{name}/states"] = reference.t5(reference.model_of(name), tokens_of(config, 77))[:, POSITIONS]
    for name, config in FLUXES.items():
        model = reference.model_of(name)
        found |= {f"{name}/{grid}": reference.flux(model, FluxInputs.of(config, grid)) for grid in GRIDS}
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
