"""Ragged paged attention against a float64 reference, over pages filled with NaN wherever a row has no business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.attention import CHUNK_BLOCK, CONTEXT_BLOCK, attend
from slipstream.kernels.ragged import KVCache, Step

PAGES = 512
LAYERS, LAYER = 2, 1


@dataclass(frozen=True)
class Sizes:
    """Heads and pages of one case."""

    heads: int = 6
    kv_heads: int = 2
    size: int = 8
    page: int = 4


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    window: int | None,
    cap: float | None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Attention of the last q.shape[0] positions, one query and head at a time, in float64."""
    count, heads, _ = q.shape
    length, kv_heads, _ = k.shape
    out = np.zeros(q.shape)
    for i in range(count):
        at = length - count + i
        first = 0 if window is None else max(0, at - window + 1)
        for head in range(heads):
            keys = k[first : at + 1, head * kv_heads // heads].astype(np.float64)
            scores = keys @ q[i, head] * scale
            if cap is not None:
                scores = cap * np.tanh(scores / cap)
            if sinks is not None:
                scores = np.append(scores, sinks[head])
            weights = np.exp(scores - scores.max())
            share = (weights / weights.sum())[: len(keys)]
            out[i, head] = share @ v[first : at + 1, head * kv_heads // heads]
    return out


def run(
    rows: Sequence[tuple[int, int]],
    tokens: int,
    slots: int,
    *,
    sizes: Sizes = Sizes(),
    window: int | None = None,
    cap: float | None = None,
    sinks: np.ndarray | None = None,
    decode_only: bool = False,
    seed: int = 0,
) -> None:
    """Rows of (length, count): their first length - count tokens are in the cache, the last count are this step's."""
    rng = np.random.default_rng(seed)
    free = rng.permutation(PAGES).tolist()
    if 0 in free[: PAGES // 2]:
        free.remove(0)
        free.append(0)  # page 0 is in use from the first row on
    shape = (LAYERS, PAGES, sizes.page, sizes.kv_heads, sizes.size)
    cached_k, cached_v = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    width = -(-max(length for length, _ in rows) // sizes.page) + 3
    pages = np.full((slots, width), PAGES - 1, np.int32)
    starts, lengths = np.zeros(slots + 1, np.int32), np.zeros(slots, np.int32)
    q = np.full((tokens, sizes.heads, sizes.size), np.nan, np.float32)
    k = np.full((tokens, sizes.kv_heads, sizes.size), np.nan, np.float32)
    v = k.copy()
    expected = np.zeros(q.shape)
    used: set[int] = set()
    for i, (length, count) in enumerate(rows):
        own = [free.pop() for _ in range(-(-length // sizes.page))]
        used.update(own)
        pages[i, : len(own)] = own
        starts[i + 1], lengths[i] = starts[i] + count, length
        row_q = rng.normal(size=(count, sizes.heads, sizes.size)).astype(np.float32)
        row_k, row_v = rng.normal(size=(2, length, sizes.kv_heads, sizes.size)).astype(np.float32)
        for at in range(length - count):
            cached_k[LAYER, own[at // sizes.page], at % sizes.page] = row_k[at]
            cached_v[LAYER, own[at // sizes.page], at % sizes.page] = row_v[at]
        here = slice(starts[i], starts[i + 1])
        q[here], k[here], v[here] = row_q, row_k[length - count :], row_v[length - count :]
        expected[here] = reference(row_q, row_k, row_v, 0.3, window, cap, sinks)
    starts[len(rows) + 1 :] = starts[len(rows)]

    @jax.jit
    def call(cache: KVCache, starts: jax.Array, lengths: jax.Array, pages: jax.Array) -> tuple[jax.Array, KVCache]:
        step = Step.of(starts, lengths, pages, tokens, decode_only=decode_only)
        new = (jnp.asarray(x) for x in (q, k, v))
        return attend(cache, jnp.int32(LAYER), *new, step, scale=0.3, window=window, soft_cap=cap, sinks=sinks)

    out, cache = call(KVCache(jnp.asarray(cached_k), jnp.asarray(cached_v)), starts, lengths, pages)
    real = starts[-1]
    np.testing.assert_allclose(np.asarray(out)[:real], expected[:real], atol=2e-6)
    assert not np.asarray(out)[real:].any(), "padding must come out as zeros"
    for pool in (np.asarray(cache.k), np.asarray(cache.v)):
        assert np.isnan(pool[1 - LAYER]).all(), "another layer's pages were written"
        others = sorted(set(range(PAGES)) - used)
        assert np.isnan(pool[LAYER, others]).all(), "a page that no row owns was written"
    for i, (length, count) in enumerate(rows):
        for at in range(length - count, length):
            slot = starts[i] + at - (length - count)
            np.testing.assert_array_equal(cache.k[LAYER, pages[i, at // sizes.page], at % sizes.page], k[slot])
            np.testing.assert_array_equal(cache.v[LAYER, pages[i, at // sizes.page], at % sizes.page], v[slot])


LONG = CONTEXT_BLOCK + 40

DECODE = [(LONG, 1), (5, 1), (1, 1), (17, 1)]
MIXED = [(LONG, 1), (LONG - 3, CHUNK_BLOCK + 8), (5, 5), (1, 1), (33, 33), (CHUNK_BLOCK, CHUNK_BLOCK), (9, 2)]


@pytest.mark.parametrize("window", [None, 1, 7, 300])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_decode_and_mixed_equal_float64(window: int | None, cap: float | None) -> None:
    run(DECODE, 4, 4, window=window, cap=cap, decode_only=True)
    run(MIXED, 160, 8, window=window, cap=cap)


@pytest.mark.parametrize("window", [None, 7])
def test_sinks(window: int | None) -> None:
    """Far below the scores of keys, among them, and far above: then nothing is left for the keys."""
    sinks = np.linspace(-30, 9, 6).astype(np.float32)
    run(MIXED, 160, 8, window=window, sinks=sinks)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(heads=1, kv_heads=1, size=3, page=1),
        Sizes(heads=4, kv_heads=4, page=16),
        Sizes(heads=5, kv_heads=1, page=7),
    ],
)
def test_odd_sizes(sizes: Sizes) -> None:
    run(MIXED[1:4], 64, 3, sizes=sizes)


def test_a_single_row_of_a_single_token() -> None:
    run([(1, 1)], 1, 1, decode_only=True)


def test_empty_rows_stay_empty_and_a_full_shape_has_no_padding() -> None:
    run([(5, 1), (6, 1)], 8, 8, decode_only=True)
    run([(16, 16)], 16, 4)


def test_as_many_tokens_as_rows_can_still_be_a_chunk() -> None:
    run([(8, 6), (3, 2)], 8, 8)


def test_no_real_token_at_all() -> None:
    step = Step.of(jnp.zeros(3, jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros((2, 4), jnp.int32), 4)
    cache = KVCache.zeros(1, 2, 4, 1, 2, jnp.dtype(jnp.float32))
    ones = jnp.ones((4, 1, 2))
    out, after = attend(cache, 0, ones, ones, ones, step, scale=1.0)
    assert not np.asarray(out).any()
    assert not np.asarray(after.k).any()


@pytest.mark.parametrize("seed", range(6))
def test_random_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 90, size=6)
    counts = [int(rng.integers(1, min(length, 25) + 1)) for length in lengths]
    run([(int(length), count) for length, count in zip(lengths, counts, strict=True)], 160, 8, seed=seed, window=11)


def test_low_precision_cache_rounds_keys_and_values_only() -> None:
    rng = np.random.default_rng(3)
    k, v = rng.normal(size=(2, 12, 2, 8)).astype(np.float32)
    q = rng.normal(size=(12, 4, 8)).astype(np.float32)
    cache = KVCache.zeros(1, 4, 4, 2, 8, jnp.dtype(jnp.bfloat16))
    out, cache = attend(cache, 0, jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), Step.whole(12, 4), scale=0.3)
    rounded = (np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (k, v))
    assert cache.k.dtype == jnp.bfloat16
    np.testing.assert_allclose(out, reference(q, *rounded, 0.3, None, None), atol=2e-6)


def test_an_int8_cache_holds_a_scale_for_each_token_and_head() -> None:
    rng = np.random.default_rng(3)
    k, v = rng.normal(size=(2, 12, 2, 8)).astype(np.float32)
    q = rng.normal(size=(12, 4, 8)).astype(np.float32)
    k[3], v[5, 1] = 0, 1e-35
    cache = KVCache.zeros(1, 4, 4, 2, 8, jnp.dtype(jnp.int8))
    out, cache = attend(cache, 0, jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), Step.whole(12, 4), scale=0.3)
    held = []
    for values, scales, exact in ((cache.k, cache.k_scale, k), (cache.v, cache.v_scale, v)):
        wide = np.asarray(values, np.float32)[0, :3].reshape(12, 2, 8) * np.asarray(scales)[0, :3].reshape(12, 2, 1)
        assert np.all(np.abs(wide - exact) <= np.abs(exact).max(axis=-1, keepdims=True) * 0.50001 / 127 + 1e-30)
        held.append(wide)
    np.testing.assert_allclose(out, reference(q, *held, 0.3, None, None), atol=2e-6)


def test_float16_saturates() -> None:
    k = jnp.full((2, 1, 4), 1e5)
    cache = KVCache.zeros(1, 1, 4, 1, 4, jnp.dtype(jnp.float16))
    out, cache = attend(cache, 0, k, k, -k, Step.whole(2, 4), scale=1e-10)
    assert np.asarray(cache.k).max() == 65504
    np.testing.assert_array_equal(out, -65504.0)


@pytest.mark.parametrize("window", [None, 3])
def test_a_token_that_a_query_does_not_see_does_not_reach_it(window: int | None) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(x) for x in rng.normal(size=(3, 12, 2, 8)).astype(np.float32))

    def run(k: jax.Array, v: jax.Array) -> np.ndarray:
        cache = KVCache.zeros(1, 3, 4, 2, 8, jnp.dtype(jnp.float32))
        return np.asarray(attend(cache, 0, q, k, v, Step.whole(12, 4), scale=0.3, window=window)[0])

    clean, dirty = run(k, v), run(k.at[5].set(jnp.nan), v.at[5].set(jnp.inf))
    past = 12 if window is None else 5 + window
    np.testing.assert_array_equal(clean[:5], dirty[:5])
    np.testing.assert_array_equal(clean[past:], dirty[past:])
    assert np.isnan(dirty[5:past]).all()
