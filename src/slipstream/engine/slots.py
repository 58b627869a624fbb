"""Per-sequence state on the device: every running sequence's tokens and its sampling values, a row ("slot") each.

A step names slots and positions only. It reads the tokens that it computes from the history here and writes the one
that it samples back, so the next step can start before the host has read anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.api.sampling import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKENS,
    TokenSampling,
)

NO_TOKEN = -1
_NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
STOP_COLUMNS = MAX_STOP_TOKENS + 16  # the user's and the checkpoint's own


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """`history` i32[slots, max_len + 1], the tokens by position; the rest is one row of `TokenSampling` each.

    `min_len`: length before which stop tokens are banned. `stop_ids` i32[slots, q], `bias_ids` i32[slots, q] and
    `bad_words` i32[slots, q, r] are filled with -1; a bad word's tokens stand at the right end of its row. `bias`
    f32[slots, q]. `seed` u32[slots, 2], high word first. `logprobs`, `prompt_logprobs`: whether anyone will read them.
    """

    history: Array
    prompt_len: Array
    min_len: Array
    seed: Array
    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    typical_p: Array
    repetition_penalty: Array
    frequency_penalty: Array
    presence_penalty: Array
    stop_ids: Array
    bias_ids: Array
    bias: Array
    bad_words: Array
    logprobs: Array
    prompt_logprobs: Array

    @classmethod
    def empty(cls, slots: int, max_len: int) -> Slots:
        """Slots that hold nothing."""
        blank = slot_row([], 0, TokenSampling(), max_len)
        return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], slots, axis=0), blank)

    def apart(self) -> tuple[Array, Slots]:
        """The history, which each step changes, and all the rest, which it only reads; its history is None."""
        return self.history, replace(self, history=None)  # type: ignore[arg-type]

    def rows(self, slot: Array) -> Slots:
        """The rows of the slots i32[s]."""
        return jax.tree.map(lambda leaf: leaf[slot], self)

    def wishes(self, slot: Array) -> Slots:
        """The rows of the slots i32[s] without their history: that is long, and most steps do not read it."""
        _, wishes = self.apart()
        return wishes.rows(slot)

    def admit(self, slot: Array, row: Slots) -> Slots:
        """Overwrite one slot with a row from `slot_row`."""
        return jax.tree.map(lambda leaf, value: leaf.at[slot].set(value), self, row)


def slot_row(tokens: Sequence[int], prompt_len: int, sampling: TokenSampling, max_len: int) -> Slots:
    """One sequence's row, as numpy arrays without the slot axis. `tokens`: prompt and known output, to max_len + 1."""
    seed = sampling.seed % 2**64
    values: dict[str, Any] = {name: np.float32(getattr(sampling, name)) for name in _NUMBERS}
    bad = np.full((2 * MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), NO_TOKEN, np.int32)
    for i, word in enumerate(sampling.bad_token_ids):
        bad[i, -len(word) :] = word
    values |= {
        "history": _filled(tokens, max_len + 1),
        "prompt_len": np.int32(prompt_len),
        "min_len": np.int32(prompt_len + sampling.min_tokens),
        "seed": np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        "top_k": np.int32(sampling.top_k),
        "stop_ids": _filled(sampling.stop_token_ids, STOP_COLUMNS),
        "bias_ids": _filled([token for token, _ in sampling.logit_bias], MAX_LOGIT_BIAS),
        "bias": _filled([bias for _, bias in sampling.logit_bias], MAX_LOGIT_BIAS, np.float32(0)),
        "bad_words": bad,
        "logprobs": np.bool_(sampling.logprobs is not None),
        "prompt_logprobs": np.bool_(sampling.prompt_logprobs is not None),
    }
    return Slots(**values)


def _filled(values: Sequence[float], size: int, blank: np.generic | None = None) -> np.ndarray:
    """`values` at the left of an array of `size` blanks (NO_TOKEN, int32, unless told otherwise)."""
    out = np.full(size, np.int32(NO_TOKEN) if blank is None else blank)
    out[: len(values)] = values
    return out
