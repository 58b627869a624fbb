"""Autoencoders against diffusers' recorded numbers, tiles against the whole, and configs that are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from slipstream.models.image import autoencoder
from slipstream.models.image.autoencoder import Config
from slipstream.models.image.registry import module_of
from slipstream.spec.param import params
from tests.models.image.unets import AUTOENCODERS, Autoencoder, autoencoder_inputs, drawn, relative

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "models" / "unets.npz")
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_recorded_pictures_and_latents(name: str) -> None:
    ours, (images, latents) = Autoencoder.random(AUTOENCODERS[name]), autoencoder_inputs(AUTOENCODERS[name])
    mean, log_variance = ours.run(autoencoder.encode, images)
    assert relative(mean, GOLDEN[f"mean/{name}"]) < TOLERANCE
    assert relative(log_variance, GOLDEN[f"log_variance/{name}"]) < TOLERANCE
    assert relative(ours.run(autoencoder.decode, latents), GOLDEN[f"picture/{name}"]) < TOLERANCE


def test_tiles_come_close_to_the_whole() -> None:
    """On average within a fifteenth of the picture's spread: norms and attention see a tile alone.

    Noise has much the same statistics everywhere. A tile in the wrong place would be another picture.
    """
    ours = Autoencoder.random(AUTOENCODERS["sdxl"])
    latents = drawn(1, 48, 40, 4)
    whole = ours.run(autoencoder.decode, latents)
    tiled = ours.run(autoencoder.decode_tiled, latents, tile=32, overlap=8)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).mean() < whole.std() / 15


def test_a_picture_of_one_tile_is_decoded_whole() -> None:
    ours = Autoencoder.random(AUTOENCODERS["sdxl"])
    latents = drawn(1, 8, 6, 4)
    np.testing.assert_array_equal(
        ours.run(autoencoder.decode_tiled, latents, tile=8, overlap=2), ours.run(autoencoder.decode, latents)
    )
    with pytest.raises(ValueError, match="tiles of 8 latents cannot share 8"):
        ours.run(autoencoder.decode_tiled, latents, tile=8, overlap=8)


@pytest.mark.parametrize(
    ("side", "tile", "overlap"), [(128, 64, 16), (65, 64, 16), (200, 64, 0), (40, 16, 9), (7, 16, 4)]
)
def test_tiles_share_every_point_once(side: int, tile: int, overlap: int) -> None:
    starts = autoencoder._starts(side, min(tile, side), overlap)
    assert starts[0] == 0
    assert starts[-1] + min(tile, side) == side
    assert all(tile - (b - a) >= overlap for a, b in pairwise(starts))
    shares = autoencoder._shares(side, min(tile, side), starts)
    total = np.zeros(side)
    for start, share in zip(starts, shares, strict=True):
        total[start : start + len(share)] += share
        assert (share >= 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_weights_prepared_for_a_cpu() -> None:
    config = {**AUTOENCODERS["sdxl"], "block_out_channels": [64, 64]}
    ours = Autoencoder.random(config)
    latents, images = drawn(1, 16, 17, 4), drawn(1, 32, 34, 3)
    expected = ours.run(autoencoder.decode, latents), ours.run(autoencoder.encode, images)[0]
    weights = autoencoder.prepare(ours.weights, ours.config, (16, 17))
    prepared = replace(ours, kernels="cpu", weights=weights)
    assert relative(prepared.run(autoencoder.decode, latents), expected[0]) < TOLERANCE
    assert relative(prepared.run(autoencoder.encode, images)[0], expected[1]) < TOLERANCE


def test_plan_shapes() -> None:
    config = {**AUTOENCODERS["flux"], "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    c = Config.from_diffusers(config)
    leaves = dict(params(autoencoder.plan(c)))
    assert c.factor == 8
    assert sum(leaf.size for leaf in leaves.values()) == 83_819_683
    assert leaves["decoder.levels.2.0.shortcut.weight"].shape == (512, 256)
    assert "decoder.samplers.3.weight" not in leaves
    assert "quantize.weight" not in leaves


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
        UnsupportedModel,
        "AttnDownEncoderBlock2D",
    ),
    ({"up_block_types": ["UpDecoderBlock2D"]}, CheckpointError, "2 down_block_types and 1 up_block_types"),
    ({"norm_num_groups": 48}, CheckpointError, r"channels \[32, 64\] are no 48 groups"),
    ({"latents_mean": [0.1]}, UnknownConfigKeys, r"latents_mean \(autoencoder\)"),
    ({"act_fn": "relu"}, UnsupportedModel, "an act_fn other than 'silu'"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_configs_that_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Config.from_diffusers({**AUTOENCODERS["sdxl"], **change})


def test_names_of_old_checkpoints() -> None:
    rename = module_of("AutoencoderKL").rename
    assert rename("encoder.mid_block.attentions.0.query.weight") == "encoder.mid_block.attentions.0.to_q.weight"
    assert rename("decoder.mid_block.attentions.0.proj_attn.bias") == "decoder.mid_block.attentions.0.to_out.0.bias"
    assert rename("decoder.conv_in.weight") == "decoder.conv_in.weight"
