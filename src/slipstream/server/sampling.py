"""From a request's fields to sampling parameters, with the checkpoint's own suggestions under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.api.openai import SamplingFields
from slipstream.api.sampling import SamplingParams
from slipstream.errors import PromptTooLong, RequestError, UnsupportedField

# Fields that go from a request to SamplingParams under the same name.
_SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "prompt_logprobs",
    "bad_words",
    "include_stop_str_in_output",
    "skip_special_tokens",
)
# Of a checkpoint's generation defaults, those that are sampling values; the number says whether they are whole.
_SUGGESTED = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
}


def sampling_params(request: SamplingFields, suggested: Mapping[str, float], **own: Any) -> SamplingParams:
    """The parameters. `own` has what an endpoint names differently (`logprobs`, `max_tokens`); None: not set.

    Raises RequestError naming the field for a value out of range.
    """
    values: dict[str, Any] = {name: kind(suggested[name]) for name, kind in _SUGGESTED.items() if name in suggested}
    values["max_tokens"] = None
    given = {name: getattr(request, name) for name in _SAME} | own
    values |= {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**values)


def check_shared(request: SamplingFields, *, policy: str) -> None:
    """Refuse combinations that both kinds of completion refuse. `policy`: the engine's order of waiting requests."""
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_combination")
    if request.stream and request.prompt_logprobs is not None:
        raise RequestError(
            "prompt_logprobs comes with the whole answer only: leave out stream",
            param="prompt_logprobs",
            code="invalid_combination",
        )
    check_priority(request.priority, policy)


def check_priority(priority: int | None, policy: str) -> None:
    """Refuse a priority that has no effect, or that is out of range."""
    if priority not in (None, 0) and policy != "priority":
        raise UnsupportedField(
            "priority has no effect under the engine's fcfs policy: start the server with --policy priority",
            param="priority",
            code="unsupported_field",
        )
    if priority is not None and abs(priority) >= 2**31:
        raise RequestError("priority must be between -2147483647 and 2147483647", param="priority")


def room(
    prompt_tokens: int, *, max_model_len: int, max_prompt_tokens: int | None, param: str, asked: tuple[str, int] | None
) -> int:
    """Tokens that the context leaves for a reply, at least one.

    `asked`: the field and the number of tokens that the request wants. Raises PromptTooLong with both numbers if the
    prompt, or the prompt and these, do not fit.
    """
    if max_prompt_tokens is not None and prompt_tokens > max_prompt_tokens:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and this server takes at most {max_prompt_tokens}",
            param=param,
            code="context_length_exceeded",
        )
    left = max_model_len - prompt_tokens
    if left < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and the model's context {max_model_len}: "
            "no room is left for a reply; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    if asked is not None and asked[1] > left:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and {asked[0]} asks for {asked[1]} more, "
            f"{prompt_tokens + asked[1]} in all; the model's context is {max_model_len}: "
            f"lower {asked[0]} to {left} or shorten the prompt",
            param=asked[0],
            code="context_length_exceeded",
        )
    return left
