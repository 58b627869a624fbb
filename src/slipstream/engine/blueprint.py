"""What an engine is made of before any data: decided from a model, settings and devices, for one that runs and for one
that is only compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.checkpoint.placement import Placement
from slipstream.engine.config import EngineConfig
from slipstream.engine.kernels import Chosen
from slipstream.engine.lowering import Lowering
from slipstream.engine.memory import KVShape, kv_dtype, row_size
from slipstream.engine.shapes import ShapePolicy
from slipstream.models.registry import Family, ModelConfig
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import heads_of

_OWN_LAYOUTS = ("tpu",)
"""Platforms whose compiler may want a weight laid out otherwise than it lays out a parameter."""


@dataclass(frozen=True)
class Blueprint:
    """One replica: its functions, the shapes that they are compiled for, where weights go, the type of activations."""

    lowering: Lowering
    shapes: ShapePolicy
    placement: Placement
    dtype: np.dtype

    @classmethod
    def of(
        cls,
        members: Family,
        model: ModelConfig,
        config: EngineConfig,
        max_len: int,
        devices: Sequence[jax.Device],
        chosen: Chosen,
    ) -> Blueprint:
        """For a replica on `devices`, all of one platform, with sequences of up to `max_len` tokens.

        Raises ConfigError for a KV cache that the kernels do not read.
        """
        device = devices[0]
        on_cpu = device.platform == "cpu"
        # On a mesh a step can be compiled for devices that are not there; on one CPU device it costs time.
        mesh = None if on_cpu and config.tp * config.dp == 1 else make_mesh(devices, model.kv_heads)
        rules = rules_of(experts=config.ep, tokens=config.sp)
        dtype = activations(config.dtype, device.platform)
        held = kv_dtype(config.kv_dtype, dtype, device.platform)
        heads = None if mesh is None else heads_of(mesh, rules)
        size, page = row_size(model.head_dim, chosen.kernels, latent=members.latent), chosen.page_size(config, held)
        kv = KVShape(model.layers, model.kv_heads, size, page, held, values=not members.latent, heads=heads)
        limits = (config.max_seqs, max_len)
        own = device.platform in _OWN_LAYOUTS
        lowering = Lowering(members, model, kv, *limits, chosen.kernels, mesh, chosen.interpreted, own)
        shapes = ShapePolicy(config.max_seqs, config.max_batched_tokens, lowering.pages_per_row)
        placement = Placement(device, dtype, chosen.native, config.cpu_precision, mesh, rules)
        return cls(lowering, shapes, placement, dtype)


def activations(name: str, platform: str) -> Any:
    """The type of activations: what was asked for, or for auto the platform's."""
    default = jnp.float32 if platform == "cpu" else jnp.bfloat16
    return jnp.dtype(default if name == "auto" else name)
