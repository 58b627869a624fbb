"""From logits to a token, for every row of a step at once, on the device.

Each stage runs only if some row asks for it (`lax.cond`), so plain greedy decoding pays for an argmax. Stages follow
vLLM's order: bias and bans, penalties, temperature, then top_k, top_p, min_p, typical_p, each on what the one before
left. The random number of a token depends on its seed and position alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from slipstream.api.sampling import MAX_LOGPROBS, TokenSampling
from slipstream.engine.slots import NO_TOKEN, Slots
from slipstream.kernels.native.sampling import choose_native
from slipstream.kernels.ragged import Kernels

BANNED = -1e30  # finite, so that a row in which everything is banned still has a maximum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logprobs:
    """For each of r positions: the chosen token's log probability [r], its rank from 1 [r]; the m best tokens."""

    chosen: Array
    rank: Array
    top_ids: Array
    top: Array


def sample(
    logits: Array,
    slots: Slots,
    slot: Array,
    lengths: Array,
    *,
    count: Array | None = None,
    kernels: Kernels = "reference",
) -> Array:
    """Draw a token i32[s] for each row of logits f32[s, v].

    `slot` i32[s] is each row's slot, `lengths` i32[s] the position that its token will have. `count` i32[]: how many
    rows there are; those after them may get any token.
    """
    rows = jnp.int32(logits.shape[0]) if count is None else count
    return CHOOSE[kernels](adjusted_where_asked(logits, slots, slot, lengths), slots, slot, lengths, rows)


def adjusted_where_asked(logits: Array, slots: Slots, slot: Array, lengths: Array) -> Array:
    """Logits with the bias, bans and penalties of the rows that have any."""
    wants = slots.wishes(slot)
    special = (
        (wants.bias_ids[:, 0] != NO_TOKEN)
        | (wants.bad_words[:, 0, -1] != NO_TOKEN)
        | (lengths < wants.min_len)
        | (wants.repetition_penalty != 1)
        | (wants.frequency_penalty != 0)
        | (wants.presence_penalty != 0)
    )
    return _when(special, lambda x: adjusted(x, slots.rows(slot), lengths), logits)


def quick_sample(logits: Array, slots: Slots, slot: Array, lengths: Array, *, count: Array, kernels: Kernels) -> Array:
    """`sample` for rows of which none `is_special`: what most steps need, in few operations."""
    return QUICK[kernels](logits, slots, slot, lengths, count)


def is_special(sampling: TokenSampling) -> bool:
    """Whether a request asks for more of a step than temperature, top_k, top_p and min_p."""
    return (
        bool(sampling.logit_bias or sampling.bad_token_ids or sampling.min_tokens)
        or (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1, 0, 0)
        or sampling.typical_p < 1
        or sampling.logprobs is not None
    )


def adjusted(logits: Array, rows: Slots, lengths: Array) -> Array:
    """Logits after bias, bans and penalties."""
    logits = _when(rows.bias_ids[:, 0] != NO_TOKEN, lambda x: add_bias(x, rows), logits)
    logits = _when(rows.bad_words[:, 0, -1] != NO_TOKEN, lambda x: ban_words(x, rows, lengths), logits)
    logits = _when(lengths < rows.min_len, lambda x: ban_stops(x, rows, lengths), logits)
    penalised = (rows.repetition_penalty != 1) | (rows.frequency_penalty != 0) | (rows.presence_penalty != 0)
    return _when(penalised, lambda x: penalise(x, rows, lengths), logits)


def choose(logits: Array, slots: Slots, slot: Array, lengths: Array, count: Array) -> Array:
    """The best token of each row, or one drawn from what its truncation leaves."""
    rows = slots.wishes(slot)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    random = rows.temperature > 0
    return lax.cond(
        jnp.any(random),
        lambda: jnp.where(random, draw(truncate(_heated(logits, rows), rows), rows.seed, lengths), greedy),
        lambda: greedy,
    )


def choose_on_cpu(logits: Array, slots: Slots, slot: Array, lengths: Array, count: Array) -> Array:
    """The same by the native kernels, which know all but typical_p."""
    rare = jnp.any((slots.typical_p[slot] < 1) & (slots.temperature[slot] > 0))
    choices = (partial(made, logits, slots, slot, lengths, count) for made in (choose, choose_natively))
    return lax.cond(rare, *choices)


def choose_natively(logits: Array, slots: Slots, slot: Array, lengths: Array, count: Array) -> Array:
    """The same without typical_p."""
    return choose_native(logits, count, slot, lengths, slots.quick)


Choose = Callable[[Array, Slots, Array, Array, Array], Array]
_XLA: dict[Kernels, Choose] = {"reference": choose, "pallas_tpu": choose, "pallas_gpu": choose, "cudnn": choose}
CHOOSE: dict[Kernels, Choose] = {**_XLA, "cpu": choose_on_cpu}
QUICK: dict[Kernels, Choose] = {**_XLA, "cpu": choose_natively}


