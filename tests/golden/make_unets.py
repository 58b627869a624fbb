"""Record what diffusers computes of UNets and autoencoders: python -m tests.golden.make_unets

Writes tests/golden/models/unets.npz: of every variant of tests/models/image/unets.py, with the weights of RandomSource,
the prediction for two pictures of SIZE latents; mean and logarithm of the variance of two encoded pictures; two decoded
ones. Made with diffusers 0.42.1, torch 2.13.0 on a CPU, float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.models.image.unets import AUTOENCODERS, SIZE, UNETS, UnetInputs, autoencoder_inputs
from tests.parity import unets as reference

FILE = Path(__file__).parent / "models" / "unets.npz"


def main() -> None:
    """Write the file."""
    found: dict[str, np.ndarray] = {}
    for name, config in UNETS.items():
        found[f"unet/{name}"] = reference.predicted(reference.unet_of(config), UnetInputs.drawn(config, 2, *SIZE))
    for name, config in AUTOENCODERS.items():
        model = reference.autoencoder_of(config)
        images, latents = autoencoder_inputs(config)
        found[f"mean/{name}"], found[f"log_variance/{name}"] = reference.encoded(model, images)
        found[f"picture/{name}"] = reference.decoded(model, latents)
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
