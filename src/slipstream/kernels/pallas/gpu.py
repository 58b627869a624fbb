"""Ragged paged attention on a GPU, compiled by Triton: a program is a block of queries of one row, for one KV head.

It walks the row's context CONTEXT_BLOCK keys at a time and reads each key from where its page lies. The running softmax
is Milakov and Gimelshein 2018 (arXiv:1805.02867).

Not covered: the context of one row is not split among programs, so a single long row does not fill a GPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from slipstream.kernels import cache_write
from slipstream.kernels.norm import Norm
from slipstream.kernels.pallas.plan import MASKED, BlockPlan, Problem, attend_blocks
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles

CHUNK_BLOCK = 16  # queries of one prefill block
CONTEXT_BLOCK = 64
LEAST_ROWS = 16  # of a product
WARPS, STAGES = 4, 2


def attend_gpu(
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
    *,
    interpret: bool = False,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` on a GPU. The cache must be laid out by_row, its heads' size a power of two.

    In a bfloat16 cache the shares of a query are rounded to bfloat16 before they meet the values. `interpret` runs the
    kernel on any device, for tests.
    """
    run = partial(_call, interpret=interpret)
    return attend_blocks(
        _write, run, CHUNK_BLOCK, lambda _: CONTEXT_BLOCK, cache, layer, q, k, v, step, scale, window, soft_cap, angles,
        qk_norm,
    )  # fmt: skip


def _write(cache: KVCache, layer: Array, k: Array, v: Array, step: Step) -> tuple[Array, Array]:
    """XLA's scatter, which a GPU does in place."""
    written = cache_write.write(cache, layer[0], k, v, step)
    assert written.v is not None, "values lie beside keys"
    return written.k, written.v


def _call(
    cache: KVCache, layer: Array, q: Array, plan: BlockPlan, pages: Array, problem: Problem, *, interpret: bool
) -> Array:
    blocks, kv_heads, rows, size = q.shape
    padded = max(LEAST_ROWS, pl.next_power_of_2(rows))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padded - rows), (0, 0)))
    own = pl.BlockSpec((None, None, padded, size), lambda i, head: (i, head, 0, 0))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    scalars = (layer, pages, *plan[:5])
    call = pl.pallas_call(
        partial(_kernel, problem=problem),
        grid=(blocks, kv_heads),
        in_specs=[*(whole for _ in scalars), own, whole, whole],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="slipstream_ragged_attention",
    )
    return call(*scalars, q, cache.k, cache.v)[:, :, :rows]


def _kernel(
    layer: Any,
    pages: Any,
    rows: Any,
    firsts: Any,
    counts: Any,
    begins: Any,
    ends: Any,
    q: Any,
    k_pages: Any,
    v_pages: Any,
    out: Any,
    *,
    problem: Problem,
) -> None:
    """One block of queries for one head. Refs: as `Attend`'s arguments, q and out [r * g, h]."""
    block, head = pl.program_id(0), pl.program_id(1)
    first, table = firsts[block], rows[block] * problem.width
    last = first + counts[block] - 1
    query = q[...].astype(k_pages.dtype)
    count, size = query.shape
    at = first + lax.broadcasted_iota(jnp.int32, (count, CONTEXT_BLOCK), 0) // problem.group
    exact = lax.Precision.HIGHEST if k_pages.dtype == jnp.float32 else None
    product = partial(plgpu.dot, precision=exact)

    def one_context(context: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best, total, acc = carry
        key = context * CONTEXT_BLOCK + jnp.arange(CONTEXT_BLOCK)
        held = jnp.minimum(key, last)  # what is read always belongs to the row
        page = pages[table + held // problem.page_size]
        place = held % problem.page_size
        keys, values = (source[layer[0], page, head, place, :] for source in (k_pages, v_pages))
        scores = product(query, keys.T) * problem.scale
        if problem.soft_cap is not None:
            scores = problem.soft_cap * jnp.tanh(scores / problem.soft_cap)
        seen = key[None] <= at
        if problem.window is not None:
            seen &= key[None] > at - problem.window
        scores = jnp.where(seen, scores, MASKED)
        after = jnp.maximum(best, jnp.max(scores, axis=1))
        keep = jnp.exp(best - after)
        shares = jnp.where(seen, jnp.exp(scores - after[:, None]), 0.0)
        mixed = product(shares.astype(values.dtype), values)
        return after, total * keep + jnp.sum(shares, axis=1), acc * keep[:, None] + mixed

    start = (jnp.full((count,), MASKED, jnp.float32), jnp.zeros((count,), jnp.float32), jnp.zeros((count, size)))
    _, total, acc = lax.fori_loop(begins[block], ends[block], one_context, start)
    out[...] = (acc / jnp.maximum(total, 1e-30)[:, None]).astype(out.dtype)
