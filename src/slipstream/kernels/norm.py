"""Norms: RMS (Zhang and Sennrich 2019, arXiv:1910.07467), alone or as a part of what is around it; layer, group."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


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


def group_norm(x: Array, weight: Array, bias: Array, eps: float, groups: int) -> Array:
    """`x` [b, ..., c] with mean 0 and variance 1 over each of `groups` runs of channels, then weighted by channel.

    Wu and He 2018, arXiv:1803.08494; computed in float32, returned in x's type. Channels are averaged first by
    themselves: that sum is over whole vectors.
    """
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
    return normed.astype(x.dtype)
