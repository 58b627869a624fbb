"""Many layers as one scan: compile time does not grow with depth, and the KV cache is updated in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

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


def layer_of(leaf: Any, index: Array | int) -> Any:
    """One layer of a stacked leaf [l, ...]. The only place that takes a layer out of a stack."""
    return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)


def stack(
    block: Callable[[Weights, Array, Step, KVCache, Array, Kind], tuple[Array, KVCache]],
    weights: Weights,
    x: Array,
    step: Step,
    cache: KVCache,
    kinds: Sequence[Kind],
) -> tuple[Array, KVCache]:
    """Run `block(w, x, step, cache, layer, kind) -> (x, cache)` over all layers of stacked `weights`.

    Whole periods of `kinds` are scanned, with one period unrolled in the body, where each kind is static; the layers
    that do not fill a period follow. The cache rides in the carry, never as xs and ys: those would copy it.
    """
    size = period(kinds)

    def run(first: Array, x: Array, cache: KVCache, kinds: Sequence[Kind]) -> tuple[Array, KVCache]:
        for offset, kind in enumerate(kinds):
            layer = first + offset
            w = jax.tree.map(partial(layer_of, index=layer), weights)
            x, cache = block(w, x, step, cache, layer, kind)
        return x, cache

    def body(carry: tuple[Array, KVCache], first: Array) -> tuple[tuple[Array, KVCache], None]:
        return run(first, *carry, kinds[:size]), None

    whole = len(kinds) // size * size
    (x, cache), _ = jax.lax.scan(body, (x, cache), jnp.arange(0, whole, size, dtype=jnp.int32))
    return run(jnp.int32(whole), x, cache, kinds[whole:])
