"""The one jitted step: tokens of many sequences in, a sampled token a row out. Prefill and decode are the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from slipstream.engine.sampler import (
    CHOOSE,
    QUICK,
    Logprobs,
    adjusted_where_asked,
    logprobs_of,
    no_logprobs,
    quick_sample,
    sample,
)
from slipstream.engine.shapes import Shape
from slipstream.engine.slots import Slots
from slipstream.kernels.native.memory import split_native
from slipstream.kernels.ragged import Kernels, KVCache, Step
from slipstream.models.registry import Family

DONATED = (1, 2)  # arguments of a step that it updates in place
SAMPLES, SPECIAL = 1, 2  # bits of what a row wants: a token; something that `quick_sample` does not do
PROMPT_BLOCK = 32  # prompt positions whose logits are live at once: a whole chunk's would outweigh the model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What the host says about a step of s rows: `starts` i32[s+1], `lengths` i32[s], `pages` i32[s, p] as in `Step`.

    `slots` i32[s]: each row's slot. `samples` bool[s]: rows whose next token is drawn. `special` bool[]: whether any
    row asks for more than `quick_sample` does.
    """

    starts: Array
    lengths: Array
    pages: Array
    slots: Array
    samples: Array
    special: Array

    @classmethod
    def of(cls, flat: Array, rows: int, kernels: Kernels) -> Batch:
        """From all of it in one i32 array, as `flat_sizes` lays it out: the host hands over one array, not five."""
        sizes = flat_sizes(rows, 0)[:-1]
        shapes = [*((size,) for size in sizes), (rows, (flat.size - sum(sizes)) // rows)]
        starts, lengths, slots, wants, pages = SPLIT[kernels](flat, shapes)
        return cls(starts, lengths, pages, slots, wants & SAMPLES != 0, jnp.any(wants & SPECIAL != 0))


def split(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes from the numbers of `flat`, in order."""
    ends = np.cumsum([prod(shape) for shape in shapes])[:-1].tolist()
    return [part.reshape(shape) for part, shape in zip(jnp.split(flat, ends), shapes, strict=True)]


SPLIT: dict[Kernels, Callable[[Array, Sequence[tuple[int, ...]]], list[Array]]] = {
    "reference": split,
    "cpu": split_native,
    "pallas_tpu": split,
    "pallas_gpu": split,
    "cudnn": split,
}


def flat_sizes(rows: int, pages_per_row: int) -> tuple[int, ...]:
    """Numbers of starts, lengths, slots, wants (bits SAMPLES, SPECIAL) and pages of that many rows, in this order."""
    return rows + 1, rows, rows, rows, rows * pages_per_row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What lives on the device from step to step: the cache, and the slots' two parts (`Slots.apart`).

    A step changes the cache and the history, in place.
    """

    cache: KVCache
    history: Array
    wishes: Slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """A step's results: `tokens` i32[s], their log probabilities, and those of the t prompt positions it computed.

    `prompt` describes, for each packed token, the prompt token that follows it; None in decode-only shapes.
    """

    tokens: Array
    logprobs: Logprobs
    prompt: Logprobs | None


def make_step(
    family: Family, config: Any, shape: Shape, kernels: Kernels, *, interpreted: bool = False
) -> Callable[[Any, KVCache, Array, Slots, Array], tuple[KVCache, Array, Sampled]]:
    """The step of one shape, a pure function to be jitted with `cache` and `history` donated (`DONATED`).

    `wishes` are the slots without their history, and `flat` is a `Batch`. What does not change is no result: every
    array that goes in and out of a call costs the host time.
    """

    def step(
        weights: Any, cache: KVCache, history: Array, wishes: Slots, flat: Array
    ) -> tuple[KVCache, Array, Sampled]:
        slots = replace(wishes, history=history)
        batch = Batch.of(flat, shape.rows, kernels)
        ragged = Step.of(
            batch.starts, batch.lengths, batch.pages, shape.tokens, decode_only=shape.decode_only, kernels=kernels,
            interpreted=interpreted,
        )  # fmt: skip
        count = batch.lengths.shape[0]
        token_slot = batch.slots[jnp.minimum(ragged.rows, count - 1)]
        ids = jnp.maximum(history[token_slot, ragged.positions], 0)
        x, cache = family.forward(weights, config, ids, ragged, cache)

        if shape.decode_only:
            last, real = x, ragged.real
        else:
            last = x[jnp.maximum(batch.starts[1:] - 1, 0)]
            real = jnp.sum(batch.lengths > 0, dtype=jnp.int32)  # they come first
        logits = family.unembed(weights, config, last, real)

        where = (slots, batch.slots, batch.lengths)
        no_one_reads = partial(no_logprobs, count, logits.shape[1])

        def read(drawn: Array) -> Logprobs:
            asked = jnp.any(slots.logprobs[batch.slots] & batch.samples)
            return lax.cond(asked, lambda: logprobs_of(logits, drawn), no_one_reads)

        def special() -> tuple[Array, Logprobs]:
            drawn = sample(logits, *where, count=real, kernels=kernels)
            return drawn, read(drawn)

        def quick() -> tuple[Array, Logprobs]:
            return quick_sample(logits, *where, count=real, kernels=kernels), no_one_reads()

        if QUICK[kernels] is CHOOSE[kernels]:
            # One choice serves both: with two of them half of a TPU's compile time would go there.
            changed = lax.cond(batch.special, lambda: adjusted_where_asked(logits, *where), lambda: logits)
            drawn = quick_sample(changed, *where, count=real, kernels=kernels)
            logprobs = lax.cond(batch.special, lambda: read(drawn), no_one_reads)
        else:
            drawn, logprobs = lax.cond(batch.special, special, quick)
        prompt = None
        if not shape.decode_only:
            prompt = prompt_logprobs(family, weights, config, x, slots, ragged, token_slot, logits.shape[1])

        slot = jnp.where(batch.samples, batch.slots, history.shape[0])  # rows that draw nothing write nothing
        history = history.at[slot, batch.lengths].set(drawn, mode="drop")
        return cache, history, Sampled(drawn, logprobs, prompt)

    return step


def prompt_logprobs(
    family: Family, weights: Any, config: Any, x: Array, slots: Slots, step: Step, token_slot: Array, vocab: int
) -> Logprobs:
    """Log probabilities of the tokens that follow each packed one, for rows that ask; zeros where nobody does."""
    tokens = x.shape[0]
    following = jnp.minimum(step.positions + 1, slots.history.shape[1] - 1)
    target = jnp.maximum(slots.history[token_slot, following], 0)
    real = step.rows < step.lengths.shape[0]
    wanted = real & slots.prompt_logprobs[token_slot] & (step.positions + 1 < slots.prompt_len[token_slot])
    blocks = -(-tokens // PROMPT_BLOCK)
    pad = blocks * PROMPT_BLOCK - tokens

    def block(part: tuple[Array, Array]) -> Logprobs:
        hidden, ids = part
        return logprobs_of(family.unembed(weights, config, hidden), ids)

    def compute() -> Logprobs:
        hidden = jnp.pad(x, ((0, pad), (0, 0))).reshape(blocks, PROMPT_BLOCK, -1)
        found = lax.map(block, (hidden, jnp.pad(target, (0, pad)).reshape(blocks, PROMPT_BLOCK)))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:tokens], found)

    return lax.cond(jnp.any(wanted), compute, lambda: no_logprobs(tokens, vocab))


def admit(history: Array, wishes: Slots, slot: Array, row: Slots) -> tuple[Array, Slots]:
    """Give a slot to a sequence: its tokens so far and its sampling values."""
    return replace(wishes, history=history).admit(slot, row).apart()
