"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): queries and keys turned by their positions' angles."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

Angles = tuple[Array, Array]
"""Cosine and sine of positions, float32 [..., t, r/2] each: the first r elements of a head are turned."""


def unpaired(x: Array) -> Array:
    """Neighbours 2i and 2i + 1 of the last axis moved to i and i + h/2, the pairs that `rotate` turns."""
    return jnp.concatenate((x[..., ::2], x[..., 1::2]), axis=-1)


def rotate(x: Array, angles: Angles) -> Array:
    """Rotate the pairs (i, i + r/2) of `x` [..., t, n, h] by the angles of its positions, in float32.

    r may be below h. Angles [t, r/2] serve every member of a batch.
    """
    cos, sin = (a[..., None, :] for a in angles)
    pairs = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :pairs], wide[..., pairs : 2 * pairs], wide[..., 2 * pairs :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate((*turned, rest), axis=-1).astype(x.dtype)
