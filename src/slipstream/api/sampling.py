"""Sampling parameters, under vLLM's names, and their form for the engine, which knows token ids only."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence

import msgspec

from slipstream.errors import RequestError

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP = 16
MAX_STOP_TOKENS = 64
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 16


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to sample one request. Values that turn a step off are the defaults.

    `temperature` 0 is greedy. `top_k` 0 (or -1) keeps all. `seed` None draws one for the request. `logprobs` is the
    number of alternatives beside the sampled token, `prompt_logprobs` the same for each prompt token.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range. Raises RequestError naming the field."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise RequestError(f"{name} must be between {low} and {high}, got {value}", param=name)
        if self.top_p == 0 or self.typical_p == 0:
            name = "top_p" if self.top_p == 0 else "typical_p"
            raise RequestError(f"{name} must be over 0 and at most 1, got 0", param=name)
        if self.repetition_penalty == 0:
            raise RequestError("repetition_penalty must be over 0, got 0", param="repetition_penalty")
        for name, limit in _LENGTHS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and len(value) > limit:
                raise RequestError(f"{name} takes at most {limit} entries, got {len(value)}", param=name)
        if "" in self.stop_strings:
            raise RequestError("stop strings must not be empty", param="stop")
        if self.bad_words is not None and "" in self.bad_words:
            raise RequestError("bad_words must not be empty strings", param="bad_words")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", param="min_tokens"
            )
        for token, bias in (self.logit_bias or {}).items():
            if not -100 <= bias <= 100:
                raise RequestError(
                    f"logit_bias must be between -100 and 100, got {bias} for {token}", param="logit_bias"
                )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def for_tokens(
        self,
        *,
        child: int,
        seed: int,
        max_tokens: int,
        eos_token_ids: Sequence[int],
        vocab_size: int,
        encode_bad_word: Callable[[str], Sequence[Sequence[int]]] | None,
    ) -> TokenSampling:
        """The engine's form for choice number `child` (0..n-1) of the request.

        `seed`: the request's (drawn where the user gave none); choice i takes seed + i. `max_tokens`: the user's, or
        what the context leaves. `encode_bad_word` gives the token sequences that spell a word (at its start and after
        a space); None where there is no tokenizer. Raises RequestError for ids outside the vocabulary.
        """
        ids = {"stop_token_ids": self.stop_token_ids or [], "logit_bias": list(self.logit_bias or {})}
        for name, values in ids.items():
            wrong = next((i for i in values if not 0 <= i < vocab_size), None)
            if wrong is not None:
                raise RequestError(f"{name}: token id {wrong} is outside the vocabulary of {vocab_size}", param=name)
        bad: list[tuple[int, ...]] = []
        if self.bad_words:
            if encode_bad_word is None:
                raise RequestError("bad_words needs a tokenizer, and this model has none", param="bad_words")
            bad = list(dict.fromkeys(tuple(ids) for word in self.bad_words for ids in encode_bad_word(word)))
            if len(bad) > 2 * MAX_BAD_WORDS or any(len(ids) > MAX_BAD_WORD_TOKENS for ids in bad):
                raise RequestError(
                    f"bad_words: at most {MAX_BAD_WORDS} words of {MAX_BAD_WORD_TOKENS} tokens each", param="bad_words"
                )
        eos = () if self.ignore_eos else tuple(eos_token_ids)
        return TokenSampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
            seed=(seed + child) % 2**64,
            max_tokens=max_tokens,
            min_tokens=min(self.min_tokens, max_tokens),
            stop_token_ids=tuple(dict.fromkeys([*eos, *(self.stop_token_ids or ())])),
            bad_token_ids=tuple(bad),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )


class TokenSampling(msgspec.Struct, frozen=True, kw_only=True):
    """`SamplingParams` in token ids, complete: every value set, eos merged into `stop_token_ids`.

    The random key of a token is (seed, position in the sequence): nothing else in a batch can change it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    bad_token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def draw_seed() -> int:
    """A seed for a request that gave none; the front draws it so that a replay on another worker repeats it."""
    return secrets.randbits(63)


_INT_MAX = 2**31 - 1
_RANGES: Mapping[str, tuple[float, float]] = {
    "n": (1, 128),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (-1, _INT_MAX),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "seed": (-(2**63), 2**64 - 1),
    "max_tokens": (1, _INT_MAX),
    "min_tokens": (0, _INT_MAX),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_LENGTHS: Mapping[str, int] = {
    "stop": MAX_STOP,
    "stop_token_ids": MAX_STOP_TOKENS,
    "logit_bias": MAX_LOGIT_BIAS,
    "bad_words": MAX_BAD_WORDS,
}
