"""Attention without a cache: each token sees all tokens of its own row, those before it and those after it.

The rows of a step lie packed one behind the other, so the keys that a block of queries sees are one stretch of the
packed tokens. A loop with a trip count known only at run time walks that stretch, with a running softmax (Milakov and
Gimelshein 2018, arXiv:1805.02867): the work follows the rows' own lengths, and one compiled shape serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from slipstream.kernels.ragged import Kernels, Step

MASKED = -1e30  # below every real score, yet finite: a block that a query sees nothing of must not make NaNs


def attend_all(q: Array, k: Array, v: Array, step: Step, *, scale: float) -> Array:
    """Attend by the implementation that `step` names; every row must be in the step as a whole.

    q, k, v: [t, n, h]. Returns [t, n, h] in q's dtype, zeros for padding.
    """
    return IMPLEMENTATIONS[step.kernels](q, k, v, step, scale)


def attend_blocks(q: Array, k: Array, v: Array, step: Step, scale: float, *, block: int) -> Array:
    """`attend_all` in XLA alone, on any device, with so many queries and keys in a product. Sums are float32."""
    tokens, heads, size = q.shape
    rows, count = step.rows, step.lengths.shape[0]
    block = min(block, tokens)
    pad = -tokens % block
    # Heads first: each product is then of whole matrices.
    q, k, v = (jnp.moveaxis(jnp.pad(x, ((0, pad), (0, 0), (0, 0))), 1, 0) for x in (q, k, v))
    rows = jnp.pad(rows, (0, pad), constant_values=count)
    product = partial(
        jnp.einsum,
        precision=lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )

    def cut(x: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, i * block, block, axis=x.ndim - 2 if x.ndim > 1 else 0)

    def queries(i: Array, out: Array) -> Array:
        query, row = cut(q, i), cut(rows, i)
        first, last = row[0], jnp.max(jnp.where(row < count, row, -1))
        begin, end = step.starts[first] // block, -(-step.starts[last + 1] // block)

        def keys(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            best, total, sums = carry
            seen = (row[:, None] == cut(rows, j)[None, :]) & (row < count)[:, None]
            scores = jnp.where(seen, product("nth,nch->ntc", query, cut(k, j)) * scale, MASKED)
            higher = jnp.maximum(best, jnp.max(scores, axis=-1))
            keep = jnp.exp(best - higher)
            weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
            mixed = product("ntc,nch->nth", weights.astype(v.dtype), cut(v, j))
            return higher, total * keep + jnp.sum(weights, axis=-1), sums * keep[..., None] + mixed

        shape = (heads, block)
        start = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, size)))
        _, total, sums = lax.fori_loop(begin, end, keys, start)
        result = sums / jnp.maximum(total, 1e-30)[..., None]
        return lax.dynamic_update_slice_in_dim(out, result, i * block, axis=1)

    out = lax.fori_loop(0, -(-step.real // block), queries, jnp.zeros(q.shape, jnp.float32))
    return jnp.moveaxis(out, 0, 1)[:tokens].astype(q.dtype)


_WIDE = partial(attend_blocks, block=128)

IMPLEMENTATIONS: dict[Kernels, Callable[[Array, Array, Array, Step, float], Array]] = {
    "reference": _WIDE,
    "cpu": partial(attend_blocks, block=64),  # of 32, 64 and 128 the fastest there, by a fifth
    "pallas_tpu": _WIDE,
    "pallas_gpu": _WIDE,
    "cudnn": _WIDE,
}
