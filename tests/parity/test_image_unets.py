"""UNets and autoencoders against diffusers, in float32 with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.models.image import autoencoder
from tests.models.image.unets import AUTOENCODERS, UNETS, Autoencoder, Unet, UnetInputs, drawn, relative
from tests.parity import unets as reference

TOLERANCE = 1e-4

ODD = (13, 10)
"""Rows and columns of latents: not square, and halved to odd numbers."""


@pytest.mark.parametrize(("name", "size"), [("sdxl", (8, 12)), *((name, ODD) for name in UNETS)])
def test_unet(name: str, size: tuple[int, int]) -> None:
    config = UNETS[name]
    inputs = UnetInputs.drawn(config, 3, *size)
    expected = reference.predicted(reference.unet_of(config), inputs)
    assert relative(Unet.random(config)(inputs), expected) < TOLERANCE


def test_unet_with_the_kernels_of_a_cpu() -> None:
    """Channels and sizes for which they take other ways: tiles of two sizes, phases, heads by turns."""
    config = {**UNETS["three-levels"], "block_out_channels": [64, 64, 64], "transformer_layers_per_block": 1}
    inputs = UnetInputs.drawn(config, 2, 36, 40)
    expected = reference.predicted(reference.unet_of(config), inputs)
    assert relative(Unet.random(config, "cpu")(inputs), expected) < TOLERANCE


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder(name: str) -> None:
    config = AUTOENCODERS[name]
    model, ours = reference.autoencoder_of(config), Autoencoder.random(config)
    c = ours.config
    images = drawn(2, 3 * c.factor, 5 * c.factor, c.in_channels)
    expected = reference.encoded(model, images)
    found = ours.run(autoencoder.encode, images)
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < TOLERANCE
    latents = drawn(2, 6, 5, c.latent_channels)
    assert relative(ours.run(autoencoder.decode, latents), reference.decoded(model, latents)) < TOLERANCE


def test_autoencoder_with_the_kernels_of_a_cpu() -> None:
    three = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    config = {**AUTOENCODERS["sdxl"], "block_out_channels": [64, 64, 64], **three}
    model, ours = reference.autoencoder_of(config), Autoencoder.random(config, "cpu")
    latents = drawn(1, 17, 12, 4)
    assert relative(ours.run(autoencoder.decode, latents), reference.decoded(model, latents)) < TOLERANCE
    images = drawn(1, 68, 48, 3)
    found, _ = ours.run(autoencoder.encode, images)
    assert relative(found, reference.encoded(model, images)[0]) < TOLERANCE


def test_scales_of_latents() -> None:
    config = AUTOENCODERS["flux"]
    c = autoencoder.Config.from_diffusers(config)
    raw = drawn(1, 2, 2, 16)
    seen = np.asarray(autoencoder.to_latent(c, raw))
    np.testing.assert_allclose(seen, (raw - config["shift_factor"]) * config["scaling_factor"], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(autoencoder.from_latent(c, seen)), raw, rtol=1e-5, atol=1e-6)
