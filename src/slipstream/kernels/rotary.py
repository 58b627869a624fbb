"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): queries and keys turned by their positions' angles."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

Angles = tuple[Array, Array]
"""Cosine and sine of a step's positions, float32 [t, h/2] each."""


def rotate(x: Array, angles: Angles) -> Array:
    """Rotate the pairs (i, i + h/2) of `x` [t, n, h] by the angles of its positions, in float32."""
    cos, sin = (a[:, None, :] for a in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)
