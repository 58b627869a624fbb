"""Ragged paged attention on an NVIDIA GPU: cuDNN's fused attention for chunks of prompts, Pallas for all else.

cuDNN takes rows, not blocks: a turn of a loop is one row, with its chunk as queries. JAX's public call aligns a causal
mask at the top left, query i with key i. That is right for a row without earlier context, whose keys are those of this
step. For others the row's pages are gathered, and a mask says which key each query sees. Work beyond a row's lengths
is left out by cuDNN. What it does not know, and short chunks, whose rows would each be a call of their own, are
Pallas's as on every GPU.

Sources: FlashAttention-2 (arXiv:2307.08691), which cuDNN's fused attention is; `jax.nn.dot_product_attention`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from slipstream.kernels.norm import Norm
from slipstream.kernels.pallas.gpu import attend_gpu
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles, rotate

LEAST_QUERIES = 64  # of a chunk: so a step of t tokens makes at most t / 64 calls a layer
CONTEXTS = (
    2048,
    8192,
    32768,
)  # keys that a row's pages are gathered to: the fewest that hold it; Pallas has longer rows
MULTIPLE = 8  # of a head's numbers, and of keys: 16 bytes of their mask
ALIGNED = 64  # queries and keys of a call are a multiple of this
LARGEST_HEAD = 128  # on every GPU that has the fused attention; 256 is Hopper's and later

Library = Literal["cudnn", "xla"]

_TYPES: dict[Library, tuple[str, ...]] = {
    "cudnn": ("bfloat16", "float16"),
    "xla": ("bfloat16", "float16", "float32"),
}
"""What is multiplied. `xla` stands for cuDNN in tests on other devices, with the same arguments."""


def attend_cudnn(
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
    interpret: bool = False,
) -> tuple[Array, KVCache]:
    """`kernels.attention.attend` on an NVIDIA GPU. The cache must be laid out by_row, as for `attend_gpu`.

    cuDNN computes rows of LEAST_QUERIES new tokens or more and at most CONTEXTS[-1] in all, that fit into `window`, of
    layers without sinks and without `soft_cap`, from caches of 16 bits.
    `interpret` runs on any device, for tests: Pallas interprets, and XLA has the place of cuDNN.
    """
    assert not isinstance(v, int), "values lie beside keys"
    if qk_norm is not None:
        q, k = (norm(x) for norm, x in zip(qk_norm, (q, k), strict=True))
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    library: Library = "xla" if interpret else "cudnn"
    others = partial(
        attend_gpu, cache, layer, q, k, v, step, scale, window, soft_cap, None, None, sinks, interpret=interpret
    )
    short = step.decode_only or q.shape[0] < LEAST_QUERIES
    if short or sinks is not None or soft_cap is not None or not _reads(library, cache):
        return others()
    taken = _taken(step, window, cache.page_size)
    out, cache = others(apart=taken)
    return _attend_rows(out, cache, jnp.asarray(layer, jnp.int32), q, k, v, step, taken, scale, library), cache


def missing() -> str | None:
    """Why cuDNN's attention cannot be had here; None where it can. Nothing is computed."""
    example = jax.ShapeDtypeStruct((1, ALIGNED, 1, LARGEST_HEAD), jnp.bfloat16)
    try:
        jax.eval_shape(lambda x: jax.nn.dot_product_attention(x, x, x, implementation="cudnn"), example)
    except (RuntimeError, NotImplementedError) as error:  # without the library; too old, or with too old a GPU
        return str(error).splitlines()[0]
    return None


def _reads(library: Library, cache: KVCache) -> bool:
    size = cache.k.shape[-1]
    whole = size % MULTIPLE == 0 and cache.page_size % MULTIPLE == 0
    return cache.k.dtype.name in _TYPES[library] and whole and size <= LARGEST_HEAD


def _taken(step: Step, window: int | None, page_size: int) -> Array:
    """Which rows are cuDNN's, bool[s]. A window that reaches a row's first token cuts nothing off."""
    counts = step.starts[1:] - step.starts[:-1]
    most = min(CONTEXTS[-1], step.pages.shape[1] * page_size)
    return (counts >= LEAST_QUERIES) & (step.lengths <= (most if window is None else min(window, most)))


def _attend_rows(
    out: Array,
    cache: KVCache,
    layer: Array,
    q: Array,
    k: Array,
    v: Array,
    step: Step,
    taken: Array,
    scale: float,
    library: Library,
) -> Array:
    """`out` [t, n, h] with the results of the rows that are `taken`, one after the other."""
    assert cache.v is not None, "values lie beside keys"
    held_by = (cache.k, cache.v)
    (tokens, _, own), size, dtype = q.shape, cache.k.shape[-1], cache.k.dtype
    most = -(-tokens // ALIGNED) * ALIGNED
    index = jnp.arange(most, dtype=jnp.int32)
    # A row's slice begins anywhere, so there is as much room again behind the last token.
    queries, keys, values = (jnp.pad(x.astype(dtype), ((0, most), (0, 0), (0, size - own))) for x in (q, k, v))
    fused = partial(jax.nn.dot_product_attention, scale=scale, implementation=library)
    contexts = _contexts(step.pages.shape[1] * cache.page_size)
    width = -(-contexts[-1] // cache.page_size)
    pages = jnp.pad(step.pages, ((0, 0), (0, max(0, width - step.pages.shape[1]))))
    order = jnp.nonzero(taken, size=taken.shape[0], fill_value=0)[0]

    def one_row(i: Array, out: Array) -> Array:
        row = order[i]
        first, length = step.starts[row], step.lengths[row]
        count = step.starts[row + 1] - first
        mine = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=most)
        query, lengths = mine(queries)[None], {"query_seq_lengths": count[None], "key_value_seq_lengths": length[None]}

        def zeroed(x: Array, count: Array) -> Array:
            """Without what is not the row's: it may be NaN, and 0 * NaN must not reach a sum."""
            real = jnp.arange(x.shape[0], dtype=jnp.int32) < count
            return jnp.where(real[:, None, None], x, 0)[None]

        def alone() -> Array:
            return fused(query, zeroed(mine(keys), count), zeroed(mine(values), count), is_causal=True, **lengths)

        def after(context: int) -> Array:
            table = pages[row, : -(-context // cache.page_size)]
            held = (
                zeroed(source[layer, table].swapaxes(1, 2).reshape(-1, source.shape[2], size), length)
                for source in held_by
            )
            positions = jnp.arange(table.size * cache.page_size, dtype=jnp.int32)
            seen = positions <= (length - count + index)[:, None]
            return fused(query, *held, mask=seen[None, None], **lengths)

        enough = jnp.searchsorted(jnp.asarray(contexts), length, side="left").astype(jnp.int32)
        which = jnp.where(length == count, 0, 1 + jnp.minimum(enough, len(contexts) - 1))
        found = lax.switch(which, [alone, *(partial(after, context) for context in contexts)])[0]
        found = jnp.where((index < count)[:, None, None], found[..., :own].astype(out.dtype), mine(out))
        return lax.dynamic_update_slice_in_dim(out, found, first, axis=0)

    out = jnp.pad(out, ((0, most), (0, 0), (0, 0)))
    return lax.fori_loop(0, jnp.sum(taken, dtype=jnp.int32), one_row, out)[:tokens]


def _contexts(tokens: int) -> tuple[int, ...]:
    """What rows of a page table of `tokens` tokens are gathered to."""
    longest = min(-(-tokens // ALIGNED) * ALIGNED, CONTEXTS[-1])
    return (*(context for context in CONTEXTS if context < longest), longest)
