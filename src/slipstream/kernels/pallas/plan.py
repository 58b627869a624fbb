"""What the Pallas kernels are told about each block of queries, and how queries go in and results come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from slipstream.errors import ConfigError
from slipstream.kernels.norm import Norm
from slipstream.kernels.query_blocks import QueryBlocks, chunk_blocks, decode_blocks
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles, rotate

MASKED = -1e30  # below every real score, yet finite: a fully masked row must not make NaNs
LANES = 128  # numbers in a row of a TPU's registers


class BlockPlan(NamedTuple):
    """What a kernel knows of j blocks of queries, i32[j] each.

    `rows`: whose page table. `firsts`: position of the first query; the others follow it. `counts`: how many queries
    (0: none, the block is skipped). `begins`, `ends`: first and end of the context blocks that its queries see.
    `follows`: the next block that is not skipped, or j.
    """

    rows: Array
    firsts: Array
    counts: Array
    begins: Array
    ends: Array
    follows: Array


class Problem(NamedTuple):
    """What stays the same for all blocks of one call.

    `group`: query heads of a key/value head. `context`: keys of a context block. `width`: pages of a page table.
    `value`: numbers of a value, which in a cache without values are the first ones of its key.
    """

    scale: float
    window: int | None
    soft_cap: float | None
    group: int
    context: int
    page_size: int
    width: int
    value: int


Attend = Callable[[KVCache, Array, Array, BlockPlan, Array, Problem, Array | None], Array]
"""`(cache, layer i32[1], q [j, k, r * g, h], plan, flat page tables i32[s * p], problem, sinks float32 [k, r * g])` ->
results [j, k, r * g, `problem.value`]."""

Write = Callable[[KVCache, Array, Array, Array | None, Step], KVCache]
"""`(cache, layer i32[1], k [t, k, h], v, step)` -> the cache with them; `v` is None where it has no values."""


def plan_of(blocks: QueryBlocks, step: Step, tokens: int, window: int | None, context: int) -> BlockPlan:
    """The plan of blocks of `tokens` packed tokens; a context block has `context` keys."""
    counts = jnp.sum(blocks.tokens < tokens, axis=1, dtype=jnp.int32)
    firsts = jnp.where(counts > 0, step.positions[jnp.minimum(blocks.tokens[:, 0], tokens - 1)], 0)
    begins = jnp.zeros_like(firsts) if window is None else jnp.maximum(firsts - window + 1, 0) // context
    ends = jnp.where(counts > 0, (firsts + counts - 1) // context + 1, begins)
    size = counts.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    own = jnp.where(counts > 0, index, size)
    from_here = lax.cummin(own, reverse=True)
    follows = jnp.append(from_here[1:], jnp.int32(size)).astype(jnp.int32)
    return BlockPlan(blocks.rows.astype(jnp.int32), firsts, counts, begins, ends, follows)


def attend_blocks(
    write: Write,
    run: Attend,
    chunk: int,
    context: Callable[[KVCache], int],
    cache: KVCache,
    layer: Array | int,
    q: Array,
    k: Array,
    v: Array | int,
    step: Step,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    angles: Angles | None,
    qk_norm: tuple[Norm, Norm] | None,
    sinks: Array | None,
    apart: Array | None = None,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` with `run` for blocks of one query, and then for those of `chunk` queries.

    A context block has `context(cache)` keys. Of rows of chunks that are `apart`, bool[s], the keys alone are written.
    The cache may have longer heads than the model, filled up with zeros.
    What is not finite in a sequence may reach earlier queries of that sequence, as it does not in the reference; it
    reaches no other sequence. Raises ConfigError for a cache that is not laid out by_row.
    """
    if cache.layout != "by_row":
        raise ConfigError(f"Pallas attention reads caches laid out by_row, not {cache.layout}")
    if qk_norm is not None:
        q, k = (norm(x) for norm, x in zip(qk_norm, (q, k), strict=True))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    tokens, heads, own = q.shape
    kv_heads, size = cache.k.shape[2], cache.k.shape[-1]

    def filled(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, size - own)))

    layer = jnp.asarray(layer, jnp.int32).reshape(1)
    cache = write(cache, layer, filled(k), None if isinstance(v, int) else filled(v), step)
    group = heads // kv_heads
    wanted = v if isinstance(v, int) else own
    value = min(size, -(-wanted // LANES) * LANES) if isinstance(v, int) else size
    problem = Problem(scale, window, soft_cap, group, context(cache), cache.page_size, step.pages.shape[1], value)
    queries = filled(q)
    passes = [decode_blocks(step, tokens)]
    if not step.decode_only:
        passes.append(chunk_blocks(step, tokens, chunk, apart=apart))
    out = jnp.zeros((tokens, heads, value), q.dtype)
    for blocks in passes:
        plan = plan_of(blocks, step, tokens, window, problem.context)
        count, each = blocks.tokens.shape
        taken = queries[jnp.minimum(blocks.tokens, tokens - 1)].reshape(count, each, kv_heads, group, size)
        taken = taken.swapaxes(1, 2).reshape(count, kv_heads, each * group, size)
        of_rows = None if sinks is None else jnp.tile(sinks.astype(jnp.float32).reshape(kv_heads, group), (1, each))
        mixed = run(cache, layer, taken, plan, step.pages.reshape(-1), problem, of_rows)
        mixed = mixed.reshape(count, kv_heads, each, group, value).swapaxes(1, 2).reshape(count, each, heads, value)
        out = out.at[blocks.tokens].set(mixed, mode="drop")
    return out[..., :wanted], cache
