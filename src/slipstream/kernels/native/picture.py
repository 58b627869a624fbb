"""Convolutions, attention of batches and group norms of image models by the native CPU kernels, see picture.h."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BLOCK = 16
"""Outputs, and inputs, that lie together in a packed weight."""


def pack_points(values: Array) -> Array:
    """Winograd weights [points, i, o] as the kernels read them: [points, o / 16, i, 16], zeros after them."""
    points, inputs, outputs = values.shape
    wide = jnp.pad(values.astype(jnp.float32), ((0, 0), (0, -inputs % BLOCK), (0, -outputs % BLOCK)))
    return jnp.transpose(wide.reshape(points, wide.shape[1], -1, BLOCK), (0, 2, 1, 3))


def convolve_points(x: Array, weights: Array, bias: Array, *, tile: int, doubled: bool) -> Array:
    """The 3x3 convolution of x [b, y, x, i] with `pack_points` of its weight, plus `bias` [b, o]: [b, y, x, o].

    In x's type. Stride 1, zeros around the picture. `doubled`: each row and column of x counts twice.
    """
    times = 1 + doubled
    result = jax.ShapeDtypeStruct((x.shape[0], times * x.shape[1], times * x.shape[2], bias.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call("slipstream_ffi_convolution", result)
    y: Array = call(
        x.astype(jnp.float32), weights, bias.astype(jnp.float32), tile=np.int64(tile), doubled=bool(doubled)
    )
    return y.astype(x.dtype)


def attend_native(q: Array, k: Array, v: Array, scale: float) -> Array:
    """softmax(q k' * scale) v for q [b, t, n, h] and k, v [b, c, n, h], in float32: [b, t, n, h] in q's type."""
    call = jax.ffi.ffi_call("slipstream_ffi_batched_attention", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    y: Array = call(*(x.astype(jnp.float32) for x in (q, k, v)), scale=np.float32(scale))
    return y.astype(q.dtype)


def norm_groups_native(x: Array, weight: Array, bias: Array, eps: float, groups: int, silu: bool) -> Array:
    """`kernels.norm.group_norm` of x [b, ..., c], with a SiLU behind it where `silu` says so."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    call = jax.ffi.ffi_call("slipstream_ffi_group_norm", jax.ShapeDtypeStruct(flat.shape, jnp.float32))
    y: Array = call(
        flat,
        weight.astype(jnp.float32),
        bias.astype(jnp.float32),
        groups=np.int64(groups),
        eps=np.float32(eps),
        silu=bool(silu),
    )
    return y.reshape(x.shape).astype(x.dtype)


def gelu_native(x: Array, bias: Array, other: Array | None, other_bias: Array | None, tanh: bool) -> Array:
    """gelu(x + bias) for x [..., c] and bias [c], times (other + other_bias) where there is one, as x's type."""
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    call = jax.ffi.ffi_call("slipstream_ffi_gelu", jax.ShapeDtypeStruct(flat.shape, jnp.float32))
    y: Array = call(
        flat,
        bias.astype(jnp.float32),
        jnp.zeros((0, 0), jnp.float32) if other is None else other.reshape(flat.shape).astype(jnp.float32),
        jnp.zeros(0, jnp.float32) if other_bias is None else other_bias.astype(jnp.float32),
        tanh=bool(tanh),
    )
    return y.reshape(x.shape).astype(x.dtype)
