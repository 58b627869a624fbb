"""What a prompt is to a caller in Python: text, token ids, or a dict with either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias, TypedDict, cast

from slipstream.errors import RequestError


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: list[int]


Prompt: TypeAlias = str | Sequence[int] | TextPrompt | TokensPrompt


def prompts_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, (str, Mapping)):
        return [cast(Prompt, prompts)]
    try:
        several = list(cast(Sequence[Prompt], prompts))
    except TypeError:
        raise _no_prompt(prompts) from None
    return [cast(Prompt, several)] if several and isinstance(several[0], Integral) else several


def text_or_ids(prompt: Prompt) -> str | list[int]:
    """What a prompt is made of. Raises RequestError for what is no prompt. Numpy's integers count as ids."""
    given: Any = prompt
    if isinstance(prompt, Mapping):
        if tuple(prompt) not in (("prompt",), ("prompt_token_ids",)):
            raise _no_prompt(prompt)
        [(key, given)] = prompt.items()
        if isinstance(given, str) is not (key == "prompt"):
            raise _no_prompt(prompt)
    if isinstance(given, str):
        return given
    try:
        ids = list(given)
    except TypeError:
        raise _no_prompt(prompt) from None
    if not all(isinstance(token, Integral) and not isinstance(token, bool) for token in ids):
        raise _no_prompt(prompt)
    return [int(token) for token in ids]


def _no_prompt(value: object) -> RequestError:
    """Names the type only: a prompt is nothing to print."""
    keys = f" with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, Mapping) else ""
    return RequestError(
        "a prompt is text, a list of token ids, or a dict with either `prompt` or `prompt_token_ids`, "
        f"got {type(value).__name__}{keys}",
        param="prompt",
    )
