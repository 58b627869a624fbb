"""Pages out of a KV cache and into one, in a form that says nothing of how the cache lies.

So the two caches may differ in their layout (`KVCache.layout`), in what a kernel pads a head to, and in the devices
that heads are spread over. They agree in page size, heads, layers and types, which `digest_of` sums up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding

from slipstream.engine.lowering import Lowered, Lowering
from slipstream.engine.memory import KVShape
from slipstream.engine.step_cache import CompiledStep, StepCache
from slipstream.kernels.ragged import KVCache, Layout
from slipstream.parallel.spread import spec_of

WIDTHS = (4, 32)
"""Pages that one call moves at most, of each compiled function. A call does the work of the pages that it is given."""

MOST_BYTES = 64 * 2**20
"""Bytes that one call moves at most, where more than one page does not fit."""

_ROWS = (0, 1, 3, 2, 4)  # [l, n, k, b, h] <-> [l, n, b, k, h]
_SCALES = (0, 1, 3, 2)
_SAME = (0, 1, 2, 3, 4)
_ORDERS: Mapping[tuple[Layout, str], tuple[int, ...]] = {
    ("by_token", "k"): _SAME,
    ("by_token", "v"): _SAME,
    ("by_token", "k_scale"): _SAME[:4],
    ("by_token", "v_scale"): _SAME[:4],
    ("by_row", "k"): _ROWS,
    ("by_row", "v"): _ROWS,
    ("by_row", "k_scale"): _SCALES,
    ("by_row", "v_scale"): _SCALES,
    ("by_head", "k"): (0, 1, 4, 2, 3),  # [l, n, k, h, b] -> [l, n, b, k, h]
    ("by_head", "v"): _ROWS,
    ("by_head", "k_scale"): _SCALES,
    ("by_head", "v_scale"): _SCALES,
}
"""The transposition of a leaf's pages, of each layout, into the form of `Blocks`."""

_STEPS = tuple(map(np.uint32, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)))
"""Large odd numbers (the primes of xxHash): what `_sum` multiplies an element's place along each axis with."""

Blocks = dict[str, Any]
"""The content of n pages, by leaf: `k` and `v` [l, n, b, k, h], `k_scale` and `v_scale` [l, n, b, k]: numpy or JAX."""


