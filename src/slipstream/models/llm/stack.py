"""Many layers as one scan: compile time does not grow with depth, and the KV cache is updated in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.kernels.matmul import is_leaf, layer_of
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.llm.rope import Rope

Weights = TypeVar("Weights")
Config = TypeVar("Config", bound=Any)
Carry = tuple[Array, KVCache]


@dataclass(frozen=True)
class Kind:
    """What is static about a layer: its rotary table and its sliding window (None: it sees all that came before).

    `form`: which stack of weights it takes its own from, where layers of several forms have one each.
    """

    rope: Rope
    window: int | None = None
    form: int = 0


def within(config: Config, longest: int) -> Config:
    """A family's config for an engine whose contexts have at most `longest` tokens: see `Rope.within`."""

    def fitted(value: Any) -> Any:
        if isinstance(value, Rope):
            return value.within(longest)
        if isinstance(value, Kind):
            return replace(value, rope=value.rope.within(longest))
        return tuple(map(fitted, value)) if isinstance(value, tuple) else value

    return replace(config, **{field.name: fitted(getattr(config, field.name)) for field in fields(config)})


def period(kinds: Sequence[Kind]) -> int:
    """The smallest p with `kinds[i] == kinds[i % p]` for all i; at least 1."""
    sizes = range(1, len(kinds))
    return next((p for p in sizes if all(kind == kinds[i % p] for i, kind in enumerate(kinds))), max(1, len(kinds)))


def stack(
    block: Callable[[Weights, Array, Step, KVCache, Array, Kind], tuple[Array, KVCache]],
    weights: Weights | tuple[Weights, ...],
    x: Array,
    step: Step,
    cache: KVCache,
    kinds: Sequence[Kind],
) -> tuple[Array, KVCache]:
    """Run `block(w, x, step, cache, layer, kind) -> (x, cache)` over all layers of stacked `weights`.

    Where weights of layers differ in form, `weights` is a tuple: for each form the stack of its own layers, in order.

    Whole periods of `kinds` are scanned, and inside a period each run of equal kinds; the layers that do not fill a
    period follow. So a block is compiled once a run (Gemma 3: twice, and once for the rest), with its kind static.
    The cache rides in the carry, never as xs and ys: those would copy it.
    """
    forms = weights if isinstance(weights, tuple) else (weights,)
    size = period(kinds)
    each = Counter(kind.form for kind in kinds[:size])

    def run(carry: Carry, first: Array | int, kinds: Sequence[Kind]) -> Carry:
        begin, seen = first, Counter[int]()
        for kind, same in groupby(kinds):
            count = len(list(same))
            # From a layer's number to its number among those of its form.
            shift = begin // size * each[kind.form] + seen[kind.form] - first if len(forms) > 1 else None

            def one(layer: Array | int, carry: Carry, kind: Kind = kind, shift: Array | int | None = shift) -> Carry:
                own = layer if shift is None else layer + shift
                w = jax.tree.map(partial(layer_of, index=own), forms[kind.form], is_leaf=is_leaf)
                return block(w, carry[0], step, carry[1], jnp.asarray(layer, jnp.int32), kind)

            last = first + count
            carry = one(first, carry) if count == 1 else _loop(first, last, 1, one, carry)
            first = last
            seen[kind.form] += count
        return carry

    whole = len(kinds) // size
    if whole > 1:
        last = whole * size
        carry = _loop(0, last, size, lambda first, carry: run(carry, first, kinds[:size]), (x, cache))
        return run(carry, last, kinds[last:])
    return run((x, cache), 0, kinds)


def _loop(
    first: Array | int, last: Array | int, step: int, body: Callable[[Array, Carry], Carry], carry: Carry
) -> Carry:
    """`body(layer, carry)` for every `step`th layer from `first` to before `last`.

    The loop's counter itself names the layer: a scan would read it from an array, which is one more operation in each.
    """
    _, carry = jax.lax.while_loop(
        lambda state: state[0] < last,
        lambda state: (state[0] + step, body(*state)),
        (jnp.asarray(first, jnp.int32), carry),
    )
    return carry
