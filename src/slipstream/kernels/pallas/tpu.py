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
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from slipstream.errors import ConfigError
from slipstream.kernels.norm import Norm
from slipstream.kernels.pallas.plan import MASKED, BlockPlan, Problem, attend_blocks
from slipstream.kernels.pallas.tpu_write import write_tpu
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles

CHUNK_BLOCK = 64  # queries of one prefill block
CONTEXT_BLOCKS = (128, 512)  # keys of one context block, at least and at most (a page may be larger)
BUFFER_BYTES = 2**23  # of VMEM for the buffers of keys and values
VMEM_LIMIT = 2**25
LANES = 128


def attend_tpu(
    cache: KVCache,
    layer: Array | int,
    q: Array,
    k: Array,
    v: Array,
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
    """`kernels.attention.attend` on a TPU. The cache must be laid out by_row; of floats of 16 bits or more.

    In a bfloat16 cache the shares of a query are rounded to bfloat16 before they meet the values. `interpret` runs the
    kernel on any device, for tests (True, or `pltpu.InterpretParams`).
    """
    if cache.k_scale is not None or cache.k.dtype.itemsize == 1 or sinks is not None:
        raise ConfigError(
            "the attention kernel for TPUs reads caches of float32 and bfloat16, without sinks (gpt_oss has them): "
            "choose another --kv-dtype, or the reference kernels"
        )
    run = partial(_call, interpret=interpret)
    return attend_blocks(
        partial(_write, interpret=interpret), run, CHUNK_BLOCK, context_block, cache, layer, q, k, v, step, scale,
        window, soft_cap, angles, qk_norm, sinks,
    )  # fmt: skip


def _write(cache: KVCache, layer: Array, k: Array, v: Array, step: Step, *, interpret: Any) -> KVCache:
    new_k, new_v = write_tpu(cache, layer, k, v, step, interpret=interpret)
    return replace(cache, k=new_k, v=new_v)


def context_block(cache: KVCache) -> int:
    """Keys of a context block: whole pages, as many as the buffers hold."""
    kv_heads, page, size = cache.k.shape[2:]
    least, most = CONTEXT_BLOCKS
    each = 4 * kv_heads * -(-size // LANES) * LANES * cache.k.dtype.itemsize  # two buffers of keys, two of values
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
    own = pl.BlockSpec((1, kv_heads, rows, size), lambda i, *_: (i, 0, 0, 0))
    stays = pl.BlockSpec(memory_space=pl.ANY)
    buffer = pltpu.VMEM((2, kv_heads, problem.context, size), cache.k.dtype)
    numbers = pltpu.VMEM((kv_heads, rows, LANES), jnp.float32)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2 + len(plan),
        grid=(blocks,),
        in_specs=[own, stays, stays],
        out_specs=own,
        scratch_shapes=[
            buffer,
            buffer,
            pltpu.SemaphoreType.DMA((2, 2)),
            pltpu.SMEM((1,), jnp.int32),
            numbers,
            numbers,
            pltpu.VMEM((kv_heads, rows, size), jnp.float32),
        ],
    )
    call = pl.pallas_call(
        partial(_kernel, problem=problem),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_LIMIT),
        interpret=interpret,
        name="slipstream_ragged_attention",
    )
    mixed: Array = call(layer, pages, *plan, q, cache.k, cache.v)
    return mixed


