"""Keys and values of a step into their pages, in XLA alone, for any layout whose tokens are rows of a head."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.kernels.ragged import KVCache, Step

SMALLEST_SCALED = 1e-30  # a head of smaller numbers is zeros in an int8 cache
LARGEST = {np.dtype(np.float16): 65504.0, np.dtype(jnp.float8_e4m3fn): 448.0}


def write(cache: KVCache, layer: Array | int, k: Array, v: Array | None, step: Step) -> KVCache:
    """Store k, v: [t, k, h] at their tokens' places. Padding is dropped: no page is touched for it.

    The layout is by_token or by_row. `v` is None for a cache without values.
    """
    size, count = cache.page_size, cache.k.shape[1]
    row = jnp.minimum(step.rows, step.lengths.shape[0] - 1)
    page = jnp.where(step.rows < step.lengths.shape[0], step.pages[row, step.positions // size], count)
    offset = step.positions % size

    def put(pages: Array, values: Array) -> Array:
        if cache.layout == "by_row":
            # With the heads left out XLA would turn the cache around, to have the axes that it scatters along first.
            place = (layer, page[:, None], jnp.arange(values.shape[1]), offset[:, None])
            return pages.at[place].set(values, mode="drop")
        return pages.at[layer, page, offset].set(values, mode="drop")

    def stored(pages: Array, scales: Array | None, x: Array) -> tuple[Array, Array | None]:
        if scales is None:
            return put(pages, within(x, pages.dtype).astype(pages.dtype)), None
        numbers, scale = quantize(x)
        return put(pages, numbers), put(scales, scale)

    new_k, k_scale = stored(cache.k, cache.k_scale, k)
    if cache.v is None or v is None:
        return replace(cache, k=new_k, k_scale=k_scale)
    new_v, v_scale = stored(cache.v, cache.v_scale, v)
    return replace(cache, k=new_k, v=new_v, k_scale=k_scale, v_scale=v_scale)


def quantize(x: Array) -> tuple[Array, Array]:
    """`x` [t, k, h] as int8 with a float32 scale [t, k] each: q * scale is near x.

    A head whose numbers are all below SMALLEST_SCALED is zeros; the scale of one that is not finite is NaN. Bit for bit
    what the native kernels do, given the same x.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1)
    there = largest > SMALLEST_SCALED
    inverse = jnp.where(there, 127.0 / largest, 0.0)
    scale = jnp.where(there, largest * np.float32(1 / 127), 0.0)
    values = jnp.round(x * inverse[..., None]).astype(jnp.int8)
    return values, jnp.where(jnp.isfinite(largest), scale, jnp.nan)


def within(x: Array, dtype: jnp.dtype) -> Array:
    """What is beyond the largest number of a narrow type becomes that, not infinity or NaN."""
    if dtype not in LARGEST:
        return x
    return jnp.clip(x.astype(jnp.float32), -LARGEST[dtype], LARGEST[dtype])
