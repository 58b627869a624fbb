"""From texts to what an engine that pools computes, and from its vectors to what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.api.engine import PoolingInfo
from slipstream.errors import PromptTooLong, RequestError
from slipstream.text.pairs import Pooled, encode_prompted
from slipstream.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scoring:
    """How pairs of texts are scored: what the engine is to compute, and what makes scores of its vectors."""

    inputs: list[Pooled]
    scores: Callable[[Sequence[np.ndarray]], list[float]]


def limit_of(asked: int | None, longest: int) -> int | None:
    """Tokens to cut to, None where nothing is to be cut. Raises RequestError for a limit that cannot be."""
    if asked is None:
        return None
    if asked == -1:
        return longest
    if not 1 <= asked <= longest:
        raise RequestError(
            f"truncate_prompt_tokens must be -1, or from 1 to the {longest} tokens that the model takes, got {asked}",
            param="truncate_prompt_tokens",
        )
    return asked


def check_length(count: int, longest: int, param: str) -> None:
    """Raises PromptTooLong for more tokens than the model takes."""
    if count > longest:
        raise PromptTooLong(
            f"{param} has {count} tokens, and the model takes at most {longest}: shorten it, "
            "or send truncate_prompt_tokens to have it cut",
            param=param,
            code="context_length_exceeded",
        )


def check_dimensions(asked: int | None, info: PoolingInfo) -> None:
    """Raises RequestError for a size that the model's vectors cannot be cut to."""
    if asked is None or asked == info.size:
        return
    allowed = info.dimensions
    if allowed is None:
        raise RequestError(
            f"this model's vectors have {info.size} numbers and cannot be cut: leave dimensions out "
            '(a model that was trained for it says "is_matryoshka": true in its config.json)',
            param="dimensions",
            code="unsupported_field",
        )
    if not 1 <= asked <= info.size or (allowed and asked not in allowed):
        which = f"one of {', '.join(map(str, allowed))}" if allowed else f"from 1 to {info.size}"
        raise RequestError(f"dimensions must be {which}, got {asked}", param="dimensions")


def finished(vector: np.ndarray, *, dimensions: int | None, normalize: bool) -> np.ndarray:
    """An engine's vector cut to `dimensions`, of length 1 where asked; zeros stay zeros. float32."""
    cut = vector[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(cut)) if normalize else 1.0
    return (cut / max(length, 1e-12)).astype(np.float32)


def pairs(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, str]]:
    """One text with each of the others, or two lists side by side. Raises RequestError for lists of other lengths."""
    left = [first] if isinstance(first, str) else list(first)
    right = [second] if isinstance(second, str) else list(second)
    for name, texts in (("text_1", left), ("text_2", right)):
        if not texts:
            raise RequestError(f"{name} is empty: send at least one text", param=name, code="empty_prompt")
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise RequestError(
            f"text_1 has {len(left)} texts and text_2 {len(right)}: send as many, or one text_1", param="text_2"
        )
    return list(zip(left, right, strict=True))


def scoring(
    tokenizer: Tokenizer,
    info: PoolingInfo,
    longest: int,
    texts: Sequence[tuple[str, str]],
    *,
    most: int | None,
    instruction: str | None = None,
) -> Scoring:
    """How to score pairs: by a model that reads both together, or by the cosine of the vectors of each.

    `instruction`: what is asked of a model that is prompted, in place of its own words. Raises RequestError for another
    model. Raises PromptTooLong for a pair, or a text, of more than `longest` tokens, where `most` does not cut it.
    """
    if instruction is not None and not info.prompted:
        raise RequestError(
            "this model takes no instruction: write it into the texts", param="instruction", code="unsupported_field"
        )
    if info.task == "score":
        inputs = [_pair(tokenizer, info, a, b, instruction, most) for a, b in texts]
        for i, one in enumerate(inputs):
            check_length(len(one.token_ids), longest, f"pair {i}")
        return Scoring(inputs, lambda vectors: [float(vector[0]) for vector in vectors])
    place: dict[str, int] = {}
    for text in (text for pair in texts for text in pair):  # one that is in several pairs is computed once
        place.setdefault(text, len(place))
    singles = [Pooled(tokenizer.encode_cut(text, most=most)) for text in place]
    for i, single in enumerate(singles):
        check_length(len(single.token_ids), longest, f"text {i}")

    def cosines(vectors: Sequence[np.ndarray]) -> list[float]:
        units = [finished(vector, dimensions=None, normalize=True).astype(np.float64) for vector in vectors]
        return [float(units[place[a]] @ units[place[b]]) for a, b in texts]

    return Scoring(singles, cosines)


def _pair(
    tokenizer: Tokenizer, info: PoolingInfo, first: str, second: str, instruction: str | None, most: int | None
) -> Pooled:
    if info.prompted:
        return encode_prompted(tokenizer, first, second, instruction or info.instruction, most=most)
    return Pooled(*tokenizer.encode_pair(first, second, most=most))
