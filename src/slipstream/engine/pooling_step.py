"""The step of an engine that pools: what the host says of it, and how rows' states become one vector each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.engine.pooling import PoolingModel
from slipstream.engine.shapes import Shape
from slipstream.kernels.ragged import Kernels, KVCache, Step
from slipstream.spec.source import PoolingKind

DONATED = 1  # the argument of a step that it updates in place: the cache
NO_SECOND = np.iinfo(np.int32).max  # position of the first token of the second text, where there is none


def first(x: Array, step: Step) -> Array:
    """Each row's first state."""
    return x[jnp.minimum(step.starts[:-1], x.shape[0] - 1)]


def last(x: Array, step: Step) -> Array:
    """Each row's last state."""
    return x[jnp.maximum(step.starts[1:] - 1, 0)]


def mean(x: Array, step: Step) -> Array:
    """The mean of each row's states, zeros for an empty row."""
    count = step.lengths.shape[0]
    sums = jax.ops.segment_sum(x, step.rows, count + 1)[:count]  # padding is row `count`
    return sums / jnp.maximum(step.starts[1:] - step.starts[:-1], 1)[:, None]


POOLERS: Mapping[PoolingKind, Callable[[Array, Step], Array]] = {"cls": first, "last": last, "mean": mean}
"""States [t, d] of whole rows, or for the last one of their ends, to vectors [s, d]; all in float32."""


@dataclass(frozen=True)
class PoolingRows:
    """The host's arrays of a step: views of parts of `flat`, i32, which is what the step takes.

    `tokens` [t]; `second` [s]: position where a row's second text begins; `starts`, `lengths`, `pages` as in `Step`.
    """

    flat: Any
    tokens: Any
    second: Any
    starts: Any
    lengths: Any
    pages: Any

    @classmethod
    def of(cls, flat: Any, shape: Shape, pages_per_row: int) -> PoolingRows:
        """The parts of an array of numpy's, or of one that is traced."""
        sizes = _sizes(shape, pages_per_row)
        ends = np.cumsum(sizes)
        tokens, second, starts, lengths, pages = (flat[e - n : e] for e, n in zip(ends, sizes, strict=True))
        return cls(flat, tokens, second, starts, lengths, pages.reshape(shape.rows, pages_per_row))

    @classmethod
    def empty(cls, shape: Shape, pages_per_row: int) -> PoolingRows:
        """Rows that compute nothing."""
        rows = cls.of(np.zeros(sum(_sizes(shape, pages_per_row)), np.int32), shape, pages_per_row)
        rows.second[:] = NO_SECOND
        return rows


def _sizes(shape: Shape, pages_per_row: int) -> tuple[int, ...]:
    return shape.tokens, shape.rows, shape.rows + 1, shape.rows, shape.rows * pages_per_row


def make_pooling_step(
    model: PoolingModel, shape: Shape, pages_per_row: int, kernels: Kernels, *, interpreted: bool
) -> Callable[[Any, KVCache | None, Array], tuple[KVCache | None, Array]]:
    """The step of one shape, to be jitted with the cache donated: the vectors float32 [s, e] of its rows.

    A row's vector means something once its text's last token is computed.
    """

    def step(weights: Any, cache: KVCache | None, flat: Array) -> tuple[KVCache | None, Array]:
        rows = PoolingRows.of(flat, shape, pages_per_row)
        described = (rows.starts, rows.lengths, rows.pages, shape.tokens)
        ragged = Step.of(*described, kernels=kernels, interpreted=interpreted)
        second = rows.second[jnp.minimum(ragged.rows, shape.rows - 1)]
        types = (ragged.positions >= second).astype(jnp.int32)
        x, cache = model.states(weights, model.config, rows.tokens, types, ragged, cache)
        vectors = POOLERS[model.pooling.kind](x.astype(jnp.float32), ragged)
        return cache, model.finish(weights, vectors).astype(jnp.float32)

    return step
