"""Norms: RMS (Zhang and Sennrich 2019, arXiv:1910.07467), alone or as a part of what is around it; layer, group."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.kernels.native import library
from slipstream.kernels.native.picture import norm_groups_native
from slipstream.kernels.ragged import Kernels


@dataclass(frozen=True)
class Norm:
    """An RMS norm over the last axis: its `weight` [d], and the `offset` added to that (Gemma stores w - 1).

    Products and attention take one as a request, so that an implementation may compute it together with its own work.
    """

    weight: Array
    eps: float
    offset: float = 0.0

    def __call__(self, x: Array) -> Array:
        """`x` [..., d] normed, computed in float32 and returned in x's type."""
        wide = x.astype(jnp.float32)
        scaled = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        weighted: Array = scaled * (self.weight.astype(jnp.float32) + self.offset)
        return weighted.astype(x.dtype)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """`x` [..., d] with mean 0 and variance 1 over its last axis, times `weight` [d] plus `bias` [d], as x's type.

    Ba et al. 2016, arXiv:1607.06450; computed in float32.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    normed: Array = scaled * weight.astype(jnp.float32) + bias.astype(jnp.float32)
    return normed.astype(x.dtype)


def group_norm(
    x: Array,
    weight: Array,
    bias: Array,
    eps: float,
    groups: int,
    *,
    silu: bool = False,
    kernels: Kernels = "reference",
) -> Array:
    """`x` [b, ..., c] with mean 0 and variance 1 over each of `groups` runs of channels, then weighted by channel.

    Wu and He 2018, arXiv:1803.08494; computed in float32, returned in x's type. `silu`: what comes out goes through a
    SiLU. On a CPU this is a native kernel where that is there. XLA averages channels first by themselves: that sum is
    over whole vectors.
    """
    if kernels == "cpu" and library.library() is not None:
        return norm_groups_native(x, weight, bias, eps, groups, silu)
    wide = x.astype(jnp.float32)
    between = tuple(range(1, x.ndim - 1))

    def mean(values: Array) -> Array:
        """[b, 1..., c], equal within a group."""
        each = jnp.mean(values, axis=between, keepdims=True)
        grouped = jnp.mean(each.reshape(*each.shape[:-1], groups, -1), axis=-1, keepdims=True)
        return jnp.broadcast_to(grouped, (*grouped.shape[:-1], x.shape[-1] // groups)).reshape(each.shape)

    centred = wide - mean(wide)
    scaled = centred * jax.lax.rsqrt(mean(jnp.square(centred)) + eps)
    normed: Array = scaled * weight.astype(jnp.float32) + bias.astype(jnp.float32)
    normed = normed.astype(x.dtype)
    return jax.nn.silu(normed) if silu else normed
