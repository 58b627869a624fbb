"""The denoisers that are measured, their weights and their inputs: the same numbers in every participant's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any
from zlib import crc32

import numpy as np

UNET: Mapping[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""Stable Diffusion XL."""

FLUX: Mapping[str, Any] = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
"""Flux.1's width with 2 of its 19 double and 4 of its 38 single blocks: all of them take 48 GB in float32."""

_TABLE = 1 << 20
_TEXT, _FLUX_TEXT = 77, 256


@dataclass(frozen=True)
class Workload:
    """A denoiser's class in diffusers, its config, and a step's inputs by the names of diffusers' forward.

    Pictures and latents are channels last here.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]


def workload(name: str, size: int, narrow: bool) -> Workload:
    """`name`: unet or flux. `size`: of the picture's side. `narrow`: a small model, to try the code."""
    return {"unet": _unet, "flux": _flux}[name](size, narrow)


def _unet(size: int, narrow: bool) -> Workload:
    """With guidance: a batch of two."""
    config = dict(UNET)
    if narrow:
        config |= {"block_out_channels": [64, 64, 128], "attention_head_dim": [1, 1, 2], "cross_attention_dim": 64}
        config |= {"transformer_layers_per_block": [1, 1, 2], "projection_class_embeddings_input_dim": 6 * 256 + 32}
    side = size // 8
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return Workload(
        "UNet2DConditionModel",
        config,
        {
            "sample": drawn("sample", (2, side, side, 4)),
            "timestep": np.array([601, 601], np.float32),
            "encoder_hidden_states": drawn("text", (2, _TEXT, config["cross_attention_dim"])),
            "text_embeds": drawn("pooled", (2, pooled)),
            "time_ids": np.array([[size, size, 0, 0, size, size]] * 2, np.float32),
        },
    )


def _flux(size: int, narrow: bool) -> Workload:
    config = dict(FLUX)
    if narrow:
        config |= {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "joint_attention_dim": 64}
    side = size // 16
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    places = np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3)
    return Workload(
        "FluxTransformer2DModel",
        config,
        {
            "hidden_states": drawn("latents", (1, side * side, config["in_channels"])),
            "encoder_hidden_states": drawn("text", (1, _FLUX_TEXT, config["joint_attention_dim"])),
            "pooled_projections": drawn("pooled", (1, config["pooled_projection_dim"])),
            "timestep": np.array([0.6], np.float32),
            "guidance": np.array([3.5], np.float32),
            "txt_ids": np.zeros((_FLUX_TEXT, 3), np.float32),
            "img_ids": places.astype(np.float32),
        },
    )


_normal: list[np.ndarray] = []


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of variance 1 that depend on the name. They repeat, so that billions take no time."""
    if not _normal:
        _normal.append(np.random.default_rng(0).standard_normal(_TABLE, dtype=np.float32))
    return np.resize(np.roll(_normal[0], crc32(name.encode()) % _TABLE), shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight in a checkpoint's layout: of a product with variance 1 / inputs, of a norm 1, a bias near 0."""
    if len(shape) > 1:
        return drawn(name, shape) * np.float32(1 / sqrt(prod(shape[1:])))
    return np.float32(name.endswith("weight")) + np.float32(0.05) * drawn(name, shape)
