"""Products of activations with weights. The weight's leaf type picks the implementation.

A leaf type that is not a plain array registers its rules here: `product`, `layer_of` and `rows_of`, and where it can do
better than one product after another `products` and `gated_product`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def dot(eq: str, x: Array, w: Any, *, real: Array | None = None, dtype: DTypeLike | None = None) -> Array:
    """`einsum(eq, x, w)` accumulated in float32, as `dtype` or else in x's own.

    `eq` names axes by the letters of `spec`, as in `dot("td,dnh->tnh", x, w.wq)`. What `w` is decides how: a plain
    array is a dense product; a quantized leaf registers its own rule with `product.register`. float32 products are
    exact float32 on every backend (no TF32 or bfloat16 passes), so that parity numbers mean the same everywhere.

    `real` i32[]: how many of x's first rows hold tokens (`Step.real`). The others are padding: a rule may skip them,
    and their results are finite but otherwise of no meaning.

    Logits ask for float32: near ties in them would be lost to bfloat16, whose steps at 20 are of 0.125.
    """
    return product(w, eq, x, real, x.dtype if dtype is None else dtype)


@singledispatch
def product(w: Any, eq: str, x: Array, real: Array | None, dtype: DTypeLike) -> Array:
    """The rule for one leaf type; this one is for dense arrays, and computes padding too."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(eq, x, w, precision=precision, preferred_element_type=jnp.float32).astype(dtype)


def dots(eqs: Sequence[str], x: Array, ws: Sequence[Any], *, real: Array | None = None) -> tuple[Array, ...]:
    """`dot` of one input with several weights (queries, keys, values); those of one leaf type may share the work."""
    return _rule(products, ws)(ws, eqs, x, real)


def gated(eq: str, x: Array, gate: Any, up: Any, activation: Activation, *, real: Array | None = None) -> Array:
    """`activation(dot(eq, x, gate)) * dot(eq, x, up)`: the first half of a gated feed-forward (Shazeer 2020)."""
    return _rule(gated_product, (gate, up))(gate, eq, x, up, activation, real)


@singledispatch
def products(ws: Any, eqs: Sequence[str], x: Array, real: Array | None) -> tuple[Array, ...]:
    """The rule of `dots` for a sequence of weights of one leaf type; registered for that type, not for the sequence."""
    return tuple(product(w, eq, x, real, x.dtype) for eq, w in zip(eqs, ws, strict=True))


@singledispatch
def gated_product(gate: Any, eq: str, x: Array, up: Any, activation: Activation, real: Array | None) -> Array:
    """The rule of `gated` for weights of one leaf type."""
    opened = ACTIVATIONS[activation](product(gate, eq, x, real, x.dtype))
    return opened * product(up, eq, x, real, x.dtype)


def _rule(function: Any, ws: Sequence[Any]) -> Any:
    """The rule for the type that all weights share; the plain one where they differ."""
    types = {type(w) for w in ws}
    return function.dispatch(types.pop() if len(types) == 1 else object)


@singledispatch
def layer_of(leaf: Any, index: Array | int) -> Any:
    """One layer of a stacked leaf [l, ...]. The only place that takes a layer out of a stack."""
    return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)


@singledispatch
def rows_of(table: Any, ids: Array) -> Array:
    """Rows of a table [v, d] for `ids` i32[t]: [t, d]."""
    rows: Array = table[ids]
    return rows


def is_leaf(node: Any) -> bool:
    """Whether a tree of weights must not be taken apart here: the type has a rule of its own."""
    return type(node) in layer_of.registry
