"""The Pallas kernels, interpreted on a CPU, equal the reference; a TPU's and a GPU's compilers are tests/targets'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # The races that it found are nowhere else.
from jax.experimental.pallas import tpu as pltpu

from slipstream.errors import ConfigError
from slipstream.kernels.attention import attend_reference
from slipstream.kernels.cache_write import quantize
from slipstream.kernels.pallas.gpu import attend_gpu
from slipstream.kernels.pallas.tpu import attend_tpu
from slipstream.kernels.pallas.tpu_write import tiles_of
from slipstream.kernels.ragged import KVCache, Layout, Step

PAGES, LAYERS, LAYER, KV_HEADS, GROUP = 96, 2, 1, 2, 3
TPU = partial(attend_tpu, interpret=True)
GPU = partial(attend_gpu, interpret=True)

LONG = 530  # more than a context block
DECODE = [(LONG, 1), (5, 1), (1, 1), (17, 1)]
MIXED = [(LONG, 1), (LONG - 3, 72), (5, 5), (1, 1), (64, 64), (9, 2), (48, 1)]


@dataclass(frozen=True)
class Case:
    """A step of `rows` (length, count), with queries, keys, values and the cache before it, by token."""

    step: Step
    new: tuple[Any, ...]
    held: KVCache

    @classmethod
    def of(
        cls,
        rows: Sequence[tuple[int, int]],
        tokens: int,
        slots: int,
        page: int,
        size: int,
        dtype: Any = jnp.float32,
        kv_dtype: Any = None,
    ) -> Case:
        rng = np.random.default_rng(0)
        free = [number for number in rng.permutation(PAGES).tolist() if number] + [0]  # the first row has page 0
        width = -(-max(length for length, _ in rows) // page) + 3
        pages = np.full((slots, width), PAGES - 1, np.int32)
        starts, lengths = np.zeros(slots + 1, np.int32), np.zeros(slots, np.int32)
        held = np.full((2, LAYERS, PAGES, page, KV_HEADS, size), np.nan, np.float32)
        for i, (length, count) in enumerate(rows):
            own = [free.pop() for _ in range(-(-length // page))]
            pages[i, : len(own)], starts[i + 1], lengths[i] = own, starts[i] + count, length
            for at in range(length - count):
                held[:, LAYER, own[at // page], at % page] = rng.normal(size=(2, KV_HEADS, size))
        starts[len(rows) + 1 :] = starts[len(rows)]
        new = [rng.normal(size=(tokens, heads, size)) for heads in (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)]
        decode_only = tokens == slots and all(count == 1 for _, count in rows)
        step = Step.of(*map(jnp.asarray, (starts, lengths, pages)), tokens, decode_only=decode_only)
        if kv_dtype == jnp.int8:
            (k, k_scale), (v, v_scale) = (quantize(jnp.asarray(x)) for x in held)
            cache = KVCache(k, v, "by_token", k_scale, v_scale)
        else:
            cache = KVCache(*(jnp.asarray(x, kv_dtype or dtype) for x in held))
        return cls(step, tuple(jnp.asarray(x, dtype) for x in new), cache)

    def latent(self, value: int) -> Case:
        """With one head of keys, of which the first `value` numbers are the values."""
        held = jax.tree.map(lambda pages: pages[:, :, :, :1], self.held)
        q, k, _ = self.new
        return replace(self, new=(q, k[:, :1], value), held=replace(held, v=None, v_scale=None))

    def check(self, attend: Callable[..., tuple[jax.Array, KVCache]], tolerance: float, **limits: Any) -> None:
        """`attend` in a cache by row gives what the reference gives in one by token, and the same cache."""
        asked = (0.3, limits.get("window"), limits.get("soft_cap"), None, None, limits.get("sinks"))
        q, k, v = self.new
        expected, before = attend_reference(self.held, jnp.int32(LAYER), q, k, v, self.step, *asked)
        # What is interpreted is a large program that runs once: optimizing it takes longer than that.
        run = jax.jit(
            lambda cache, q, k, *rest: attend(cache, jnp.int32(LAYER), q, k, *(rest or (v,)), self.step, *asked),
            compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
        )
        out, after = run(_turned(self.held, "by_row"), q, k, *(() if isinstance(v, int) else (v,)))
        real = int(self.step.real)
        assert out.dtype == q.dtype
        wide = (np.asarray(x[:real], np.float32) for x in (out, expected))
        np.testing.assert_allclose(*wide, atol=tolerance, rtol=tolerance)
        assert not np.asarray(out[real:], np.float32).any(), "padding must come out as zeros"
        ours, theirs = (jax.tree.leaves(cache) for cache in (_turned(after, "by_token"), before))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


def _turned(cache: KVCache, layout: Layout) -> KVCache:
    """By token from by row, or the other way round."""
    return replace(jax.tree.map(lambda pages: pages.swapaxes(2, 3), cache), layout=layout)


@pytest.mark.parametrize("attend", [TPU, GPU], ids=["tpu", "gpu"])
def test_decode_and_mixed_steps_equal_the_reference(attend: Callable[..., Any]) -> None:
    Case.of(MIXED, 160, 9, 16, 32).check(attend, 4e-6)


@pytest.mark.parametrize("attend", [TPU, GPU], ids=["tpu", "gpu"])
def test_windows_caps_and_bfloat16(attend: Callable[..., Any]) -> None:
    Case.of(DECODE, 4, 4, 16, 32).check(attend, 4e-6, window=7, soft_cap=2.0)
    Case.of(MIXED[1:], 160, 8, 32, 16, jnp.bfloat16).check(attend, 2e-2, window=200)


SINKS = jnp.asarray(np.linspace(-2, 6, KV_HEADS * GROUP), jnp.float32)


@pytest.mark.parametrize("kv_dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_sinks_and_narrow_caches_on_a_gpu(kv_dtype: Any) -> None:
    Case.of(MIXED[1:], 160, 8, 16, 32, jnp.bfloat16, kv_dtype).check(GPU, 2e-2, sinks=SINKS, window=40)
    # Queries of float32 are multiplied in float32 by what the cache holds.
    Case.of(DECODE, 4, 4, 16, 32, kv_dtype=kv_dtype).check(GPU, 4e-6, sinks=SINKS)


@pytest.mark.parametrize("kv_dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_sinks_and_narrow_caches_on_a_tpu(kv_dtype: Any) -> None:
    Case.of(MIXED[1:], 160, 8, 16, 32, jnp.bfloat16, kv_dtype).check(TPU, 2e-2, sinks=SINKS, window=40)


def test_latent_attention_on_a_tpu() -> None:
    Case.of(MIXED[1:], 160, 8, 16, 32, kv_dtype=jnp.int8).latent(20).check(TPU, 4e-6)
    Case.of(DECODE, 4, 4, 32, 256, kv_dtype=jnp.float8_e4m3fn).latent(100).check(TPU, 2e-5, sinks=SINKS, soft_cap=3.0)


def test_copies_behind_the_computation_race_with_nothing() -> None:
    interpret = pltpu.InterpretParams(detect_races=True)
    case = Case.of([(LONG, 1), (7, 3), (LONG, 2)], 8, 5, 16, 16, kv_dtype=jnp.int8)
    case.check(partial(attend_tpu, interpret=interpret), 4e-6)
    assert interpret_pallas_call.races is not None
    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("attend", [TPU, GPU], ids=["tpu", "gpu"])
def test_a_step_without_tokens_writes_nothing(attend: Callable[..., Any]) -> None:
    Case.of([(0, 0)], 4, 4, 16, 16).check(attend, 0)


@pytest.mark.parametrize("seed", range(6))
def test_tiles_cover_each_new_token_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots, page, tile = int(rng.integers(1, 9)), 32, 16
    lengths = rng.integers(1, 120, slots)
    counts = np.minimum(lengths, rng.integers(0, 40, slots) if seed % 2 else 1)
    lengths = np.where(counts, lengths, 0)
    tokens = max(1, int(counts.sum()) + int(rng.integers(0, 5)))
    starts = np.append(0, np.cumsum(counts)).astype(np.int32)
    pages = rng.permutation(slots * 4).reshape(slots, 4).astype(np.int32)
    step = Step.of(*map(jnp.asarray, (starts, lengths.astype(np.int32), pages)), tokens)
    found = jax.tree.map(np.asarray, jax.jit(lambda step: tiles_of(step, tokens, page, tile))(step))
    real = int(found.real[0])
    assert real <= len(found.pages)
    seen: dict[int, tuple[int, int]] = {}
    for i in range(real):
        for place, token in enumerate(found.tokens[i]):
            if token < tokens:
                assert token not in seen
                seen[int(token)] = (int(found.pages[i]), int(found.places[i]) * tile + place)
    expected = {
        int(starts[row]) + n: (int(pages[row, at // page]), at % page)
        for row in range(slots)
        for n, at in enumerate(range(lengths[row] - counts[row], lengths[row]))
    }
    assert seen == expected
    assert len({(int(a), int(b)) for a, b in zip(found.pages[:real], found.places[:real], strict=True)}) == real


def test_other_caches_are_refused() -> None:
    case = Case.of([(5, 5)], 8, 2, 16, 16)
    for attend in (attend_tpu, attend_gpu):
        with pytest.raises(ConfigError, match="by_row, not by_token"):
            attend(case.held, 0, *case.new, case.step, 0.3, None, None, None, None)


def test_keys_that_pallas_cannot_count_are_refused() -> None:
    case = Case.of([(5, 5)], 8, 2, 16, 16)
    pages = (2**31 + 2**24) // (LAYERS * 16 * KV_HEADS * 16)
    cache = jax.eval_shape(
        lambda: KVCache.zeros(LAYERS, pages, 16, KV_HEADS, 16, jnp.dtype(jnp.float8_e4m3fn), "by_row")
    )
    with pytest.raises(ConfigError, match=r"keys of 8 bits that take 2\.0 GiB.*set --kv-bytes to 4 GiB or less"):
        jax.eval_shape(lambda cache: attend_gpu(cache, 0, *case.new, case.step, 0.3, None, None, None, None), cache)
