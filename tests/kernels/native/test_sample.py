"""Drawing by the native kernels: against the sampler in JAX, and against what the distribution must be."""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.native.products import native, pointer

from slipstream.api.sampling import TokenSampling
from slipstream.engine.sampler import BANNED, choose, choose_natively, choose_on_cpu
from slipstream.engine.slots import Slots, slot_row

ISAS = ["portable", "avx2", "avx512"]


class Wish(ctypes.Structure):
    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("key", ctypes.c_uint32 * 2),
    )


def draw(logits: np.ndarray, *, keys: int = 1, **wish: Any) -> np.ndarray:
    """Tokens of `keys` rows that all have the same logits [v], each with another key."""
    values = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0} | wish
    wishes = (Wish * keys)()
    words = np.random.default_rng(0).integers(0, 2**32, (keys, 2), np.uint32)
    for one, pair in zip(wishes, words, strict=True):
        for name, value in values.items():
            setattr(one, name, value)
        one.key[:] = pair.tolist()
    rows = np.ascontiguousarray(np.broadcast_to(logits.astype(np.float32), (keys, logits.size)))
    tokens = np.full(keys, -1, np.int32)
    sizes = (ctypes.c_int64(keys), ctypes.c_int64(logits.size))
    assert native.slipstream_sample(pointer(rows), *sizes, ctypes.byref(wishes), pointer(tokens)) == 0
    return tokens


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    if native.slipstream_set_isa(request.param.encode()) == -2:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    native.slipstream_set_isa(None)


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 1000, 49_152])
def test_greedy_is_the_first_of_the_best(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for _ in range(5):
        logits = rng.integers(-9, 9, vocab).astype(np.float32)  # ties
        assert draw(logits, temperature=0.0)[0] == logits.argmax()


def test_values_that_are_not_numbers_are_never_chosen(isa: str) -> None:
    logits = np.full(100, np.nan, np.float32)
    assert draw(logits, temperature=0.0)[0] == 0
    logits[[7, 63]] = [-3.0, -2.0]
    assert draw(logits, temperature=0.0)[0] == 63


def test_draws_follow_the_distribution(isa: str) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    counts = np.bincount(draw(logits, keys=20_000), minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.125, 0.125], atol=0.015)
    hot = np.bincount(draw(logits, keys=20_000, temperature=2.0), minlength=4) / 20_000
    share = np.exp(logits / 2)
    np.testing.assert_allclose(hot, share / share.sum(), atol=0.015)


TRUNCATIONS = [
    ({"top_k": 3}, {0, 1, 2}),
    ({"top_k": 1}, {0}),
    ({"top_k": 50}, {0, 1, 2, 3, 4, 5}),
    ({"top_p": 0.7}, {0, 1}),
    ({"top_p": 0.71}, {0, 1, 2}),
    ({"top_p": 1e-6}, {0}),
    ({"min_p": 0.2}, {0, 1, 2}),
    ({"min_p": 1.0}, {0}),
    ({"top_k": 3, "top_p": 0.77}, {0, 1}),  # of what top_k left: 0.5 and 0.2 of 0.8
    ({"top_k": 4, "min_p": 0.3}, {0, 1}),
]


@pytest.mark.parametrize(("wish", "kept"), TRUNCATIONS)
def test_truncation_keeps_what_it_should(isa: str, wish: dict[str, float], kept: set[int]) -> None:
    p = np.array([0.5, 0.2001, 0.1201, 0.0999, 0.0599, 0.02])
    tokens = (
        draw(np.log(p), keys=4000, temperature=0.999, **wish) if len(kept) == 1 else draw(np.log(p), keys=4000, **wish)
    )
    assert set(tokens.tolist()) == kept


def test_ties_at_a_border_stay_in(isa: str) -> None:
    logits = np.array([2.0, 1.0, 1.0, 1.0, 0.0])
    assert set(draw(logits, keys=2000, top_k=2).tolist()) == {0, 1, 2, 3}
    assert set(draw(logits, keys=2000, top_p=0.6).tolist()) == {0, 1, 2, 3}


def test_a_banned_token_is_never_drawn(isa: str) -> None:
    logits = np.zeros(64, np.float32)
    logits[::2] = BANNED
    assert (draw(logits, keys=4000) % 2).all()


def rows(wishes: list[TokenSampling]) -> Slots:
    made = [slot_row([], 0, wish, 8) for wish in wishes]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


def test_tokens_equal_those_of_the_sampler_in_jax(isa: str) -> None:
    wishes = [
        TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        for seed in (0, 2**63 + 12345)
        for temperature in (0.0, 0.5, 1.3)
        for top_k in (0, 20)
        for top_p in (1.0, 0.9, 0.3)
        for min_p in (0.0, 0.05)
    ]
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 3, (len(wishes), 5000)).astype(np.float32))
    positions = jnp.arange(len(wishes), dtype=jnp.int32)
    count = jnp.int32(len(wishes))
    slots, slot = rows(wishes), jnp.flip(positions)
    theirs = jax.jit(choose)(logits, slots, slot, positions, count)
    for ours in (choose_on_cpu, choose_natively):
        np.testing.assert_array_equal(jax.jit(ours)(logits, slots, slot, positions, count), theirs)


def test_typical_p_and_padding_rows() -> None:
    wishes = [TokenSampling(temperature=1.0, typical_p=0.5, seed=1), TokenSampling(temperature=1.0, seed=2)]
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 3, (2, 500)).astype(np.float32))
    positions = jnp.arange(2, dtype=jnp.int32)
    for count in (2, 1):
        ours = jax.jit(choose_on_cpu)(logits, rows(wishes), positions, positions, jnp.int32(count))
        theirs = jax.jit(choose)(logits, rows(wishes), positions, positions, jnp.int32(count))
        np.testing.assert_array_equal(ours[:count], theirs[:count])
    alone = jax.jit(choose_on_cpu)(logits[1:], rows(wishes[1:]), positions[:1], positions[1:], jnp.int32(1))
    assert int(alone[0]) == int(jax.jit(choose)(logits, rows(wishes), positions, positions, jnp.int32(2))[1])
