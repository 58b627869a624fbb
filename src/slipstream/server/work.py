"""A completion request, made ready to run: what chat and text completions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from slipstream.api.engine import EngineRequest
from slipstream.api.openai import SamplingFields
from slipstream.api.replies import CachedTokens, Usage
from slipstream.api.sampling import SamplingParams, draw_seed
from slipstream.errors import RequestError
from slipstream.server.call import Call
from slipstream.server.front import Front
from slipstream.server.prompts import Prompt
from slipstream.text.choice import Choice, Delta


@dataclass(frozen=True)
class Work:
    """The choices of a request: the n of its first prompt, then those of the next. `top`: logprob alternatives."""

    id: str
    created: int
    model: str
    params: SamplingParams
    prompts: Sequence[Prompt]
    choices: Sequence[Choice]
    top: int | None
    return_token_ids: bool
    include_usage: bool
    continuous_usage: bool

    def usage(self) -> Usage:
        """The token counts so far. Of a prompt's n replies the first tells how much of it was cached."""
        prompt = sum(len(p.token_ids) for p in self.prompts)
        output = sum(choice.output_tokens for choice in self.choices)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=CachedTokens(self.cached_tokens),
        )

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens served from the prefix cache."""
        return sum(choice.cached_tokens for choice in self.choices[:: self.params.n])


class Replies(Protocol):
    """How one kind of completion writes its answer."""

    @property
    def work(self) -> Work:
        """What is being answered."""

    def whole(self, replies: Sequence[Delta]) -> msgspec.Struct:
        """The answer, from each choice's whole delta, in order."""

    def opening(self) -> list[msgspec.Struct]:
        """The chunks that come before any text."""

    def chunks(self, choice: Choice, delta: Delta) -> list[msgspec.Struct]:
        """The chunks of what a choice has gained."""

    def closing(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, with the usage and no choice."""


def make_work(
    front: Front,
    request: SamplingFields,
    call: Call,
    *,
    id: str,
    params: SamplingParams,
    prompts: Sequence[Prompt],
    max_tokens: Sequence[int],
    top: int | None,
    score_only: bool = False,
) -> Work:
    """The engine's requests and their choices; `max_tokens` has one entry for each prompt.

    Raises RequestError for token ids, words or stop strings that this model cannot take.
    """
    if params.stop_strings and front.tokenizer is None:
        raise RequestError(
            "stop needs a tokenizer, and this model has none: use stop_token_ids", param="stop", code="no_tokenizer"
        )
    seed = draw_seed() if params.seed is None else params.seed
    eos = front.generation.eos_token_ids
    choices = []
    for i, prompt in enumerate(prompts):
        for child in range(params.n):
            index = i * params.n + child
            sampling = params.for_tokens(
                child=child,
                seed=seed,
                max_tokens=max_tokens[i],
                eos_token_ids=eos,
                vocab_size=front.client.info.vocab_size,
                encode_bad_word=None if front.tokenizer is None else front.tokenizer.bad_word_ids,
            )
            engine_request = EngineRequest(
                id=f"{id}-{index}",
                prompt_token_ids=prompt.token_ids,
                sampling=sampling,
                priority=request.priority or 0,
                arrival=call.arrival,
            )
            choices.append(
                Choice(
                    index,
                    engine_request,
                    front.tokenizer,
                    stop=params.stop_strings,
                    skip_special=params.skip_special_tokens,
                    include_stop=params.include_stop_str_in_output,
                    min_tokens=params.min_tokens,
                    # A stop token that the caller named is worth naming back, even if it is the model's own.
                    eos_token_ids=tuple(t for t in eos if t not in (params.stop_token_ids or ())),
                    score_only=score_only,
                )
            )
    options = request.stream_options
    include_usage = options is not None and bool(options.include_usage)
    return Work(
        id=id,
        created=int(call.arrival_ns // 10**9),
        model=front.model,
        params=params,
        prompts=prompts,
        choices=choices,
        top=top,
        # Without a tokenizer the ids are all that there is to send.
        return_token_ids=bool(request.return_token_ids) or front.tokenizer is None,
        include_usage=include_usage,
        continuous_usage=include_usage and options is not None and bool(options.continuous_usage_stats),
    )
