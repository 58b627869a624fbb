"""RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467), alone or as a part of what comes before or after it."""

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