def add_bias(logits: Array, rows: Slots) -> Array:
    """Add each row's logit_bias."""
    return _by_row(_add_to, logits, _or_outside(rows.bias_ids, logits), rows.bias)


def ban_stops(logits: Array, rows: Slots, lengths: Array) -> Array:
    """Ban stop tokens in rows that are still below min_tokens."""
    ids = jnp.where((lengths < rows.min_len)[:, None], rows.stop_ids, NO_TOKEN)
    return _by_row(_ban, logits, _or_outside(ids, logits))


def ban_words(logits: Array, rows: Slots, lengths: Array) -> Array:
    """Ban the last token of each bad word whose earlier tokens end the output so far."""
    before = rows.bad_words.shape[-1] - 1
    position = lengths[:, None] - before + jnp.arange(before)
    tail = jnp.take_along_axis(rows.history, jnp.maximum(position, 0), axis=1)
    tail = jnp.where(position >= rows.prompt_len[:, None], tail, -2)
    start, last = rows.bad_words[..., :-1], rows.bad_words[..., -1]
    match = jnp.all((start == NO_TOKEN) | (start == tail[:, None]), axis=-1)
    ids = jnp.where(match, last, NO_TOKEN)
    return _by_row(_ban, logits, _or_outside(ids, logits))


def penalise(logits: Array, rows: Slots, lengths: Array) -> Array:
    """Repetition penalty over prompt and output (Keskar et al. 2019); OpenAI's two penalties over the output."""
    position = jnp.arange(rows.history.shape[1])
    written = position < lengths[:, None]
    output = written & (position >= rows.prompt_len[:, None])

    def count(mask: Array) -> Array:
        ids = _or_outside(jnp.where(mask, rows.history, NO_TOKEN), logits)
        return _by_row(_add_to, jnp.zeros(logits.shape, jnp.float32), ids, jnp.ones(ids.shape, jnp.float32))

    produced = count(output)
    seen = (produced > 0) | (count(written & ~output) > 0)
    factor = jnp.where(seen, rows.repetition_penalty[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / factor, logits * factor)
    logits -= produced * rows.frequency_penalty[:, None]
    return logits - (produced > 0) * rows.presence_penalty[:, None]


def truncate(logits: Array, rows: Slots) -> Array:
    """Ban all but what top_k, top_p, min_p and typical_p keep. Ties at a border stay in.

    Three of them keep the shortest set of tokens that are first in some order. They are turns of one loop: a compiler
    for TPUs takes seconds for each search of a border.
    """
    vocab = logits.shape[-1]
    first_k = jnp.where(rows.top_k > 0, rows.top_k, vocab).astype(jnp.float32)
    asked = jnp.stack([first_k < vocab, rows.top_p < 1, rows.typical_p < 1])
    wanted = jnp.stack([first_k, rows.top_p, rows.typical_p])

    def by_score(x: Array, p: Array) -> tuple[Array, Array]:
        return -x, jnp.ones_like(x)

    def by_probability(x: Array, p: Array) -> tuple[Array, Array]:
        return -p, p

    def by_surprise(x: Array, p: Array) -> tuple[Array, Array]:  # typical_p: Meister et al. 2022, arXiv:2202.00666
        surprise = jnp.where(p > 0, -jax.nn.log_softmax(x, axis=-1), 0.0)
        entropy = jnp.sum(p * surprise, axis=-1, keepdims=True)
        return jnp.where(p > 0, jnp.abs(surprise - entropy), jnp.inf), p

    def min_p(x: Array) -> Array:
        best = jnp.max(x, axis=-1, keepdims=True)
        return jnp.where(x - best >= jnp.log(rows.min_p)[:, None], x, BANNED)

    def turn(i: Array, x: Array) -> Array:
        def kept(x: Array) -> Array:
            p = jax.nn.softmax(x, axis=-1)
            order, weights = lax.switch(i, (by_score, by_probability, by_surprise), x, p)
            return _where_row(asked[i], _keep_smallest(x, order, weights, wanted[i]), x)

        x = _when((rows.min_p > 0) & (i == 2), min_p, x)
        return _when(asked[i], kept, x)

    return lax.fori_loop(0, 3, turn, logits)


def draw(logits: Array, seed: Array, position: Array) -> Array:
    """A token i32[s] from softmax(logits): the best of logits plus Gumbel noise (Gumbel 1954; Maddison et al. 2014).

    Each token's noise depends on (seed, position, token) alone. Logits differ in their last bits between a batch of 1
    and one of 32; that can change the winner only where two tokens are all but tied. Inverting a cumulative sum would
    move every border in the vocabulary.
    """
    return jnp.argmax(logits + jax.vmap(lambda s, p: noise(s, p, logits.shape[1]))(seed, position), axis=-1).astype(
        jnp.int32
    )


def noise(seed: Array, position: Array, vocab: int) -> Array:
    """Gumbel noise f32[v] of a seed u32[2] at a position: the same in any batch, on any worker.

    Threefry makes two words of (seed, position); each token's number is a hash of them and its id. Threefry for every
    token would cost a CPU half as much as the model at 32 rows.
    """
    first, second = noise_key(seed, position)
    bits = _mixed(_mixed(jnp.arange(vocab, dtype=jnp.uint32) + first) ^ second)
    # 23 bits and a half are a number that float32 holds exactly: never 0 or 1, whose logarithms are not finite.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(uniform))


def noise_key(seed: Array, position: Array) -> Array:
    """The two words u32[2] that a row's noise at a position is made of."""
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
    return jax.random.key_data(key)


def _mixed(x: Array) -> Array:
    """A bijection of uint32 that spreads each bit over all (xorshift and multiply, constants of Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def logprobs_of(logits: Array, chosen: Array) -> Logprobs:
    """Log probabilities under softmax(logits), logits f32[r, v], of `chosen` i32[r] and of the MAX_LOGPROBS best."""
    norm = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0]
    top, ids = lax.platform_dependent(logits, tpu=_top_k_by_turns, default=_top_k)
    rank = 1 + jnp.sum(logits > own[:, None], axis=-1, dtype=jnp.int32)
    return Logprobs(own - norm, rank, ids.astype(jnp.int32), top - norm[:, None])


def no_logprobs(rows: int, vocab: int) -> Logprobs:
    """What takes the place of `logprobs_of` when nobody reads it."""
    best = min(MAX_LOGPROBS, vocab)
    return Logprobs(
        jnp.zeros(rows), jnp.zeros(rows, jnp.int32), jnp.zeros((rows, best), jnp.int32), jnp.zeros((rows, best))
    )


def _top_k(logits: Array) -> tuple[Array, Array]:
    """The MAX_LOGPROBS best of each row, best first."""
    top, ids = lax.top_k(logits, min(MAX_LOGPROBS, logits.shape[1]))
    return top, ids


def _top_k_by_turns(logits: Array) -> tuple[Array, Array]:
    """The same: the best, then the best of the others, and so on.

    For a TPU's compiler `top_k` of a vocabulary is a sort, which takes it half a minute.
    """
    rows, vocab = logits.shape
    count = min(MAX_LOGPROBS, vocab)
    index = jnp.arange(vocab, dtype=jnp.int32)

    def turn(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, top, ids = carry
        best = jnp.argmax(left, axis=-1).astype(jnp.int32)
        top, ids = top.at[:, i].set(jnp.max(left, axis=-1)), ids.at[:, i].set(best)
        return jnp.where(index == best[:, None], -jnp.inf, left), top, ids

    start = (logits, jnp.zeros((rows, count), logits.dtype), jnp.zeros((rows, count), jnp.int32))
    _, top, ids = lax.fori_loop(0, count, turn, start)
    return top, ids


def _by_row(change: Callable[..., Array], *arrays: Array) -> Array:
    """`change` of each row. Scattering into all rows at once is a sort for a TPU's compiler, which takes it minutes."""
    changed: Array = lax.platform_dependent(*arrays, tpu=partial(_one_by_one, change), default=jax.vmap(change))
    return changed


def _one_by_one(change: Callable[..., Array], *arrays: Array) -> Array:
    mapped: Array = lax.map(lambda row: change(*row), arrays)
    return mapped


def _add_to(row: Array, ids: Array, values: Array) -> Array:
    return row.at[ids].add(values, mode="drop")


def _ban(row: Array, ids: Array) -> Array:
    return row.at[ids].set(BANNED, mode="drop")


def _heated(logits: Array, rows: Slots) -> Array:
    return logits / jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]


