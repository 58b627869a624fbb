"""Weights on several devices: where their products, rows and mixtures are computed, and where results come together.

A leaf on a mesh is wrapped in one that knows how it lies there, so a forward names no mesh. Products say with
constraints where their inputs and results are; XLA moves the data. A weight cut along the axes that a product keeps
gives a result that is cut likewise; one cut along those that it sums over gives parts of a sum, which devices then add
up: two such sums a layer, after attention and after the feed-forward. Rows of a table and mixtures of experts are
written for one device, inside `shard_map`.

Sources: the cut of a layer is Shoeybi et al. 2019 (arXiv:1909.08053); tokens on devices between the products is
Korthikanti et al. 2022 (arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from slipstream.kernels.convolution import convolved, plain
from slipstream.kernels.experts import Clamped, Experts, Groups, mixed
from slipstream.kernels.matmul import Activation, Around, dots, layer_of, products, rows_of
from slipstream.kernels.norm import Norm
from slipstream.parallel.spread import MeshAxes, Spread, spec_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharded:
    """A leaf of any type, `inner`, whose arrays lie on a mesh as `spread` says."""

    inner: Any
    spread: Spread = field(metadata={"static": True})


@layer_of.register
def _(leaf: Sharded, index: Array | int) -> Sharded:
    return replace(leaf, inner=layer_of(leaf.inner, index))


@plain.register
def _(leaf: Sharded) -> Array:
    weight: Array = plain(leaf.inner)
    return weight


@convolved.register
def _(leaf: Sharded, x: Array, compute: Callable[[Array, Any], Array]) -> Array:
    """Channels lie as the weight's do: cut along its results they stay cut, along its inputs devices add up."""
    *_, inputs, outputs = leaf.spread.axes
    around = ((),) * (x.ndim - 1)
    y = compute(leaf.spread.constrain(x, *around, inputs), leaf.inner)
    return leaf.spread.constrain(y, *around, outputs)


@rows_of.register
def _(table: Sharded, ids: Array) -> Array:
    """Each device looks up the rows that it has; the others' are zeros in its part of the sum."""
    spread = table.spread
    cut, *_ = spread.axes

    def own(inner: Any, ids: Array) -> Array:
        count = spread.padded[0] // spread.ways(cut)
        at = ids - lax.axis_index(cut) * count
        here = (at >= 0) & (at < count)
        return lax.psum(jnp.where(here[:, None], rows_of(inner, jnp.clip(at, 0, count - 1)), 0), cut)

    if not spread.ways(cut) > 1:
        rows: Array = rows_of(table.inner, ids)
    else:
        rows = jax.shard_map(
            own,
            mesh=spread.mesh,
            in_specs=(spread.specs(table.inner), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(table.inner, ids)
    return spread.constrain(rows, _tokens(spread, ids.shape[0]), ())


@products.register(Sharded)
def _(ws: Sequence[Sharded], eqs: Sequence[str], x: Array, around: Around, dtype: DTypeLike) -> tuple[Array, ...]:
    cuts = [_Cut.of(w.spread, eq) for w, eq in zip(ws, eqs, strict=True)]
    spread = ws[0].spread
    x = spread.constrain(around.before(x), *cuts[0].given)
    ys = dots(eqs, x, [w.inner for w in ws], Around(real=around.real), dtype=dtype)
    return tuple(around.finish(_laid_out(y, w.spread, cut)) for y, w, cut in zip(ys, ws, cuts, strict=True))


@dataclass(frozen=True)
class _Cut:
    """A product's input and result: mesh axes of each of their axes. `kept`: axes of the weight that are the result's.

    `summed`: whether devices have parts of a sum.
    """

    given: tuple[MeshAxes, ...]
    result: tuple[MeshAxes, ...]
    kept: tuple[int | None, ...]
    summed: bool

    @classmethod
    def of(cls, spread: Spread, eq: str) -> _Cut:
        operands, result = eq.split("->")
        given, letters = operands.split(",")
        axes = dict(zip(letters, spread.axes, strict=True))
        return cls(
            tuple(axes.get(letter, ()) for letter in given),
            tuple(axes.get(letter, ()) for letter in result),
            tuple(letters.index(letter) if letter in letters else None for letter in result),
            any(spread.ways(axes[letter]) > 1 for letter in letters if letter not in result),
        )


def _laid_out(y: Array, spread: Spread, cut: _Cut) -> Array:
    """A result where it is wanted: cut as the weight, or added up, or whole and without what fills its weight up."""
    if spread.gathered:
        # First as the weight is cut: else XLA may gather the weight, a GiB of vocabulary, in place of the result.
        y = spread.constrain(spread.constrain(y, *cut.result), *((),) * y.ndim)
        sizes = (size if at is None else spread.sizes[at] for size, at in zip(y.shape, cut.kept, strict=True))
        return y[tuple(map(slice, sizes))]
    if cut.summed:
        return spread.constrain(y, _tokens(spread, y.shape[0]), *cut.result[1:])
    return spread.constrain(y, *cut.result)


def _tokens(spread: Spread, count: int) -> MeshAxes:
    """The mesh axes for so many tokens between products: none where they do not divide."""
    return () if count % spread.ways(spread.tokens) else spread.tokens


@mixed.register
def _(
    gate: Sharded,
    x: Array,
    w: Experts,
    groups: Groups,
    shares: Array,
    activation: Activation | Clamped,
    norm: Norm | None,
) -> Array:
    """Each device computes its experts, or its part of each expert, for all tokens; then the devices add up."""
    spread = gate.spread
    expert, _, hidden = spread.axes
    tokens = _tokens(spread, x.shape[0])
    inner = Experts(gate.inner, w.up.inner, w.down.inner, w.gate_bias, w.up_bias, w.down_bias)

    def own(w: Experts, x: Array, groups: Groups, shares: Array) -> Array:
        count = spread.sizes[0] // spread.ways(expert)
        if spread.ways(expert) > 1:
            groups = groups.of(lax.axis_index(expert) * count, count)
        if w.down_bias is not None and spread.ways(hidden) > 1:
            # It is added on every device, before the sum.
            w = replace(w, down_bias=jnp.where(lax.axis_index(hidden) == 0, w.down_bias, 0))
        y = mixed.dispatch(type(w.gate))(w.gate, x, w, groups, shares, activation, None)
        if tokens:
            return lax.psum_scatter(y, tokens, tiled=True)
        return lax.psum(y, expert + hidden)

    def specs(leaf: Any) -> Any:
        return leaf.spread.specs(leaf.inner)

    biases = tuple(
        None if bias is None else spec_of(expert, axes)
        for bias, axes in ((w.gate_bias, hidden), (w.up_bias, hidden), (w.down_bias, ()))
    )
    whole = PartitionSpec()
    y: Array = jax.shard_map(
        own,
        mesh=spread.mesh,
        in_specs=(Experts(specs(w.gate), specs(w.up), specs(w.down), *biases), whole, whole, whole),
        out_specs=spec_of(tokens, ()),
        check_vma=False,
    )(inner, x if norm is None else norm(x), groups, shares)
    return y
