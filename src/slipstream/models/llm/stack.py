"""Many layers as one scan: compile time does not grow with depth, and the KV cache is updated in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.kernels.matmul import is_leaf, layer_of
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.llm.rope import Rope

Weights = TypeVar("Weights")


@dataclass(frozen=True)
class Kind:
    """What is static about a layer: its rotary table and its sliding window (None: it sees all that came before)."""

    rope: Rope
    window: int | None = None


def period(kinds: Sequence[Kind]) -> int:
    """The smallest p with `kinds[i] == kinds[i % p]` for all i; at least 1."""
    sizes = range(1, len(kinds))
    return next((p for p in sizes if all(kind == kinds[i % p] for i, kind in enumerate(kinds))), max(1, len(kinds)))


def stack(
    block: Callable[[Weights, Array, Step, KVCache, Array, Kind], tuple[Array, KVCache]],
    weights: Weights,
    x: Array,
    step: Step,
    cache: KVCache,
    kinds: Sequence[Kind],
) -> tuple[Array, KVCache]:
    """Run `block(w, x, step, cache, layer, kind) -> (x, cache)` over all layers of stacked `weights`.

    Whole periods of `kinds` are scanned, and inside a period each run of equal kinds; the layers that do not fill a
    period follow. So a block is compiled once a run (Gemma 3: twice, and once for the rest), with its kind static.
    The cache rides in the carry, never as xs and ys: those would copy it.
    """
    size = period(kinds)
    Carry = tuple[Array, KVCache]

    def run(carry: Carry, first: Array | int, kinds: Sequence[Kind]) -> Carry:
        for kind, same in groupby(kinds):
            count = len(list(same))

            def one(carry: Carry, layer: Array | int, kind: Kind = kind) -> tuple[Carry, None]:
                w = jax.tree.map(partial(layer_of, index=layer), weights, is_leaf=is_leaf)
                return block(w, carry[0], step, carry[1], jnp.asarray(layer, jnp.int32), kind), None

            if count == 1:
                carry, _ = one(carry, first)
            else:
                carry, _ = jax.lax.scan(one, carry, first + jnp.arange(count, dtype=jnp.int32))
            first = first + count
        return carry

    whole = len(kinds) // size
    if whole > 1:
        carry, _ = jax.lax.scan(
            lambda carry, first: (run(carry, first, kinds[:size]), None),
            (x, cache),
            jnp.arange(0, whole * size, size, dtype=jnp.int32),
        )
        return run(carry, whole * size, kinds[whole * size :])
    return run((x, cache), 0, kinds)