def _when(rows: Array, stage: Callable[[Array], Array], logits: Array) -> Array:
    """Run a stage if any row wants it; a stage leaves rows at neutral values as they are."""
    return lax.cond(jnp.any(rows), stage, lambda x: x, logits)


def _where_row(rows: Array, yes: Array, no: Array) -> Array:
    return jnp.where(rows[:, None], yes, no)


def _or_outside(ids: Array, logits: Array) -> Array:
    """NO_TOKEN becomes an index past the vocabulary, which a scatter drops (a negative one would wrap around)."""
    return jnp.where(ids == NO_TOKEN, logits.shape[-1], ids)


def _keep_smallest(logits: Array, order: Array, weights: Array, wanted: Array) -> Array:
    """Ban all but the tokens first in `order` whose weights add up to `wanted` [s]: the shortest such set, with ties.

    It bisects over the 2^32 float32 values of the border, in their order as integers: 32 masked sums, exact,
    and nothing is sorted.
    """
    keys = _ordered(order)

    def halve(_: int, span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span  # the border is in [low, high]
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(keys <= middle[:, None], weights, 0.0), axis=-1) >= wanted
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    rows = logits.shape[0]
    span = (jnp.zeros(rows, jnp.uint32), jnp.full(rows, 0xFFFFFFFF, jnp.uint32))
    _, border = lax.fori_loop(0, 32, halve, span)
    return jnp.where(keys <= border[:, None], logits, BANNED)


def _ordered(values: Array) -> Array:
    """float32 -> uint32 with the same order (negative numbers' bits run backwards)."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(0x80000000))
