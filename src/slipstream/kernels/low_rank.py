"""A weight with changes of low rank beside it, of which each row of a batch takes as much as it asks for.

So that pictures with different LoRAs (Hu et al. 2021, arXiv:2106.09685) share a step: what a row asks for is an array,
and the weight is multiplied as it is, of whatever type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from slipstream.kernels.matmul import Around, dots, layer_of, products

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """A product's or a convolution's weight: x `base` + ((x `down`) * scale) `up`.

    `down` [*inputs, k] and `up` [k, *outputs] have the columns of all adapters that change this weight, side by side;
    column j is of the adapter `of[j]`. Of a stack of layers both have a leading axis. `scales` float32 [b, adapters]:
    how much each of b rows takes of each adapter; None: no row takes any.
    """

    base: Any
    down: Array
    up: Array
    of: tuple[int, ...] = field(metadata={"static": True})
    scales: Array | None = None

    def opened(self, narrow: Array) -> Array:
        """[..., k] to [..., *outputs]. The axes before the last are the b rows, and whatever follows within each."""
        assert self.scales is not None
        taken = self.scales[:, np.array(self.of)]
        before, (k, *outputs) = narrow.shape[:-1], self.up.shape
        rows = narrow.astype(jnp.float32).reshape(len(taken), -1, k) * taken[:, None]
        y = _product(rows.astype(narrow.dtype), self.up.reshape(k, -1))
        return y.reshape(*before, *outputs)


def bound(tree: Tree, scales: Array) -> Tree:
    """The weights for a batch whose rows take `scales` float32 [b, adapters]. A tree without adapters is unchanged."""
    of_rows: Tree = jax.tree.map(
        lambda leaf: replace(leaf, scales=scales) if isinstance(leaf, LowRank) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, LowRank),
    )
    return of_rows


def adapters_in(tree: Any) -> frozenset[int]:
    """The adapters that change any weight of a tree."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, LowRank))
    return frozenset(number for leaf in leaves if isinstance(leaf, LowRank) for number in leaf.of)


@products.register(LowRank)
def _(ws: Sequence[LowRank], eqs: Sequence[str], x: Array, around: Around, dtype: DTypeLike) -> tuple[Array, ...]:
    x = around.before(x)
    ys = dots(eqs, x, [w.base for w in ws], dtype=dtype)
    return tuple(around.finish(_changed(y, x, w)) for y, w in zip(ys, ws, strict=True))


def _changed(y: Array, x: Array, w: LowRank) -> Array:
    if w.scales is None:
        return y
    narrow = _product(x.reshape(len(x), -1), w.down.reshape(-1, len(w.of)))
    return y + w.opened(narrow).astype(y.dtype)


def _product(x: Array, w: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(
        "...i,io->...o", x, w.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32
    ).astype(x.dtype)


@layer_of.register
def _(leaf: LowRank, index: Array | int) -> LowRank:
    base, down, up = (layer_of(one, index) for one in (leaf.base, leaf.down, leaf.up))
    return replace(leaf, base=base, down=down, up=up)
