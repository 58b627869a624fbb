"""Queries of a step cut into blocks of one row each, so that a kernel meets one page table at a time."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from slipstream.kernels.ragged import Step


class QueryBlocks(NamedTuple):
    """Blocks of queries, each of one row: `rows` i32[j], `tokens` i32[j, r] (t: none there), the first `real` of j."""

    rows: Array
    tokens: Array
    real: Array


def decode_blocks(step: Step, tokens: int) -> QueryBlocks:
    """A block of one query for each row that computes exactly one token."""
    counts = step.starts[1:] - step.starts[:-1]
    rows = jnp.arange(counts.shape[0], dtype=jnp.int32)
    single = counts == 1
    return QueryBlocks(rows, jnp.where(single, step.starts[:-1], tokens)[:, None], jnp.any(single).astype(jnp.int32))


def chunk_blocks(step: Step, tokens: int, size: int, multiple: int = 1, apart: Array | None = None) -> QueryBlocks:
    """Blocks of `size` queries for each row that computes more than one token; a multiple of `multiple` blocks.

    None of rows that are `apart`, bool[s].
    """
    counts = step.starts[1:] - step.starts[:-1]
    mine = counts > 1 if apart is None else (counts > 1) & ~apart
    of_row = jnp.where(mine, -(-counts // size), 0)
    ends = jnp.cumsum(of_row)
    # Rows of 2 tokens or more fill at most tokens / 2 rows, and each row adds at most one partial block.
    most = -(-tokens // size) + min(counts.shape[0], tokens // 2)
    most += -most % multiple
    index = jnp.arange(most, dtype=jnp.int32)
    row = jnp.minimum(
        jnp.searchsorted(ends, index, side="right", method="compare_all").astype(jnp.int32), counts.shape[0] - 1
    )
    first = step.starts[row] + (index - (ends[row] - of_row[row])) * size
    token = first[:, None] + jnp.arange(size, dtype=jnp.int32)
    real = (index < ends[-1])[:, None] & (token < step.starts[row + 1][:, None])
    return QueryBlocks(row, jnp.where(real, token, tokens), ends[-1])
