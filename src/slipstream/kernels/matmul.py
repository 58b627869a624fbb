"""Products of activations with weights. The weight's leaf type picks the implementation."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def dot(eq: str, x: Array, w: Any) -> Array:
    """`einsum(eq, x, w)` in x's dtype, accumulated in float32.

    `eq` names axes by the letters of `spec`, as in `dot("td,dnh->tnh", x, w.wq)`. What `w` is decides how: a plain array
    is a dense product; a quantized leaf registers its own rule with `product.register`. float32 products are exact
    float32 on every backend (no TF32 or bfloat16 passes), so that parity numbers mean the same everywhere.
    """
    return product(w, eq, x)


@singledispatch
def product(w: Any, eq: str, x: Array) -> Array:
    """The rule for one leaf type; this one is for dense arrays."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(eq, x, w, precision=precision, preferred_element_type=jnp.float32).astype(x.dtype)
