"""Each stage of sampling against plain numpy in float64, and the distribution of what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from slipstream.api.sampling import TokenSampling
from slipstream.engine import sampler
from slipstream.engine.sampler import BANNED
from slipstream.engine.slots import Slots, slot_row

VOCAB, MAX_LEN = 300, 40
RNG = np.random.default_rng(7)
LOGITS = (RNG.normal(size=(4, VOCAB)) * 3).astype(np.float32)
HISTORY = RNG.integers(0, VOCAB, size=(4, 20)).tolist()
PROMPT_LEN = 12

stages = {
    name: jax.jit(getattr(sampler, name))
    for name in ("truncate", "penalise", "ban_words", "ban_stops", "add_bias", "draw", "logprobs_of")
}


@jax.jit
def sample_all(logits: jax.Array, slots: Slots, positions: jax.Array) -> jax.Array:
    """Row i of the logits belongs to slot i."""
    return sampler.sample(logits, slots, jnp.arange(logits.shape[0], dtype=jnp.int32), positions)


def rows_of(*samplings: TokenSampling, tokens: list[list[int]] = HISTORY) -> Slots:
    """Slots of up to four sequences of 20 tokens, 12 of them prompt."""
    rows = [slot_row(t, PROMPT_LEN, s, MAX_LEN) for t, s in zip(tokens, samplings, strict=False)]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)


def lengths(count: int) -> jax.Array:
    return jnp.full(count, 20, jnp.int32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def kept(logits: np.ndarray, order: np.ndarray, weights: np.ndarray, wanted: float) -> np.ndarray:
    """The shortest set, first in `order`, whose weights reach `wanted`."""
    ids = np.argsort(order, kind="stable")
    count = int(np.searchsorted(np.cumsum(weights[ids]), wanted)) + 1
    mask = np.zeros(len(logits), bool)
    mask[ids[:count]] = True
    return mask


def top_k(x: np.ndarray, k: int) -> np.ndarray:
    return kept(x, -x, np.ones(len(x)), k)


def top_p(x: np.ndarray, p: float) -> np.ndarray:
    return kept(x, -x, softmax(x), p)


def min_p(x: np.ndarray, p: float) -> np.ndarray:
    return softmax(x) >= p * softmax(x).max()


def typical_p(x: np.ndarray, p: float) -> np.ndarray:
    q = softmax(x)
    live = q > 0
    surprise = -np.log(q, where=live, out=np.zeros_like(q))
    distance = np.where(live, np.abs(surprise - (q * surprise).sum()), np.inf)
    return kept(x, distance, q, p)


MASKS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 1), ("top_k", 7), ("top_k", 299), ("top_k", 5000), ("top_p", 0.01), ("top_p", 0.5), ("top_p", 0.95),
     ("min_p", 0.05), ("min_p", 1.0), ("typical_p", 0.2), ("typical_p", 0.9)],
)  # fmt: skip
def test_each_truncation_keeps_what_numpy_keeps_and_leaves_other_rows_alone(name: str, value: float) -> None:
    on, off = TokenSampling(**{name: value}), TokenSampling()
    out = np.asarray(stages["truncate"](LOGITS, rows_of(on, off, on, off)))
    for row in (0, 2):
        np.testing.assert_array_equal(
            out[row] > BANNED, MASKS[name](LOGITS[row], min(value, VOCAB)), err_msg=f"row {row}"
        )
    np.testing.assert_array_equal(out[[1, 3]], LOGITS[[1, 3]])


def test_truncations_chain_each_on_what_the_one_before_left() -> None:
    both = TokenSampling(top_k=30, top_p=0.8, min_p=0.02, typical_p=0.9)
    out = np.asarray(stages["truncate"](LOGITS, rows_of(both, both, both, both)))
    for got, row in zip(out, LOGITS, strict=True):
        left = row.astype(np.float64)
        for name, value in (("top_k", 30), ("top_p", 0.8), ("min_p", 0.02), ("typical_p", 0.9)):
            left = np.where(MASKS[name](left, value), left, BANNED)
        np.testing.assert_array_equal(got > BANNED, left > BANNED)


def test_ties_at_the_border_stay_in() -> None:
    x = np.zeros((1, VOCAB), np.float32)
    x[0, :3] = 2.0
    out = np.asarray(stages["truncate"](x, rows_of(TokenSampling(top_k=2))))
    assert (out[0] > BANNED).sum() == 3


def test_penalties_equal_the_formulas() -> None:
    rows = [
        TokenSampling(repetition_penalty=1.7),
        TokenSampling(frequency_penalty=0.6, presence_penalty=-0.3),
        TokenSampling(),
        TokenSampling(repetition_penalty=0.5, frequency_penalty=-1.0, presence_penalty=2.0),
    ]
    history = [[*line[:17], line[15], line[15], line[3]] for line in HISTORY]
    out = np.asarray(stages["penalise"](LOGITS, rows_of(*rows, tokens=history), lengths(4)))
    for got, logits, tokens, s in zip(out, LOGITS, history, rows, strict=True):
        want = logits.astype(np.float64)
        seen = sorted(set(tokens))
        want[seen] = np.where(want[seen] > 0, want[seen] / s.repetition_penalty, want[seen] * s.repetition_penalty)
        counts = np.bincount(tokens[PROMPT_LEN:], minlength=VOCAB)
        want -= counts * s.frequency_penalty + (counts > 0) * s.presence_penalty
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_tokens_past_the_length_count_for_nothing() -> None:
    row = rows_of(TokenSampling(frequency_penalty=1.0))
    short = np.asarray(stages["penalise"](LOGITS[:1], row, jnp.array([13], jnp.int32)))
    changed = np.flatnonzero(short[0] != LOGITS[0])
    np.testing.assert_array_equal(changed, [HISTORY[0][12]])


def test_bad_words_ban_the_last_token_of_a_word_begun_in_the_output() -> None:
    tail = HISTORY[0][17:20]
    words = (
        (5,),
        (tail[2], 6),
        (tail[0], tail[1], tail[2], 7),
        (tail[1], 8),
        (*tuple(HISTORY[0][8:20]), 9),
        (tail[2], tail[2], 10),
    )
    out = np.asarray(stages["ban_words"](LOGITS[:1], rows_of(TokenSampling(bad_token_ids=words)), lengths(1)))
    # 8: does not end the output; 9: its beginning reaches into the prompt; 10: only a part matches.
    np.testing.assert_array_equal(np.flatnonzero(out[0] == BANNED), [5, 6, 7])


def test_stop_tokens_are_banned_below_min_tokens_only() -> None:
    below, above = (
        TokenSampling(min_tokens=9, stop_token_ids=(3, 4)),
        TokenSampling(min_tokens=8, stop_token_ids=(3, 4)),
    )
    out = np.asarray(stages["ban_stops"](LOGITS[:2], rows_of(below, above), lengths(2)))
    np.testing.assert_array_equal(np.flatnonzero(out[0] == BANNED), [3, 4])
    np.testing.assert_array_equal(out[1], LOGITS[1])


def test_bias_is_added() -> None:
    out = np.asarray(
        stages["add_bias"](LOGITS[:2], rows_of(TokenSampling(logit_bias=((0, 2.5), (299, -100.0))), TokenSampling()))
    )
    want = LOGITS[:2].copy()
    want[0, 0] += 2.5
    want[0, 299] -= 100
    np.testing.assert_allclose(out, want, rtol=1e-6)


def test_logprobs_and_ranks() -> None:
    chosen = jnp.array([4, 9, 200, int(LOGITS[3].argmax())], jnp.int32)
    found = stages["logprobs_of"](LOGITS, chosen)
    for i, logits in enumerate(LOGITS):
        p = np.log(softmax(logits))
        best = np.argsort(-logits, kind="stable")[:20]
        np.testing.assert_allclose(found.chosen[i], p[chosen[i]], rtol=1e-5)
        np.testing.assert_array_equal(found.top_ids[i], best)
        np.testing.assert_allclose(found.top[i], p[best], rtol=1e-5)
        assert found.rank[i] == (p > p[chosen[i]]).sum() + 1
    assert found.rank[3] == 1


def test_greedy_takes_the_best_and_all_parameters_together_stay_in_the_vocabulary() -> None:
    greedy = TokenSampling(temperature=0)
    full = TokenSampling(
        temperature=0.7, top_k=9, top_p=0.9, min_p=0.01, typical_p=0.95, repetition_penalty=1.2, frequency_penalty=0.1,
        presence_penalty=0.1, logit_bias=((1, 1.0),), min_tokens=30, stop_token_ids=(2,), bad_token_ids=((3,),), seed=5,
    )  # fmt: skip
    out = np.asarray(sample_all(LOGITS, rows_of(greedy, full, greedy, full), lengths(4)))
    np.testing.assert_array_equal(out[[0, 2]], LOGITS[[0, 2]].argmax(axis=1))
    assert ((out >= 0) & (out < VOCAB)).all()


def test_everything_banned_still_gives_a_token() -> None:
    only = TokenSampling(temperature=1.0, top_p=1e-9, min_tokens=30, stop_token_ids=tuple(range(60)))
    x = np.full((1, 60), -5.0, np.float32)
    token = int(sample_all(x, rows_of(only), lengths(1))[0])
    assert 0 <= token < 60


@pytest.mark.parametrize("vocab", [3, 128, 300])
def test_draws_follow_the_distribution(vocab: int) -> None:
    """Chi-squared of 20,000 draws at different positions with one seed, against the 99.99% quantile."""
    draws, x = 20_000, LOGITS[0, :vocab] / 2
    seed = jnp.array([0, 11], jnp.uint32)
    call = jax.jit(partial(sampler.draw, jnp.broadcast_to(x, (500, vocab)), jnp.broadcast_to(seed, (500, 2))))
    tokens = np.concatenate([call(jnp.arange(500, dtype=jnp.int32) + start) for start in range(0, draws, 500)])
    expected = softmax(x) * draws
    observed = np.bincount(tokens, minlength=vocab)
    rare = expected < 5
    cells = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(observed[~rare], observed[rare].sum())
    cells, counts = cells[cells > 0], counts[cells > 0]
    statistic = ((counts - cells) ** 2 / cells).sum()
    freedom = max(len(cells) - 1, 1)
    # Wilson and Hilferty's approximation of the quantile; 3.72 standard deviations is 99.99%.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


def test_banned_tokens_are_never_drawn() -> None:
    x = np.full((400, VOCAB), BANNED, np.float32)
    x[:, [17, 130, 299]] = [1.0, 1.0, 1.0]
    seeds = jnp.asarray(RNG.integers(0, 2**32, size=(400, 2), dtype=np.uint32))
    tokens = np.asarray(stages["draw"](x, seeds, jnp.arange(400, dtype=jnp.int32)))
    assert set(tokens.tolist()) == {17, 130, 299}


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    hot = [TokenSampling(temperature=1.0, seed=seed) for seed in (1, 2**40 + 1, 1, 3)]
    logits = np.broadcast_to(LOGITS[0] / 4, (4, VOCAB))
    together = np.asarray(sample_all(logits, rows_of(*hot), lengths(4)))
    alone = [int(sample_all(logits[:1], rows_of(s), lengths(1))[0]) for s in hot]
    np.testing.assert_array_equal(together, alone)
    assert together[0] == together[2]
    at = [int(sample_all(logits[:1], rows_of(hot[0]), jnp.array([n], jnp.int32))[0]) for n in range(13, 33)]
    assert len(set(at)) > 5, "positions must not share their random numbers"


def test_seeds_differ_in_their_high_bits_too() -> None:
    low, high = (jnp.array([word, 1], jnp.uint32) for word in (0, 256))
    position = jnp.int32(3)
    assert not np.isclose(sampler.noise(low, position, 50), sampler.noise(high, position, 50)).any()


def test_rounding_of_the_logits_moves_no_draw() -> None:
    """Logits of one request differ by about 1e-5 between batch sizes; 400 draws from a flat distribution must not."""
    x = np.tile(RNG.normal(size=(1, 20_000)).astype(np.float32), (400, 1))
    shaken = x + RNG.normal(size=x.shape).astype(np.float32) * 1e-5
    seeds = jnp.asarray(RNG.integers(0, 2**32, size=(400, 2), dtype=np.uint32))
    at = jnp.arange(400, dtype=jnp.int32)
    first, second = (np.asarray(stages["draw"](logits, seeds, at)) for logits in (x, shaken))
    assert len(set(first.tolist())) > 300
    np.testing.assert_array_equal(first, second)


def test_noise_is_gumbel_noise_and_unrelated_between_tokens_positions_and_seeds() -> None:
    """4 million numbers; limits are 5 standard errors of the statistic under independent Gumbel noise."""
    seeds = jnp.asarray(np.stack([np.zeros(16), np.arange(16)], axis=1).astype(np.uint32))
    many = jax.jit(jax.vmap(jax.vmap(lambda s, p: sampler.noise(s, p, 4096), in_axes=(None, 0)), in_axes=(0, None)))
    numbers = np.asarray(many(seeds, jnp.arange(64, dtype=jnp.int32)), np.float64)
    count = numbers.size
    assert abs(numbers.mean() - np.euler_gamma) < 5 * (np.pi / np.sqrt(6)) / np.sqrt(count)
    uniform = np.sort(np.exp(-np.exp(-numbers)).ravel())
    distance = np.abs(uniform - (np.arange(count) + 0.5) / count).max()
    assert distance < 2.3 / np.sqrt(count), "Kolmogorov and Smirnov's statistic, 99.995% quantile"
    centred = (numbers - numbers.mean()) / numbers.std()
    for axis in range(3):
        for lag in (1, 2, 7):
            pairs = centred * np.roll(centred, lag, axis)
            assert abs(pairs.mean()) < 5 / np.sqrt(count), f"axis {axis}, lag {lag}"


def test_noise_is_finite_for_every_hash() -> None:
    """A number of 24 bits and a half rounds up to 1, whose noise is infinite: then any token wins, banned ones too."""
    extremes = np.array([0, 2**32 - 1], np.uint32)
    uniform = ((extremes >> 9).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    assert uniform[0] > 0 and uniform[1] < 1
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda p: sampler.noise(jnp.array([1, 2], jnp.uint32), p, 50_000)))(np.arange(1000))
    )
    assert np.isfinite(drawn).all()  # 5e7 numbers: with 24 bits three of them would be infinite


PLAIN = TokenSampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=3)


def test_a_quick_draw_is_the_same() -> None:
    slots, slot = rows_of(PLAIN, TokenSampling(temperature=0.0), PLAIN), jnp.arange(3, dtype=jnp.int32)
    quick = sampler.quick_sample(LOGITS[:3], slots, slot, lengths(3), count=jnp.int32(3), kernels="reference")
    np.testing.assert_array_equal(quick, sample_all(LOGITS[:3], slots, lengths(3)))


@pytest.mark.parametrize(
    "field",
    [
        {"typical_p": 0.5}, {"repetition_penalty": 1.1}, {"frequency_penalty": -0.1}, {"presence_penalty": 0.1},
        {"logit_bias": ((1, 2.0),)}, {"min_tokens": 1}, {"bad_token_ids": ((1, 2),)}, {"logprobs": 0},
    ],
)  # fmt: skip
def test_what_a_quick_draw_leaves_out_is_special(field: dict[str, Any]) -> None:
    assert not sampler.is_special(PLAIN)
    assert sampler.is_special(msgspec.structs.replace(PLAIN, **field))


def test_every_field_of_a_request_is_special_or_known_to_a_quick_draw() -> None:
    special = {"typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "min_tokens"}
    special |= {"bad_token_ids", "logprobs"}
    quick = {"temperature", "top_k", "top_p", "min_p", "seed"}
    elsewhere = {"max_tokens", "stop_token_ids", "prompt_logprobs"}  # the scheduler's, and the prompt's own computation
    assert special | quick | elsewhere == set(TokenSampling.__struct_fields__)


def test_what_a_tpu_computes_in_turns_is_the_same() -> None:
    logits = jax.random.normal(jax.random.key(0), (3, 50)).at[1, 7].set(9.0).at[1, 30].set(9.0)
    for ours, theirs in zip(sampler._top_k_by_turns(logits), sampler._top_k(logits), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ids = jnp.array([[3, 3, 50], [49, 50, 0], [50, 50, 50]])
    values = jnp.arange(9.0).reshape(3, 3)
    expected = logits.at[0, 3].add(1.0).at[1, 49].add(3.0).at[1, 0].add(5.0)
    np.testing.assert_array_equal(sampler._by_row(sampler._add_to, logits, ids, values), expected)
    np.testing.assert_array_equal(sampler._one_by_one(sampler._add_to, logits, ids, values), expected)
