"""Small configs of UNets and autoencoders, as config.json would say them, and their forwards: for tests and goldens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.checkpoint import RandomSource, load
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import autoencoder, unet

SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [2, 4],
    "layers_per_block": 2,
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": [1, 2],
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 64,
    "norm_num_groups": 1,
}
"""The one that diffusers' own tests have: 6 sizes of 8 numbers each, and a pooled text of 32."""

THREE: dict[str, Any] = {
    **SDXL,
    "block_out_channels": [16, 32, 48],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "cross_attention_dim": 20,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}

UNETS: dict[str, dict[str, Any]] = {
    "sdxl": SDXL,
    "three-levels": THREE,
    "first-stable-diffusion": {
        **THREE,
        "addition_embed_type": None,
        "use_linear_projection": False,
        "attention_head_dim": 4,
        "transformer_layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "guided-uneven": {
        **THREE,
        "in_channels": 9,
        "time_cond_proj_dim": 12,
        "layers_per_block": [1, 2, 2],
        "transformer_layers_per_block": [1, [2, 1], [1, 3]],
        "reverse_transformer_layers_per_block": [[3, 1, 2], [1, 2, 1], 1],
    },
    "no-middle": {**THREE, "mid_block_type": None, "norm_num_groups": 16},
}

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "sample_size": 128,
        "scaling_factor": 0.13025,
    },
    "flux": {
        "block_out_channels": [8, 16, 16, 24],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": 4,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "without-attention": {
        "block_out_channels": [12],
        "norm_num_groups": 3,
        "mid_block_add_attention": False,
        "latent_channels": 2,
        "in_channels": 1,
        "out_channels": 1,
    },
}

QUICK = {"xla_backend_optimization_level": 0}
"""These compute little: compiling is nearly all of their time."""


SIZE = (6, 10)
"""Rows and columns of the goldens' latents."""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, dtype=np.float32)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def weights_of(plan: Any, seed: int = 0) -> Any:
    """Weights that depend on the seed and on each tensor's name alone; norms and biases far from 1 and 0."""
    return load(plan, RandomSource(plan, seed, jitter=0.3), lambda param, path, value: jnp.asarray(value))


@dataclass(frozen=True)
class UnetInputs:
    """One call's inputs; None what the config has not. Each of the batch has a text, a time and sizes of its own."""

    latents: np.ndarray
    time: np.ndarray
    text: np.ndarray
    pooled: np.ndarray | None
    sizes: np.ndarray | None
    guidance: np.ndarray | None

    @classmethod
    def drawn(cls, config: Mapping[str, Any], batch: int, rows: int, columns: int) -> UnetInputs:
        added = config["addition_embed_type"] is not None
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        sizes = np.array([[1024, 768, 0, 32 * i, 1024 - 64 * i, 768] for i in range(batch)], np.float32)
        return cls(
            drawn(batch, rows, columns, config["in_channels"]),
            np.linspace(951.0, 1.0, batch, dtype=np.float32),
            drawn(batch, 7, config["cross_attention_dim"]),
            drawn(batch, pooled) if added else None,
            sizes if added else None,
            np.linspace(2.0, 7.5, batch, dtype=np.float32) if "time_cond_proj_dim" in config else None,
        )

    def only(self, i: int) -> UnetInputs:
        """Those of one of the batch."""
        return UnetInputs(**{name: None if x is None else x[i : i + 1] for name, x in vars(self).items()})


@dataclass(frozen=True)
class Unet:
    """A UNet with random weights."""

    config: unet.Config
    weights: Any
    kernels: Kernels = "reference"

    @classmethod
    def random(cls, config: Mapping[str, Any], kernels: Kernels = "reference") -> Unet:
        c = unet.Config.from_diffusers(config)
        return cls(c, weights_of(unet.plan(c)), kernels)

    @cached_property
    def compiled(self) -> Any:
        def run(w: Any, x: dict[str, Any]) -> jax.Array:
            return unet.forward(w, self.config, **x, kernels=self.kernels)

        return jax.jit(run, compiler_options=QUICK)

    def __call__(self, inputs: UnetInputs) -> np.ndarray:
        return np.asarray(self.compiled(self.weights, vars(inputs)))


def autoencoder_inputs(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures and two latents."""
    c = autoencoder.Config.from_diffusers(config)
    rows, columns = 2 * c.factor, 3 * c.factor
    return drawn(2, rows, columns, c.in_channels), drawn(2, 3, 2, c.latent_channels)


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder with random weights."""

    config: autoencoder.Config
    weights: Any
    kernels: Kernels = "reference"

    @classmethod
    def random(cls, config: Mapping[str, Any], kernels: Kernels = "reference") -> Autoencoder:
        c = autoencoder.Config.from_diffusers(config)
        return cls(c, weights_of(autoencoder.plan(c)), kernels)

    def run(self, function: Any, x: np.ndarray, **settings: Any) -> Any:
        """`encode`, `decode` or `decode_tiled` of the module, compiled."""
        call = partial(function, kernels=self.kernels, **settings)
        compiled = jax.jit(lambda w, x: call(w, self.config, x), compiler_options=QUICK)
        return jax.tree.map(np.asarray, compiled(self.weights, x))
