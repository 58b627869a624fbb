"""Keys and values of a step into their pages on a TPU, where they lie.

XLA's scatter turns the whole cache into another layout and back. This reads and writes the tiles that hold the step's
tokens, and nothing else: a tile is as many tokens of all heads as a TPU copies at least. Pallas fetches the next tile
while one is filled. Scales go the same way, a page at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from slipstream.kernels.cache_write import quantize, within
from slipstream.kernels.ragged import KVCache, Step

TILES = {1: 32, 2: 16, 4: 16}
"""Tokens of a tile by bytes of a number: rows of a tile of that type, two tiles of float32."""


class Tiles(NamedTuple):
    """The m tiles that a step writes to, i32[m] each but the last.

    `pages`, `places`: which page and which tile of it; after the `real` i32[1] first ones the last of them again.
    `tokens` i32[m, r]: the packed token for each place of the tile (t: what is there stays).
    """

    pages: Array
    places: Array
    real: Array
    tokens: Array


def tiles_of(step: Step, tokens: int, page_size: int, tile: int) -> Tiles:
    """The tiles of a step of `tokens` packed tokens."""
    counts = step.starts[1:] - step.starts[:-1]
    begins = (step.lengths - counts) // tile
    of_row = jnp.where(counts > 0, (step.lengths - 1) // tile + 1 - begins, 0)
    ends = jnp.cumsum(of_row)
    most = min(tokens, tokens // tile + 2 * counts.shape[0])
    index = jnp.clip(jnp.arange(most, dtype=jnp.int32), 0, jnp.maximum(ends[-1] - 1, 0))
    row = jnp.minimum(
        jnp.searchsorted(ends, index, side="right", method="compare_all").astype(jnp.int32), counts.shape[0] - 1
    )
    number = begins[row] + index - (ends[row] - of_row[row])
    position = number[:, None] * tile + jnp.arange(tile, dtype=jnp.int32)
    token = step.starts[row][:, None] + position - (step.lengths - counts)[row][:, None]
    own = (token >= step.starts[row][:, None]) & (token < step.starts[row + 1][:, None])
    page = step.pages[row, number * tile // page_size]
    return Tiles(page, number % (page_size // tile), ends[-1:], jnp.where(own, token, tokens))


def write_tpu(
    cache: KVCache, layer: Array, k: Array, v: Array | None, step: Step, *, interpret: Any = False
) -> KVCache:
    """The cache with k, v: [t, k, h] at their tokens' places. `layer` is i32[1], `v` None where there are no values."""
    pages, page_size, given = cache.k, cache.page_size, [x for x in (k, v) if x is not None]
    least = TILES[pages.dtype.itemsize]
    tile = page_size if page_size % least else least
    if cache.k_scale is None:
        numbers = [within(x, pages.dtype).astype(pages.dtype) for x in given]
    else:
        pairs = [quantize(x) for x in given]
        numbers = [pair[0] for pair in pairs]
        held = [x for x in (cache.k_scale, cache.v_scale) if x is not None]
        scales = _put(held, [pair[1] for pair in pairs], layer, step, page_size, interpret)
        cache = replace(cache, k_scale=scales[0], v_scale=scales[1] if len(scales) > 1 else None)
    new = _put([x for x in (cache.k, cache.v) if x is not None], numbers, layer, step, tile, interpret)
    return replace(cache, k=new[0], v=new[1] if len(new) > 1 else None)


def _put(
    held: Sequence[Array], new: Sequence[Array], layer: Array, step: Step, tile: int, interpret: Any
) -> Sequence[Array]:
    """Arrays of a cache, [l, P, k, b, h] or scales [l, P, k, b], with `new` [t, k, h] or [t, k] in their places."""
    tokens, (kv_heads, page_size, *head) = new[0].shape[0], held[0].shape[2:]
    tiles = tiles_of(step, tokens, page_size, tile)
    filled = tiles.tokens < tokens
    first = jnp.argmax(filled, axis=1).astype(jnp.int32)
    end = first + jnp.sum(filled, axis=1, dtype=jnp.int32)
    arranged = [x[jnp.minimum(tiles.tokens, tokens - 1)].swapaxes(1, 2) for x in new]
    rest = (0,) * len(head)
    own = pl.BlockSpec((1, kv_heads, tile, *head), lambda i, *_: (i, 0, 0, *rest))
    place = pl.BlockSpec(
        (1, 1, kv_heads, tile, *head), lambda i, layer, pages, places, *_: (layer[0], pages[i], 0, places[i], *rest)
    )
    scalars, count = (layer, tiles.pages, tiles.places, tiles.real, first, end), len(held)
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(tiles.pages.shape[0],),
            in_specs=[(own,) * count, (place,) * count],
            out_specs=[place] * count,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in held],
        input_output_aliases={len(scalars) + count + i: i for i in range(count)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="slipstream_cache_write",
    )
    results: list[Array] = call(*scalars, tuple(arranged), tuple(held))
    return results


def _kernel(
    layer: Any, pages: Any, places: Any, real: Any, first: Any, end: Any, new: Any, old: Any, *out: Any
) -> None:
    """One tile. A grid step past the real ones has the tile of the one before it, which it leaves alone."""
    i = pl.program_id(0)

    @pl.when((i == 0) | (i < real[0]))
    def _() -> None:
        for given, before, after in zip(new, old, out, strict=True):
            if len(given.shape) == 3:  # scales, whose tokens lie along the rows
                after[0, 0] = _merged(given[0], before[0, 0], 1, first[i], end[i])
                continue
            for head in range(given.shape[1]):
                after[0, 0, head] = _merged(given[0, head], before[0, 0, head], 0, first[i], end[i])


def _merged(new: Array, old: Array, axis: int, first: Array, end: Array) -> Array:
    """`old` with what is `new` from `first` to before `end` along an axis. v5e selects 32-bit numbers only."""
    at = lax.broadcasted_iota(jnp.int32, new.shape, axis)
    wide = jnp.int32 if jnp.issubdtype(new.dtype, jnp.integer) else jnp.float32
    chosen = jnp.where((at >= first) & (at < end), new.astype(wide), old.astype(wide))
    return chosen.astype(new.dtype)
