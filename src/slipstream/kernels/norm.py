"""Norms: RMS (Zhang and Sennrich 2019, arXiv:1910.07467), alone or as a part of what is around it; layer norm."""

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
