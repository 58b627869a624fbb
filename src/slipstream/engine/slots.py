"""Per-sequence state on the device: every running sequence's tokens and its sampling values, a row ("slot") each.

A step names slots and positions only. It reads the tokens that it computes from the history here and writes the one
that it samples back, so the next step can start before the host has read anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from slipstream.api.sampling import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKENS,
    TokenSampling,
)

NO_TOKEN = -1
STOP_COLUMNS = MAX_STOP_TOKENS + 16  # the user's and the checkpoint's own


class Column:
    """One of the values of `TokenSampling` in a row of an i32 array: some columns of it, read as another type."""

    def __init__(self, array: str, at: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.array, self.shape, self.dtype = array, shape, np.dtype(dtype)
        self.columns = slice(at, at + prod(shape))

    def __get__(self, slots: Any, owner: Any = None) -> Any:
        """The values [slots, *shape] of all rows."""
        if slots is None:
            return self
        rows = getattr(slots, self.array)[:, self.columns]
        rows = rows.reshape(rows.shape[0], *self.shape)
        return rows != 0 if self.dtype == np.bool_ else lax.bitcast_convert_type(rows, self.dtype)

    def put(self, row: np.ndarray, value: Any) -> None:
        """Write the value into one row of the array."""
        made = np.asarray(value, np.int32 if self.dtype == np.bool_ else self.dtype)
        row[self.columns] = np.broadcast_to(made, self.shape).reshape(-1).view(np.int32)


class _Layout:
    """Hands out the columns of one array, from the left."""

    def __init__(self, array: str) -> None:
        self.array, self.width = array, 0

    def __call__(self, dtype: Any, *shape: int) -> Column:
        column = Column(self.array, self.width, shape, dtype)
        self.width += prod(shape)
        return column


_QUICK, _REST = _Layout("quick"), _Layout("rest")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """`history` i32[slots, max_len + 1], the tokens by position; `quick` and `rest` hold a row of `TokenSampling` each.

    The two are i32[slots, c], since each array that a step is handed costs the host time. They are read by name:
    `slots.top_p` f32[slots] and so on, as the class says. `min_len`: length before which stop tokens are banned.
    `stop_ids`, `bias_ids` and `bad_words` are filled with -1; a bad word's tokens stand at the right end of its row.
    `seed`: high word first. `logprobs`, `prompt_logprobs`: whether anyone will read them.
    """

    history: Array
    quick: Array
    rest: Array

    # The native kernel that draws reads these, in this order.
    temperature = _QUICK(np.float32)
    top_p = _QUICK(np.float32)
    min_p = _QUICK(np.float32)
    top_k = _QUICK(np.int32)
    seed = _QUICK(np.uint32, 2)

    prompt_len = _REST(np.int32)
    min_len = _REST(np.int32)
    typical_p = _REST(np.float32)
    repetition_penalty = _REST(np.float32)
    frequency_penalty = _REST(np.float32)
    presence_penalty = _REST(np.float32)
    logprobs = _REST(np.bool_)
    prompt_logprobs = _REST(np.bool_)
    stop_ids = _REST(np.int32, STOP_COLUMNS)
    bias_ids = _REST(np.int32, MAX_LOGIT_BIAS)
    bias = _REST(np.float32, MAX_LOGIT_BIAS)
    bad_words = _REST(np.int32, 2 * MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS)

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


_COLUMNS = {name: column for name, column in vars(Slots).items() if isinstance(column, Column)}
_PLAIN = (
    "temperature", "top_p", "min_p", "top_k", "typical_p",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip


def slot_row(tokens: Sequence[int], prompt_len: int, sampling: TokenSampling, max_len: int) -> Slots:
    """One sequence's row, as numpy arrays without the slot axis. `tokens`: prompt and known output, to max_len + 1."""
    seed = sampling.seed % 2**64
    bad = np.full((2 * MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), NO_TOKEN, np.int32)
    for i, word in enumerate(sampling.bad_token_ids):
        bad[i, -len(word) :] = word
    values: dict[str, Any] = {name: getattr(sampling, name) for name in _PLAIN} | {
        "prompt_len": prompt_len,
        "min_len": prompt_len + sampling.min_tokens,
        "seed": np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        "stop_ids": _filled(sampling.stop_token_ids, STOP_COLUMNS),
        "bias_ids": _filled([token for token, _ in sampling.logit_bias], MAX_LOGIT_BIAS),
        "bias": _filled([bias for _, bias in sampling.logit_bias], MAX_LOGIT_BIAS, np.float32(0)),
        "bad_words": bad,
        "logprobs": sampling.logprobs is not None,
        "prompt_logprobs": sampling.prompt_logprobs is not None,
    }
    rows = {layout.array: np.empty(layout.width, np.int32) for layout in (_QUICK, _REST)}
    for name, column in _COLUMNS.items():
        column.put(rows[column.array], values[name])
    return Slots(_filled(tokens, max_len + 1), **rows)  # type: ignore[arg-type]


def _filled(values: Sequence[float], size: int, blank: np.generic | None = None) -> np.ndarray:
    """`values` at the left of an array of `size` blanks (NO_TOKEN, int32, unless told otherwise)."""
    out = np.full(size, np.int32(NO_TOKEN) if blank is None else blank)
    out[: len(values)] = values
    return out
