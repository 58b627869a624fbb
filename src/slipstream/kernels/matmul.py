"""Products of activations with weights. The weight's leaf type picks the implementation."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def dot(eq: str, x: Array, w: Any, *, dtype: DTypeLike | None = None) -> Array:
    """`einsum(eq, x, w)` accumulated in float32, as `dtype` or else in x's own.

    Logits ask for float32: near ties in them would be lost to bfloat16, whose steps at 20 are of 0.125.

    `eq` names axes by the letters of `spec`, as in `dot("td,dnh->tnh", x, w.wq)`. What `w` is decides how: a plain
    array is a dense product; a quantized leaf registers its own rule with `product.register`. float32 products are
    exact float32 on every backend (no TF32 or bfloat16 passes), so that parity numbers mean the same everywhere.
    """
    return product(w, eq, x, x.dtype if dtype is None else dtype)


@singledispatch
def product(w: Any, eq: str, x: Array, dtype: DTypeLike) -> Array:
    """The rule for one leaf type; this one is for dense arrays."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(eq, x, w, precision=precision, preferred_element_type=jnp.float32).astype(dtype)
