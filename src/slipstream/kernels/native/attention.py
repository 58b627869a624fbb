"""Ragged paged attention by the native CPU kernels, see attention.h."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles


def attend_native(
    cache: KVCache,
    layer: Array | int,
    q: Array,
    k: Array,
    v: Array,
    step: Step,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    angles: Angles | None,
    qk_norm: tuple[Norm, Norm] | None,
    sinks: Array | None,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` on a CPU. The cache is updated where it lies: the step must be given it donated."""
    assert cache.v is not None, "native kernels need values beside keys"
    scales = () if cache.k_scale is None or cache.v_scale is None else (cache.k_scale, cache.v_scale)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (cache.k, cache.v, *scales)]
    aliases = {3: 1, 4: 2} | ({14: 3, 15: 4} if scales else {})
    out = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    call = jax.ffi.ffi_call("slipstream_ffi_attend", [out, *shapes], input_output_aliases=aliases)
    cos, sin = angles or (jnp.zeros((0, 0), jnp.float32),) * 2
    q_norm, k_norm = qk_norm or (Norm(jnp.zeros(0, jnp.float32), 0.0),) * 2
    mixed, new_k, new_v, *new_scales = call(
        *(x.astype(jnp.float32) for x in (q, k, v)),
        cache.k,
        cache.v,
        jnp.asarray(layer, jnp.int32),
        step.starts,
        step.lengths,
        step.pages,
        cos,
        sin,
        q_norm.weight.astype(jnp.float32),
        k_norm.weight.astype(jnp.float32),
        jnp.zeros(0, jnp.float32) if sinks is None else sinks.astype(jnp.float32),
        *scales,
        layout=cache.layout,
        scale=np.float32(scale),
        window=np.int64(window or 0),
        soft_cap=np.float32(soft_cap or 0.0),
        q_norm_eps=np.float32(q_norm.eps),
        q_norm_offset=np.float32(q_norm.offset),
        k_norm_eps=np.float32(k_norm.eps),
        k_norm_offset=np.float32(k_norm.offset),
    )
    return mixed.astype(q.dtype), KVCache(new_k, new_v, cache.layout, *new_scales)
