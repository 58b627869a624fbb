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

from slipstream.errors import ConfigError
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
    v: Array | int,
    step: Step,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    angles: Angles | None,
    qk_norm: tuple[Norm, Norm] | None,
    sinks: Array | None = None,
    *,
    apart: Array | None = None,
    interpret: bool = False,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` on a GPU. The cache must be laid out by_row, its heads' size a power of two.

    A cache's numbers of 16 or 32 bits are multiplied in that type, with queries and their shares rounded to it; those
    of 8 bits are widened to the type of the queries. `interpret` runs the kernel on any device, for tests.
    `apart` bool[s]: rows whose keys are written and whose results are left as zeros.
    """
    assert not isinstance(v, int), "values lie beside keys"
    run = partial(_call, interpret=interpret)
    return attend_blocks(
        _write, run, CHUNK_BLOCK, lambda _: CONTEXT_BLOCK, cache, layer, q, k, v, step, scale, window, soft_cap, angles,
        qk_norm, sinks, apart,
    )  # fmt: skip


def _write(cache: KVCache, layer: Array, k: Array, v: Array | None, step: Step) -> KVCache:
    """XLA's scatter, which a GPU does in place."""
    return cache_write.write(cache, layer[0], k, v, step)


def _call(
    cache: KVCache,
    layer: Array,
    q: Array,
    plan: BlockPlan,
    pages: Array,
    problem: Problem,
    sinks: Array | None,
    *,
    interpret: bool,
) -> Array:
    if cache.k.dtype.itemsize == 1 and 2**31 < cache.k.size <= 2**32:
        # Pallas counts places in 32 bits, with a sign, unless an array has more than 4 GiB.
        raise ConfigError(
            f"keys of 8 bits that take {cache.k.size / 2**30:.1f} GiB on a device cannot be read by Pallas on a GPU; "
            "up to 2 GiB and over 4 GiB can: set --kv-bytes to 4 GiB or less, or to more than 8 GiB"
        )
    blocks, kv_heads, rows, size = q.shape
    padded = max(LEAST_ROWS, pl.next_power_of_2(rows))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padded - rows), (0, 0)))
    own = pl.BlockSpec((None, None, padded, size), lambda i, head: (i, head, 0, 0))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    scalars = (layer, pages, *plan[:5])
    started = () if sinks is None else (jnp.pad(sinks, ((0, 0), (0, padded - rows))),)
    of_head = pl.BlockSpec((None, padded), lambda i, head: (head, 0))
    scales = () if cache.k_scale is None else (cache.k_scale, cache.v_scale)
    call = pl.pallas_call(
        partial(_kernel, problem=problem),
        grid=(blocks, kv_heads),
        in_specs=[
            tuple(whole for _ in scalars), own, tuple(of_head for _ in started), (whole, whole),
            tuple(whole for _ in scales),
        ],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="slipstream_ragged_attention",
    )  # fmt: skip
    return call(scalars, q, started, (cache.k, cache.v), scales)[:, :, :rows]


def _kernel(
    scalars: tuple[Any, ...],
    q: Any,
    sinks: tuple[Any, ...],
    held: tuple[Any, Any],
    scales: tuple[Any, ...],
    out: Any,
    *,
    problem: Problem,
) -> None:
    """One block of queries for one head.

    Refs: `scalars` and `held` as `Attend`'s arguments; q and out [r * g, h]; of `sinks` and `scales` (as in the cache)
    either all or none.
    """
    layer, pages, rows, firsts, counts, begins, ends = scalars
    block, head = pl.program_id(0), pl.program_id(1)
    first, table = firsts[block], rows[block] * problem.width
    last = first + counts[block] - 1
    dtype = held[0].dtype if held[0].dtype.itemsize > 1 else q.dtype
    query = q[...].astype(dtype)
    count, size = query.shape
    at = first + lax.broadcasted_iota(jnp.int32, (count, CONTEXT_BLOCK), 0) // problem.group
    product = partial(plgpu.dot, precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None)

    def one_context(context: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best, total, acc = carry
        key = context * CONTEXT_BLOCK + jnp.arange(CONTEXT_BLOCK)
        read = jnp.minimum(key, last)  # what is read always belongs to the row
        page = pages[table + read // problem.page_size]
        place = read % problem.page_size
        keys, values = (source[layer[0], page, head, place, :].astype(dtype) for source in held)
        scores = product(query, keys.T) * problem.scale
        by_key = [scale[layer[0], page, head, place][None] for scale in scales]
        if by_key:
            scores *= by_key[0]
        if problem.soft_cap is not None:
            scores = problem.soft_cap * jnp.tanh(scores / problem.soft_cap)
        seen = key[None] <= at
        if problem.window is not None:
            seen &= key[None] > at - problem.window
        scores = jnp.where(seen, scores, MASKED)
        after = jnp.maximum(best, jnp.max(scores, axis=1))
        keep = jnp.exp(best - after)
        shares = jnp.where(seen, jnp.exp(scores - after[:, None]), 0.0)
        total = total * keep + jnp.sum(shares, axis=1)
        if by_key:
            shares *= by_key[1]
        mixed = product(shares.astype(dtype), values)
        return after, total, acc * keep[:, None] + mixed

    if sinks:  # The running softmax starts with them: as if each were a key seen before all others, with no value.
        best, total = sinks[0][...], jnp.ones((count,), jnp.float32)
    else:
        best, total = jnp.full((count,), MASKED, jnp.float32), jnp.zeros((count,), jnp.float32)
    start = (best, total, jnp.zeros((count, size), jnp.float32))
    _, total, acc = lax.fori_loop(begins[block], ends[block], one_context, start)
    out[...] = (acc / jnp.maximum(total, 1e-30)[:, None]).astype(out.dtype)