@dataclass(frozen=True)
class BlockShape:
    """What `Blocks` are of: `head_dim` is the model's own, however much of a row a kernel wants."""

    layers: int
    page_size: int
    kv_heads: int
    head_dim: int
    dtype: np.dtype
    values: bool

    @classmethod
    def of(cls, kv: KVShape, head_dim: int) -> BlockShape:
        """Of a cache's pages."""
        return cls(kv.layers, kv.page_size, kv.kv_heads, head_dim, np.dtype(kv.dtype), kv.values)

    def leaves(self, pages: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each leaf of so many pages, in the order in which they travel."""
        names = ("k", "v") if self.values else ("k",)
        tokens = (self.layers, pages, self.page_size, self.kv_heads)
        leaves: dict[str, tuple[tuple[int, ...], np.dtype]]
        leaves = dict.fromkeys(names, ((*tokens, self.head_dim), self.dtype))
        if self.dtype == np.int8:
            leaves |= {f"{name}_scale": (tokens, np.dtype(np.float32)) for name in names}
        return leaves

    def empty(self, pages: int) -> dict[str, np.ndarray]:
        """Room for so many pages."""
        return {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.leaves(pages).items()}

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page, of all heads."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.leaves(1).values())

    def digest(self) -> str:
        """A name for it: equal for caches whose pages fit each other."""
        return blake2b(repr(sorted(self.leaves(1).items())).encode(), digest_size=16).hexdigest()


class PageIO:
    """Compiled moves of pages for one engine's cache. `widths`: the pages that each compiled function has room for."""

    def __init__(self, lowering: Lowering, head_dim: int) -> None:
        """For the cache of `lowering`; `head_dim` is the model's."""
        self.shape = BlockShape.of(lowering.kv, head_dim)
        self._lowering = lowering
        fitting = [width for width in WIDTHS if width * self.shape.bytes_per_page <= MOST_BYTES]
        self.widths: tuple[int, ...] = tuple(fitting) or (1,)
        self._gathers: dict[int, CompiledStep] = {}
        self._scatters: dict[int, CompiledStep] = {}
        self._sums: dict[int, CompiledStep] = {}

    @property
    def most(self) -> int:
        """Pages that one call takes at most."""
        return self.widths[-1]

    @property
    def on_one_device(self) -> bool:
        """Whether there is no mesh."""
        return self._lowering.mesh is None

    @property
    def bytes_a_call(self) -> int:
        """Bytes on one device of what a call brings out or in, at most."""
        heads = self._lowering.kv.heads
        return self.most * self.shape.bytes_per_page // (1 if heads is None else heads.kv_ways)

    def width_for(self, count: int) -> int:
        """The room that `count` pages are given. Raises ValueError for more than `most`, or none."""
        if not 1 <= count <= self.most:
            raise ValueError(f"{count} pages are not 1 to {self.most}")
        return next(width for width in self.widths if width >= count)

    def compile(self, pages: int, steps: StepCache) -> None:
        """Compile everything, for a cache of so many pages."""
        for width in self.widths:
            for made, lowered in (
                (self._gathers, self.lowered_gather(pages, width)),
                (self._scatters, self.lowered_scatter(pages, width)),
                (self._sums, self.lowered_sums(width)),
            ):
                made[width] = steps.get(lowered.kind, lowered.function, lowered.arguments, **lowered.facts)

    def gather(self, cache: KVCache, pages: Sequence[int]) -> Blocks:
        """Start to copy pages out of a cache, at most `most`; the rest of the result's room is zeros.

        The cache may be given to a step at once: the device runs them in order.
        """
        width = self.width_for(len(pages))
        blocks: Blocks = self._gathers[width].call(cache, _padded(pages, width), np.int32(len(pages)))
        return blocks

    def scatter(self, cache: KVCache, pages: Sequence[int], blocks: Blocks) -> KVCache:
        """Write blocks, with room for `width_for(len(pages))` pages, over pages; gives up the cache for its successor.

        Do not write into the blocks afterwards: the device may still read them.
        """
        width = self.width_for(len(pages))
        written: KVCache = self._scatters[width].call(cache, _padded(pages, width), np.int32(len(pages)), blocks)
        return written

    def place(self, blocks: Mapping[str, np.ndarray]) -> Blocks:
        """Blocks on the devices as `scatter` takes them. May be called in any thread."""
        if self._lowering.mesh is None:
            return dict(blocks)  # on one device `scatter` places them
        return {name: jax.device_put(array, self._sharding(array.ndim)) for name, array in blocks.items()}

    def sums(self, blocks: Blocks) -> dict[str, Any]:
        """A 32-bit number for each leaf of placed blocks, with all their room: equal for equal content, wherever it is.

        One changed element always changes it. It is no proof against who means to deceive.
        """
        numbers: dict[str, Any] = self._sums[next(iter(blocks.values())).shape[1]].call(blocks)
        return numbers

    def lowered_sums(self, width: int) -> Lowered:
        """The function behind `sums`."""

        def sums(blocks: Blocks) -> dict[str, Array]:
            return {name: _sum(array) for name, array in blocks.items()}

        def function() -> Any:
            return jax.jit(sums)

        return self._lowered("sum pages", function, (self._blocks(width),), width)

    def lowered_gather(self, pages: int, width: int) -> Lowered:
        """The function behind `gather`."""
        kept = self.shape.head_dim

        def gather(cache: KVCache, index: Array, count: Array) -> Blocks:
            out = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in self.shape.leaves(width).items()}

            def one(i: Array, out: Blocks) -> Blocks:
                for name, array in _leaves(cache).items():
                    page = lax.dynamic_slice_in_dim(array, index[i], 1, axis=1)
                    page = page.transpose(_ORDERS[cache.layout, name])
                    page = page[..., :kept] if page.ndim == len(_SAME) else page
                    out = {**out, name: lax.dynamic_update_slice_in_dim(out[name], page, i, axis=1)}
                return out

            return lax.fori_loop(0, count, one, out)

        def function() -> Any:
            return jax.jit(gather, **self._out({name: self._sharding(n) for name, n in self._ranks().items()}))

        return self._lowered("gather pages", function, (self._cache(pages), *self._numbers(width)), width)

    def lowered_scatter(self, pages: int, width: int) -> Lowered:
        """The function behind `scatter`."""
        row, kept = self._lowering.kv.head_dim, self.shape.head_dim

        def scatter(cache: KVCache, index: Array, count: Array, blocks: Blocks) -> KVCache:
            def one(i: Array, leaves: dict[str, Array]) -> dict[str, Array]:
                for name, array in leaves.items():
                    order = _ORDERS[cache.layout, name]
                    page = lax.dynamic_slice_in_dim(blocks[name], i, 1, axis=1)
                    if page.ndim == len(_SAME):
                        page = jnp.pad(page, [(0, 0)] * 4 + [(0, row - kept)])
                    page = page.transpose(tuple(map(int, np.argsort(order))))
                    leaves = {**leaves, name: lax.dynamic_update_slice_in_dim(array, page, index[i], axis=1)}
                return leaves

            return replace(cache, **lax.fori_loop(0, count, one, _leaves(cache)))

        def function() -> Any:
            cache = self._cache(pages)
            return jax.jit(scatter, donate_argnums=0, **self._out(jax.tree.map(lambda leaf: leaf.sharding, cache)))

        arguments = (self._cache(pages), *self._numbers(width), self._blocks(width))
        return self._lowered("scatter pages", function, arguments, width)

    def _blocks(self, width: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding(len(shape)))
            for name, (shape, dtype) in self.shape.leaves(width).items()
        }

    def _cache(self, pages: int) -> Any:
        return self._lowering.state(pages).cache

    def _numbers(self, width: int) -> tuple[Any, Any]:
        index, count = self._lowering.everywhere((np.zeros(width, np.int32), np.int32(0)))
        return index, count

    def _ranks(self) -> dict[str, int]:
        return {name: len(shape) for name, (shape, _) in self.shape.leaves(1).items()}

    def _sharding(self, rank: int) -> NamedSharding | None:
        """Where blocks lie: heads as in the cache. None without a mesh."""
        mesh, heads = self._lowering.mesh, self._lowering.kv.heads
        if mesh is None or heads is None:
            return None
        return NamedSharding(mesh, spec_of(*(heads.kv if axis == 3 else () for axis in range(rank))))

    def _out(self, shardings: Any) -> dict[str, Any]:
        return {} if self._lowering.mesh is None else {"out_shardings": shardings}

    def _lowered(self, kind: str, function: Callable[[], Any], arguments: tuple[Any, ...], width: int) -> Lowered:
        return self._lowering.lowered(kind, function, arguments, width=width, head=self.shape.head_dim)


def _leaves(cache: KVCache) -> dict[str, Array]:
    arrays = {"k": cache.k, "v": cache.v, "k_scale": cache.k_scale, "v_scale": cache.v_scale}
    return {name: array for name, array in arrays.items() if array is not None}


def _sum(array: Array) -> Array:
    """Each element's bits times an odd number of its own: a change of one always changes the sum, modulo 2**32."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = sum(lax.broadcasted_iota(jnp.uint32, array.shape, i) * _STEPS[i] for i in range(array.ndim))
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _padded(pages: Sequence[int], width: int) -> np.ndarray:
    index = np.zeros(width, np.int32)
    index[: len(pages)] = pages
    return index
