"""Keys and values of a step into their pages on a TPU, where they lie.

XLA's scatter turns the whole cache into another layout and back. This reads and writes the tiles that hold the step's
tokens, and nothing else: a tile is TILE tokens of all heads, the least that a TPU copies. Pallas fetches the next tile
while one is filled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from slipstream.kernels.ragged import KVCache, Step

TILE = 16  # rows of a tile of bfloat16; two tiles of float32


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
    cache: KVCache, layer: Array, k: Array, v: Array, step: Step, *, interpret: Any = False
) -> tuple[Array, Array]:
    """Store k, v: [t, k, h] at their tokens' places; the new arrays of the cache. `layer` is i32[1]."""
    tokens = k.shape[0]
    _, _, kv_heads, page_size, size = cache.k.shape
    tile = page_size if page_size % TILE else TILE
    tiles = tiles_of(step, tokens, page_size, tile)
    count = tiles.pages.shape[0]
    held = tiles.tokens < tokens
    first = jnp.argmax(held, axis=1).astype(jnp.int32)
    end = first + jnp.sum(held, axis=1, dtype=jnp.int32)

    def arranged(x: Array) -> Array:
        return x.astype(cache.k.dtype)[jnp.minimum(tiles.tokens, tokens - 1)].swapaxes(1, 2)

    new = pl.BlockSpec((1, kv_heads, tile, size), lambda i, *_: (i, 0, 0, 0))
    place = pl.BlockSpec(
        (1, 1, kv_heads, tile, size), lambda i, layer, pages, places, *_: (layer[0], pages[i], 0, places[i], 0)
    )
    scalars = (layer, tiles.pages, tiles.places, tiles.real, first, end)
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars), grid=(count,), in_specs=[new, new, place, place], out_specs=[place, place]
        ),
        out_shape=[jax.ShapeDtypeStruct(cache.k.shape, cache.k.dtype)] * 2,
        input_output_aliases={len(scalars) + 2: 0, len(scalars) + 3: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="slipstream_cache_write",
    )
    new_k, new_v = call(*scalars, arranged(k), arranged(v), cache.k, cache.v)
    return new_k, new_v


def _kernel(
    layer: Any,
    pages: Any,
    places: Any,
    real: Any,
    first: Any,
    end: Any,
    new_k: Any,
    new_v: Any,
    old_k: Any,
    old_v: Any,
    k: Any,
    v: Any,
) -> None:
    """One tile. A grid step past the real ones has the tile of the one before it, which it leaves alone."""
    i = pl.program_id(0)

    @pl.when((i == 0) | (i < real[0]))
    def _() -> None:
        at = lax.broadcasted_iota(jnp.int32, new_k.shape[2:], 0)
        own = (at >= first[i]) & (at < end[i])
        for new, old, out in ((new_k, old_k, k), (new_v, old_v, v)):
            for head in range(new.shape[1]):
                # v5e selects 32-bit numbers only.
                wide = jnp.where(own, new[0, head].astype(jnp.float32), old[0, 0, head].astype(jnp.float32))
                out[0, 0, head] = wide.astype(out.dtype)
