"""Ragged paged attention on a TPU: a block of queries at a time, its pages copied in while the ones before are used.

A grid step is a block of queries of one row, for all key/value heads that the device has. It walks the row's context in
blocks of pages: each page is one copy from HBM, all of a block's copies are in flight at once, and while a block is
computed the next one, be it of the same row or of the next, is on its way into a second buffer. Only pages that hold
tokens which the queries see are read.

Sources: the running softmax is Milakov and Gimelshein 2018 (arXiv:1805.02867); copies of scattered pages behind the
computation are as in PagedAttention (arXiv:2309.06180).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from slipstream.kernels.norm import Norm
from slipstream.kernels.pallas.plan import LANES, MASKED, BlockPlan, Problem, attend_blocks
from slipstream.kernels.pallas.tpu_write import write_tpu
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles

CHUNK_BLOCK = 64  # queries of one prefill block, at most
CHUNK_ROWS = 1024  # the same times the query heads of a key/value head: so many rows of scores are live at once
CONTEXT_BLOCKS = (128, 512)  # keys of one context block, at least and at most (a page may be larger)
BUFFER_BYTES = 2**23  # of VMEM for the buffers of keys and values
VMEM_LIMIT = 2**25


class Held(NamedTuple):
    """The arrays of a cache, or what a kernel has of each; None for those that it has not."""

    k: Any
    v: Any
    k_scale: Any
    v_scale: Any

    def map(self, function: Callable[[Any], Any]) -> Held:
        """`function` of each that is there."""
        return Held(*(None if one is None else function(one) for one in self))


class Running(NamedTuple):
    """The running softmax of a block: best score and sum so far [k, r * g, LANES], results so far [k, r * g, o]."""

    best: Any
    total: Any
    acc: Any


def attend_tpu(
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
    sinks: Array | None = None,
    *,
    interpret: Any = False,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` on a TPU. The cache must be laid out by_row.

    In a bfloat16 cache the shares of a query are rounded to bfloat16 before they meet the values; numbers of a byte
    meet queries and shares in the queries' type. `interpret` runs the kernel on any device, for tests (True, or
    `pltpu.InterpretParams`).
    """
    write, run = partial(write_tpu, interpret=interpret), partial(_call, interpret=interpret)
    chunk = max(1, min(CHUNK_BLOCK, CHUNK_ROWS * cache.k.shape[2] // q.shape[1]))
    return attend_blocks(
        write, run, chunk, context_block, cache, layer, q, k, v, step, scale, window, soft_cap, angles, qk_norm,
        sinks,
    )  # fmt: skip


def context_block(cache: KVCache) -> int:
    """Keys of a context block: whole pages, as many as the buffers hold."""
    kv_heads, page, size = cache.k.shape[2:]
    least, most = CONTEXT_BLOCKS
    arrays = 1 if cache.v is None else 2
    each = 2 * arrays * kv_heads * -(-size // LANES) * LANES * cache.k.dtype.itemsize  # two buffers
    return max(1, min(max(BUFFER_BYTES // each, least), most) // page) * page


def _call(
    cache: KVCache,
    layer: Array,
    q: Array,
    plan: BlockPlan,
    pages: Array,
    problem: Problem,
    sinks: Array | None,
    *,
    interpret: Any,
) -> Array:
    blocks, kv_heads, rows, size = q.shape
    arrays = Held(cache.k, cache.v, cache.k_scale, cache.v_scale)
    own = pl.BlockSpec((1, kv_heads, rows, size), lambda i, *_: (i, 0, 0, 0))
    every = pl.BlockSpec((kv_heads, rows, LANES), lambda i, *_: (0, 0, 0))
    result = pl.BlockSpec((1, kv_heads, rows, problem.value), lambda i, *_: (i, 0, 0, 0))
    numbers = pltpu.VMEM((kv_heads, rows, LANES), jnp.float32)

    def buffer(pages: Array) -> Any:
        """Two context blocks: rows of heads next to each other, scales as the pages have them."""
        if pages.ndim == 5:
            return pltpu.VMEM((2, kv_heads, problem.context, size), pages.dtype)
        return pltpu.VMEM((2, problem.context // problem.page_size, *pages.shape[2:]), pages.dtype)

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(blocks,),
        in_specs=[own, arrays.map(lambda _: pl.BlockSpec(memory_space=pl.ANY)), None if sinks is None else every],
        out_specs=result,
        scratch_shapes=[
            arrays.map(buffer),
            pltpu.SemaphoreType.DMA((2, len(arrays))),
            pltpu.SMEM((1,), jnp.int32),
            Running(numbers, numbers, pltpu.VMEM((kv_heads, rows, problem.value), jnp.float32)),
        ],
    )
    call = pl.pallas_call(
        partial(_kernel, problem=problem),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct((*q.shape[:3], problem.value), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_LIMIT),
        interpret=interpret,
        name="slipstream_ragged_attention",
    )
    wide = None if sinks is None else jnp.broadcast_to(sinks[..., None], (kv_heads, rows, LANES))
    mixed: Array = call(layer, pages, plan, q, arrays, wide)
    return mixed


def _kernel(
    layer: Any,
    pages: Any,
    plan: BlockPlan,
    q: Any,
    arrays: Held,
    sinks: Any,
    out: Any,
    buffers: Held,
    semaphores: Any,
    turn: Any,
    running: Running,
    *,
    problem: Problem,
) -> None:
    """One block of queries. Refs: the plan in SMEM, q and out [1, k, r * g, h], arrays as in the cache.

    `turn` i32[1]: which buffer holds the first context block of the next block of queries.
    """
    block, blocks = pl.program_id(0), pl.num_programs(0)
    page_size, per_context = problem.page_size, problem.context // problem.page_size

    def copies(block: Array, context: Array, slot: Array, act: Callable[[Any], None]) -> None:
        """Start the copies of a context block, or wait for them."""
        held = pl.cdiv(plan.firsts[block] + plan.counts[block], page_size)
        first = context * per_context
        row = plan.rows[block] * problem.width + first

        def one(n: Array, nothing: None) -> None:
            page = pages[row + n]
            at = pl.ds(pl.multiple_of(n * page_size, page_size), page_size)
            for which, (source, buffer) in enumerate(zip(arrays, buffers, strict=True)):
                if source is not None:
                    target = buffer.at[slot, :, at] if len(source.shape) == 5 else buffer.at[slot, n]
                    act(pltpu.make_async_copy(source.at[layer[0], page], target, semaphores.at[slot, which]))

        lax.fori_loop(0, jnp.minimum(per_context, held - first), one, None)

    start, wait = (lambda copy: copy.start()), (lambda copy: copy.wait())

    @pl.when(block == 0)
    def _() -> None:
        turn[0] = 0
        first = jnp.where(plan.counts[0] > 0, 0, plan.follows[0])

        @pl.when(first < blocks)
        def _() -> None:
            copies(first, plan.begins[first], jnp.int32(0), start)

    @pl.when(plan.counts[block] == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    @pl.when(plan.counts[block] > 0)
    def _() -> None:
        # A sink is a score like another, that of a value of zeros: the softmax begins with it.
        running.best[...] = jnp.full_like(running.best, MASKED) if sinks is None else sinks[...]
        running.total[...] = jnp.full_like(running.total, 0.0 if sinks is None else 1.0)
        running.acc[...] = jnp.zeros_like(running.acc)

        def one_context(context: Array, slot: Array) -> Array:
            last = context + 1 == plan.ends[block]
            then = jnp.where(last, plan.follows[block], block)

            @pl.when(then < blocks)
            def _() -> None:
                begin = plan.begins[jnp.minimum(then, blocks - 1)]
                copies(then, jnp.where(last, begin, context + 1), 1 - slot, start)

            copies(block, context, slot, wait)
            first = plan.firsts[block] - context * problem.context
            held, count = buffers.map(lambda buffer: buffer.at[slot]), first + plan.counts[block]
            values = held.k if held.v is None else held.v
            if values.dtype.itemsize > 1:

                @pl.when(last)
                def _() -> None:
                    _clear(values, count)

            _mix(q, held, running, first, count, problem)
            return 1 - slot

        turn[0] = lax.fori_loop(plan.begins[block], plan.ends[block], one_context, turn[0])
        for head in range(q.shape[1]):
            share = 1 / jnp.maximum(running.total[head][:, :1], 1e-30)
            out[0, head] = (running.acc[head] * share).astype(out.dtype)


def _clear(values: Any, count: Array) -> None:
    """Make values [k, c, h] from `count` on zeros: what lies there may be NaN, and 0 * NaN must not reach the sum."""
    for head in range(values.shape[0]):
        values[head] = _cleared(values[head].astype(jnp.float32), count).astype(values.dtype)


def _cleared(values: Array, count: Array) -> Array:
    """The same of values [c, h]."""
    return jnp.where(lax.broadcasted_iota(jnp.int32, values.shape, 0) < count, values, 0.0)


def _mix(q: Any, held: Held, running: Running, first: Array, count: Array, problem: Problem) -> None:
    """One context block into the running softmax of all heads. `first`: position of the first query in the block.

    `count`: how many of its keys hold tokens.
    """
    _, kv_heads, rows, _ = q.shape
    shape = (rows, problem.context)
    at = first + lax.broadcasted_iota(jnp.int32, shape, 0) // problem.group
    key = lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = key <= at
    if problem.window is not None:
        seen &= key > at - problem.window
    dtype = q.dtype if held.k.dtype.itemsize == 1 else held.k.dtype
    exact = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    product = partial(lax.dot_general, precision=exact, preferred_element_type=jnp.float32)
    for head in range(kv_heads):
        keys = _widened(held.k[head], dtype)
        scores = product(q[0, head].astype(dtype), keys, (((1,), (1,)), ((), ()))) * problem.scale
        if held.k_scale is not None:
            scores *= _by_key(held.k_scale, head)
        if problem.soft_cap is not None:
            scores = problem.soft_cap * jnp.tanh(scores / problem.soft_cap)
        scores = jnp.where(seen, scores, MASKED)
        before = running.best[head]
        after = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        keep = jnp.exp(before - after)
        shares = jnp.where(seen, jnp.exp(scores - after[:, :1]), 0.0)
        running.best[head] = after
        running.total[head] = running.total[head] * keep + jnp.sum(shares, axis=1, keepdims=True)
        values, scales = held.v, held.v_scale
        if values is None:  # latent: the first part of each key
            values, scales = held.k, held.k_scale
        if scales is not None:
            shares = jnp.where(seen, shares * _by_key(scales, head), 0.0)
        values = values[head][:, : problem.value]
        if values.dtype.itemsize == 1 and jnp.issubdtype(values.dtype, jnp.floating):
            values = _cleared(values.astype(jnp.float32), count)
        mixed = product(shares.astype(dtype), _widened(values, dtype), (((1,), (0,)), ((), ())))
        running.acc[head] = running.acc[head] * keep[:, :1] + mixed


def _widened(numbers: Array, dtype: jnp.dtype) -> Array:
    """Numbers as they are multiplied; those of a byte become float32 first, as every TPU can."""
    return numbers if numbers.dtype == dtype else numbers.astype(jnp.float32).astype(dtype)


def _by_key(scales: Any, head: int) -> Array:
    """The scales of a head as a row [1, c], from a ref [pages, k, b]."""
    return jnp.concatenate([scales[page, head : head + 1] for page in range(scales.shape[0])], axis=1)
