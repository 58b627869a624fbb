"""Products of activations with weights. The weight's leaf type picks the implementation.

A leaf type that is not a plain array registers its rules here: `products`, `layer_of` and `rows_of`, and where it can
do better than one product after another `gated_product`. What stands around a product (the norm before it, the residual
after it) is a part of the request, so that a rule may compute it in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from slipstream.kernels.norm import Norm

Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@dataclass(frozen=True)
class Around:
    """What belongs to a product besides its factors: what happens to the input before it and to the result after it.

    `norm` of the input; `after`, a norm of the result; `add`, a residual that is added last. `real` i32[]: how many of
    the input's first rows hold tokens (`Step.real`). The others are padding: a rule may skip them, and their results
    are finite but otherwise of no meaning.
    """

    norm: Norm | None = None
    after: Norm | None = None
    add: Array | None = None
    real: Array | None = None

    def before(self, x: Array) -> Array:
        """The input as it is multiplied."""
        return x if self.norm is None else self.norm(x)

    def finish(self, y: Array) -> Array:
        """The result as it is handed on."""
        y = y if self.after is None else self.after(y)
        return y if self.add is None else self.add + y


ALONE = Around()


def dot(eq: str, x: Array, w: Any, around: Around = ALONE, *, dtype: DTypeLike | None = None) -> Array:
    """`einsum(eq, x, w)` accumulated in float32, as `dtype` or else in x's own, with what is `around` it.

    `eq` names axes by the letters of `spec`, as in `dot("td,dnh->tnh", x, w.wq)`. What `w` is decides how: a plain
    array is a dense product; a quantized leaf registers its own rule with `products.register`. float32 products are
    exact float32 on every backend (no TF32 or bfloat16 passes), so that parity numbers mean the same everywhere.

    Logits ask for float32: near ties in them would be lost to bfloat16, whose steps at 20 are of 0.125.
    """
    return products.dispatch(type(w))([w], [eq], x, around, x.dtype if dtype is None else dtype)[0]


def dots(
    eqs: Sequence[str], x: Array, ws: Sequence[Any], around: Around = ALONE, *, dtype: DTypeLike | None = None
) -> tuple[Array, ...]:
    """`dot` of one input with several weights (queries, keys, values); those of one leaf type may share the work."""
    return _rule(products, ws)(ws, eqs, x, around, x.dtype if dtype is None else dtype)


def gated_mlp(x: Array, gate: Any, up: Any, down: Any, activation: Activation, around: Around = ALONE) -> Array:
    """A gated feed-forward (Shazeer 2020, arXiv:2002.05202): `down(activation(gate(x)) * up(x))` for x [t, d].

    `gate` and `up` are [d, f], `down` is [f, d].
    """
    return _rule(gated_product, (gate, up, down))(gate, x, up, down, activation, around)


@singledispatch
def products(ws: Any, eqs: Sequence[str], x: Array, around: Around, dtype: DTypeLike) -> tuple[Array, ...]:
    """The rule of `dot` and `dots` for weights of one leaf type: registered for that type, called with a sequence.

    This one is for dense arrays, and computes padding too.
    """
    x = around.before(x)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return tuple(
        around.finish(jnp.einsum(eq, x, w, precision=precision, preferred_element_type=jnp.float32).astype(dtype))
        for eq, w in zip(eqs, ws, strict=True)
    )


@singledispatch
def gated_product(gate: Any, x: Array, up: Any, down: Any, activation: Activation, around: Around) -> Array:
    """The rule of `gated_mlp` for weights of one leaf type; this one makes it of products."""
    opened, other = dots(("td,df->tf",) * 2, x, (gate, up), replace(around, after=None, add=None))
    y = ACTIVATIONS[activation](opened) * other
    return dot("tf,fd->td", y, down, replace(around, norm=None))


def _rule(function: Any, ws: Sequence[Any]) -> Any:
    """The rule for the type that all weights share; where they differ, one that takes each by its own."""
    types = {type(w) for w in ws}
    if len(types) == 1:
        return function.dispatch(types.pop())
    return _one_by_one if function is products else function.dispatch(object)


def _one_by_one(ws: Sequence[Any], eqs: Sequence[str], x: Array, around: Around, dtype: DTypeLike) -> tuple[Array, ...]:
    return tuple(dot(eq, x, w, around, dtype=dtype) for eq, w in zip(eqs, ws, strict=True))


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
