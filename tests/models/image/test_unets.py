"""UNets against diffusers' recorded numbers and against themselves; configs that are read and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from slipstream.kernels.convolution import Winograd
from slipstream.models.image import unet
from slipstream.models.image.unet import Config
from slipstream.spec.param import params
from tests.models.image.unets import SDXL, SIZE, UNETS, Unet, UnetInputs, relative

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "models" / "unets.npz")
TOLERANCE = 1e-4

PUBLISHED: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
"""The config.json of Stable Diffusion XL, written down from memory."""


@pytest.mark.parametrize("name", ["sdxl", "first-stable-diffusion", "guided-uneven"])
def test_recorded_predictions(name: str) -> None:
    config = UNETS[name]
    found = Unet.random(config)(UnetInputs.drawn(config, 2, *SIZE))
    assert relative(found, GOLDEN[f"unet/{name}"]) < TOLERANCE


def test_a_picture_is_the_same_in_any_batch() -> None:
    config = {**SDXL, "layers_per_block": 1}
    model, inputs = Unet.random(config), UnetInputs.drawn(config, 3, *SIZE)
    together = model(inputs)
    assert relative(model(inputs.only(2)), together[2:]) < 1e-5
    assert relative(together[:1], together[1:2]) > 0.1


def test_weights_prepared_for_a_cpu() -> None:
    """Winograd's convolutions of both sizes, phases, attention by heads: close to the reference."""
    config = {**SDXL, "block_out_channels": [64, 64], "layers_per_block": 1, "transformer_layers_per_block": 1}
    model, inputs = Unet.random(config), UnetInputs.drawn(config, 1, 36, 34)
    weights = unet.prepare(model.weights, model.config, (36, 34))
    tiles = [part.resnets[0].conv2.weight.tile for part in (*weights.down, *weights.up)]
    assert tiles == [4, 2, 2, 4]
    assert not isinstance(unet.prepare(model.weights, model.config, (8, 8)).down[0].resnets[0].conv2.weight, Winograd)
    prepared = replace(model, kernels="cpu", weights=weights)
    assert relative(prepared(inputs), model(inputs)) < TOLERANCE


def test_the_published_config() -> None:
    c = Config.from_diffusers(PUBLISHED)
    leaves = dict(params(unet.plan(c)))
    assert sum(leaf.size for leaf in leaves.values()) == 2_567_463_684
    assert c.factor == 4
    assert [level.depths for level in c.down] == [(0, 0), (2, 2), (10, 10)]
    assert [level.depths for level in c.up] == [(10, 10, 10), (2, 2, 2), (0, 0, 0)]
    assert leaves["middle.transformers.0.blocks.own.q.weight"].shape == (10, 1280, 20, 64)
    assert leaves["up.0.resnets.2.conv1.weight"].shape == (3, 3, 1280 + 640, 1280)
    assert leaves["down.1.transformers.1.blocks.gate.weight"].names == tuple(
        f"down_blocks.1.attentions.1.transformer_blocks.{i}.ff.net.0.proj.weight" for i in range(2)
    )


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"class_embed_type": "timestep"}, UnknownConfigKeys, r"class_embed_type \(sdxl unet\)"),
    ({"only_cross_attention": True}, UnsupportedModel, "only_cross_attention to True"),
    ({"addition_embed_type": "image"}, UnsupportedModel, "addition_embed_type to 'image'"),
    ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, UnsupportedModel, "a block 'AttnDownBlock2D'"),
    ({"mid_block_type": "UNetMidBlock2D"}, UnsupportedModel, "mid_block_type to 'UNetMidBlock2D'"),
    ({"act_fn": "mish"}, UnsupportedModel, "an act_fn other than 'silu'"),
    ({"norm_num_groups": 3}, CheckpointError, "2 channels are no 3 groups"),
    ({"block_out_channels": [2, 4, 8]}, CheckpointError, "block_out_channels has 3 numbers for 2 parts"),
    ({"up_block_types": ["UpBlock2D"]}, CheckpointError, "2 down_block_types and 1 up_block_types"),
    ({"transformer_layers_per_block": [1, [2]]}, CheckpointError, "transformer_layers_per_block .* does not fit"),
    ({"attention_head_dim": [2, 0]}, CheckpointError, r"attention_head_dim\[1\] must be at least 1"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_configs_that_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Config.from_diffusers({**SDXL, **change})


def test_inputs_that_are_missing() -> None:
    model, inputs = Unet.random(SDXL), UnetInputs.drawn(SDXL, 1, 2, 2)
    with pytest.raises(ValueError, match="embeds a pooled text and sizes"):
        model(replace(inputs, pooled=None))
    config = UNETS["guided-uneven"]
    with pytest.raises(ValueError, match="embeds guidance"):
        Unet.random(config)(replace(UnetInputs.drawn(config, 1, 4, 4), guidance=None))