def _kernel(
    layer: Any,
    pages: Any,
    rows: Any,
    firsts: Any,
    counts: Any,
    begins: Any,
    ends: Any,
    follows: Any,
    q: Any,
    k_pages: Any,
    v_pages: Any,
    out: Any,
    k_buffer: Any,
    v_buffer: Any,
    semaphores: Any,
    turn: Any,
    best: Any,
    total: Any,
    acc: Any,
    *,
    problem: Problem,
) -> None:
    """One block of queries. Refs: those of `BlockPlan` in SMEM, q and out [1, k, r * g, h], pages as in the cache.

    `turn` i32[1]: which buffer holds the first context block of the next block of queries.
    """
    block, blocks = pl.program_id(0), pl.num_programs(0)
    page_size, per_context = problem.page_size, problem.context // problem.page_size

    def copies(block: Array, context: Array, slot: Array, act: Callable[[Any], None]) -> None:
        """Start the copies of a context block, or wait for them."""
        held = pl.cdiv(firsts[block] + counts[block], page_size)
        first = context * per_context
        row = rows[block] * problem.width + first

        def one(n: Array, nothing: None) -> None:
            page = pages[row + n]
            at = pl.ds(pl.multiple_of(n * page_size, page_size), page_size)
            for which, (source, target) in enumerate(((k_pages, k_buffer), (v_pages, v_buffer))):
                act(
                    pltpu.make_async_copy(source.at[layer[0], page], target.at[slot, :, at], semaphores.at[slot, which])
                )

        lax.fori_loop(0, jnp.minimum(per_context, held - first), one, None)

    start, wait = (lambda copy: copy.start()), (lambda copy: copy.wait())

    @pl.when(block == 0)
    def _() -> None:
        turn[0] = 0
        first = jnp.where(counts[0] > 0, 0, follows[0])

        @pl.when(first < blocks)
        def _() -> None:
            copies(first, begins[first], jnp.int32(0), start)

    @pl.when(counts[block] == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    @pl.when(counts[block] > 0)
    def _() -> None:
        best[...] = jnp.full_like(best, MASKED)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

        def one_context(context: Array, slot: Array) -> Array:
            last = context + 1 == ends[block]
            then = jnp.where(last, follows[block], block)

            @pl.when(then < blocks)
            def _() -> None:
                copies(then, jnp.where(last, begins[jnp.minimum(then, blocks - 1)], context + 1), 1 - slot, start)

            copies(block, context, slot, wait)

            @pl.when(last)
            def _() -> None:
                _clear(v_buffer.at[slot], firsts[block] + counts[block] - context * problem.context)

            _mix(q, k_buffer.at[slot], v_buffer.at[slot], best, total, acc, firsts[block], context, problem)
            return 1 - slot

        turn[0] = lax.fori_loop(begins[block], ends[block], one_context, turn[0])
        for head in range(q.shape[1]):
            share = 1 / jnp.maximum(total[head][:, :1], 1e-30)
            out[0, head] = (acc[head] * share).astype(out.dtype)


def _clear(values: Any, count: Array) -> None:
    """Make values [k, c, h] from `count` on zeros: what lies there may be NaN, and 0 * NaN must not reach the sum."""
    for head in range(values.shape[0]):
        held = values[head].astype(jnp.float32)
        at = lax.broadcasted_iota(jnp.int32, held.shape, 0)
        values[head] = jnp.where(at < count, held, 0.0).astype(values.dtype)


def _mix(
    q: Any, keys: Any, values: Any, best: Any, total: Any, acc: Any, first: Array, context: Array, problem: Problem
) -> None:
    """One context block into the running softmax of all heads."""
    _, kv_heads, rows, _ = q.shape
    shape = (rows, problem.context)
    at = first + lax.broadcasted_iota(jnp.int32, shape, 0) // problem.group
    key = context * problem.context + lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = key <= at
    if problem.window is not None:
        seen &= key > at - problem.window
    exact = lax.Precision.HIGHEST if keys.dtype == jnp.float32 else lax.Precision.DEFAULT
    product = partial(lax.dot_general, precision=exact, preferred_element_type=jnp.float32)
    for head in range(kv_heads):
        scores = product(q[0, head].astype(keys.dtype), keys[head], (((1,), (1,)), ((), ()))) * problem.scale
        if problem.soft_cap is not None:
            scores = problem.soft_cap * jnp.tanh(scores / problem.soft_cap)
        scores = jnp.where(seen, scores, MASKED)
        before = best[head]
        after = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        keep = jnp.exp(before - after)
        shares = jnp.where(seen, jnp.exp(scores - after[:, :1]), 0.0)
        best[head] = after
        total[head] = total[head] * keep + jnp.sum(shares, axis=1, keepdims=True)
        mixed = product(shares.astype(values.dtype), values[head], (((1,), (0,)), ((), ())))
        acc[head] = acc[head] * keep[:, :1] + mixed
