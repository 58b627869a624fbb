"""Ragged paged attention: prefill chunks and decoding rows of one step, each over its own pages.

The reference implementation is XLA alone. Its work follows the real tokens: queries are cut into blocks of one row
each, a loop with a trip count known only at run time walks the blocks that exist, and a second one inside it the
context that those blocks can see. So one compiled shape serves every context length.

Sources: paged attention is Kwon et al. 2023 (arXiv:2309.06180); the running softmax is Milakov and Gimelshein 2018
(arXiv:1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from slipstream.kernels.attention_on_mesh import on_mesh
from slipstream.kernels.cache_write import write
from slipstream.kernels.native.attention import attend_native
from slipstream.kernels.norm import Norm
from slipstream.kernels.query_blocks import QueryBlocks, chunk_blocks, decode_blocks
from slipstream.kernels.ragged import Kernels, KVCache, Step
from slipstream.kernels.rotary import Angles, rotate

CHUNK_BLOCK = 32  # queries of one prefill block: enough to fill a product, few enough to waste little on a short tail
BLOCKS_AT_ONCE = 8  # prefill blocks that share one iteration
CONTEXT_BLOCK = 256  # cached tokens read by one iteration of the inner loop
MASKED = -1e30  # below every real score, yet finite: a fully masked row must not make NaNs


def attend(
    cache: KVCache,
    layer: Array | int,
    q: Array,
    k: Array,
    v: Array | int,
    step: Step,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    angles: Angles | None = None,
    qk_norm: tuple[Norm, Norm] | None = None,
    sinks: Array | None = None,
) -> tuple[Array, KVCache]:
    """Write this step's keys and values into their pages, then attend, by the implementation that `step` names.

    q: [t, n, h]; k, v: [t, k, h]; `layer` indexes the cache's layers. `v` may be a number instead: a value is that many
    first elements of its key, in a cache without values; `LATENT` has the implementations. Each head of q and of k is
    normed by its norm of `qk_norm`, if any, then rotated by `angles`, if any: so the cache holds its keys. `window` w:
    a query at position i sees positions i - w + 1 to i. `soft_cap` c: scores become c * tanh(scores / c). `sinks` [n]:
    a score of each head beside those of its keys, which takes its part of the softmax and adds nothing (Xiao et al.
    2023, arXiv:2309.17453). Returns ([t, n, h] in q's dtype, the cache); rows of padding are zero. Softmax and sums
    are float32.
    """
    run = LATENT[step.kernels] if isinstance(v, int) else IMPLEMENTATIONS[step.kernels]
    if cache.heads is not None:
        run = partial(on_mesh, run, cache.heads)
    return run(cache, layer, q, k, v, step, scale, window, soft_cap, angles, qk_norm, sinks)


def attend_reference(
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
) -> tuple[Array, KVCache]:
    """`attend` in XLA alone, on any device. The cache must be laid out by token."""
    if qk_norm is not None:
        q, k = (norm(x) for norm, x in zip(qk_norm, (q, k), strict=True))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    cache = write(cache, layer, k, None if isinstance(v, int) else v, step)
    tokens, rows = q.shape[0], step.lengths.shape[0]
    out = jnp.zeros((*q.shape[:2], v if isinstance(v, int) else v.shape[-1]), jnp.float32)
    passes = [(decode_blocks(step, tokens), rows)]
    if not step.decode_only:
        passes.append((chunk_blocks(step, tokens, CHUNK_BLOCK, BLOCKS_AT_ONCE), BLOCKS_AT_ONCE))
    for blocks, group in passes:
        out = _attend_blocks(out, q, cache, layer, step, blocks, group, scale, window, soft_cap, sinks)
    return out.astype(q.dtype), cache


def _attend_blocks(
    out: Array,
    q: Array,
    cache: KVCache,
    layer: Array | int,
    step: Step,
    blocks: QueryBlocks,
    group: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    sinks: Array | None,
) -> Array:
    """Attend with `group` blocks at a time and scatter the results into `out` [t, n, h]."""
    tokens, heads, size = q.shape
    value_size = out.shape[-1]
    kv_heads, page_size = cache.k.shape[3], cache.page_size
    pages_at_once = max(1, CONTEXT_BLOCK // page_size)
    context = pages_at_once * page_size
    pages = jnp.pad(step.pages, ((0, 0), (0, -step.pages.shape[1] % pages_at_once)))

    def one_group(i: Array, out: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(blocks.rows, i * group, group)
        token = lax.dynamic_slice_in_dim(blocks.tokens, i * group, group)
        real = token < tokens
        at = jnp.minimum(token, tokens - 1)
        position = jnp.where(real, step.positions[at], -1)  # -1 sees nothing
        query = q[at].reshape(*token.shape, kv_heads, heads // kv_heads, size).astype(jnp.float32) * scale
        last = jnp.max(position)
        begin = jnp.int32(0)
        if window is not None:
            begin = jnp.maximum(jnp.min(jnp.where(real, position, last)) - window + 1, 0) // context

        def one_context(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            best, total, acc = carry
            page = lax.dynamic_slice_in_dim(pages[rows], j * pages_at_once, pages_at_once, axis=1)
            keys = _gathered(cache.k, cache.k_scale, layer, page).reshape(group, context, kv_heads, size)
            if cache.v is None:
                values = keys[..., :value_size]
            else:
                values = _gathered(cache.v, cache.v_scale, layer, page).reshape(group, context, kv_heads, value_size)
            scores = jnp.einsum("jrkgh,jckh->jkgrc", query, keys, precision=lax.Precision.HIGHEST)
            if soft_cap is not None:
                scores = soft_cap * jnp.tanh(scores / soft_cap)
            key_position = j * context + jnp.arange(context, dtype=jnp.int32)
            seen = key_position <= position[..., None]
            if window is not None:
                seen &= key_position > position[..., None] - window
            seen = seen[:, None, None]
            scores = jnp.where(seen, scores, MASKED)
            new_best = jnp.maximum(best, jnp.max(scores, axis=-1))
            keep = jnp.exp(best - new_best)
            weights = jnp.where(seen, jnp.exp(scores - new_best[..., None]), 0.0)
            total = total * keep + jnp.sum(weights, axis=-1)
            # Pages that this row does not own may hold anything, NaN too: 0 * NaN must not reach the sum.
            values = jnp.where((key_position < step.lengths[rows][:, None])[..., None, None], values, 0.0)
            mixed = _mix(weights, values)
            return new_best, total, acc * keep[..., None] + mixed

        shape = (group, kv_heads, heads // kv_heads, token.shape[1])
        start = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, value_size)))
        best, total, acc = lax.fori_loop(begin, last // context + 1, one_context, start)
        if sinks is not None:
            sink = sinks.astype(jnp.float32).reshape(kv_heads, -1, 1)
            top = jnp.maximum(best, sink)
            keep = jnp.exp(best - top)
            total, acc = total * keep + jnp.exp(sink - top), acc * keep[..., None]
        result = acc / jnp.maximum(total, 1e-30)[..., None]
        result = jnp.moveaxis(result, 3, 1).reshape(*token.shape, heads, value_size)
        return out.at[token].set(result, mode="drop")

    groups = -(-blocks.real // group)
    return lax.fori_loop(0, groups, one_group, out)


def _gathered(pages: Array, scales: Array | None, layer: Array | int, page: Array) -> Array:
    """Keys or values of pages of one layer, in float32."""
    held = pages[layer, page].astype(jnp.float32)
    return held if scales is None else held * scales[layer, page][..., None]


def _mix(weights: Array, values: Array) -> Array:
    """Sums of `values` [j, c, k, h] by `weights` [j, k, g, r, c], which are 0 where a query does not see the value.

    A value that is not finite makes NaN of the sums of those queries that see it, and of no others.
    """
    mix = partial(jnp.einsum, "jkgrc,jckh->jkgrh", precision=lax.Precision.HIGHEST)
    finite = jnp.isfinite(values)

    def apart(weights: Array, values: Array) -> Array:
        tainted = mix((weights != 0).astype(jnp.float32), (~finite).astype(jnp.float32)) > 0
        return jnp.where(tainted, jnp.nan, mix(weights, jnp.where(finite, values, 0.0)))

    return lax.cond(jnp.all(finite), mix, apart, weights, values)


def _pallas_tpu(cache: KVCache, layer: Array | int, q: Array, k: Array, v: Array | int, step: Step, *rest: Any) -> Any:
    from slipstream.kernels.pallas.tpu import attend_tpu  # Pallas takes long to import, and most never need it.

    return attend_tpu(cache, layer, q, k, v, step, *rest, interpret=step.interpreted)


def _pallas_gpu(cache: KVCache, layer: Array | int, q: Array, k: Array, v: Array | int, step: Step, *rest: Any) -> Any:
    from slipstream.kernels.pallas.gpu import attend_gpu

    return attend_gpu(cache, layer, q, k, v, step, *rest, interpret=step.interpreted)


def _cudnn(cache: KVCache, layer: Array | int, q: Array, k: Array, v: Array | int, step: Step, *rest: Any) -> Any:
    from slipstream.kernels.cudnn import attend_cudnn

    return attend_cudnn(cache, layer, q, k, v, step, *rest, interpret=step.interpreted)


Implementation = Callable[..., tuple[Array, KVCache]]
IMPLEMENTATIONS: dict[Kernels, Implementation] = {
    "reference": attend_reference,
    "cpu": attend_native,
    "pallas_tpu": _pallas_tpu,
    "pallas_gpu": _pallas_gpu,
    "cudnn": _cudnn,
}
LATENT: dict[Kernels, Implementation] = {**dict.fromkeys(IMPLEMENTATIONS, attend_reference), "pallas_tpu": _pallas_tpu}
"""Where keys hold their values. Most kernels do not know that: such attention is XLA's, whatever multiplies."""
