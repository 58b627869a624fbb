"""Attention on several devices: each attends with the heads that it has, and needs nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles
from slipstream.parallel.spread import Heads, spec_of


def on_mesh(
    run: Callable[..., tuple[Array, KVCache]],
    heads: Heads,
    cache: KVCache,
    layer: Array | int,
    q: Array,
    k: Array,
    v: Array | int,
    step: Step,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    angles: Angles | None,
    qk_norm: tuple[Norm, Norm] | None,
    sinks: Array | None,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` by an implementation `run` on every device of `heads`."""

    part = v if isinstance(v, int) else None  # of a key, which is its value

    def own(cache: KVCache, weights: tuple[Array, ...] | None, *arrays: Any) -> tuple[Array, KVCache]:
        layer, q, k, v, step, angles, sinks = arrays
        v, norms = v if part is None else part, None
        if qk_norm is not None and weights is not None:
            norms = tuple(replace(norm, weight=weight) for norm, weight in zip(qk_norm, weights, strict=True))
        y, cache = run(replace(cache, heads=None), layer, q, k, v, step, scale, window, soft_cap, angles, norms, sinks)
        return y, replace(cache, heads=heads)

    queries, kv, whole = spec_of((), heads.queries, ()), spec_of((), heads.kv, ()), PartitionSpec()
    weights = None if qk_norm is None else tuple(norm.weight for norm in qk_norm)
    values = v if part is None else None
    return jax.shard_map(
        own,
        mesh=heads.mesh,
        in_specs=(cache.specs(), whole, whole, queries, kv, kv, whole, whole, spec_of(heads.queries)),
        out_specs=(queries, cache.specs()),
        check_vma=False,
    )(cache, weights, jnp.asarray(layer, jnp.int32), q, k, values, step, angles, sinks)
