"""POST /v1/completions: from prompts to work, and from the choices to OpenAI's completion shapes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from slipstream.api.openai import CompletionRequest, refuse_unless_neutral
from slipstream.api.replies import Completion, CompletionChoice, CompletionLogprobs, PromptLogprobs, Usage
from slipstream.api.sampling import MAX_LOGPROBS
from slipstream.errors import RequestError
from slipstream.server.call import Call
from slipstream.server.front import Front, new_id
from slipstream.server.logprobs import TokenNames
from slipstream.server.prompts import encode, split
from slipstream.server.sampling import check_shared, room, sampling_params
from slipstream.server.work import Work, make_work
from slipstream.text.choice import Choice, Delta

DEFAULT_MAX_TOKENS = 16


def count(request: CompletionRequest) -> int:
    """Sequences that the request will run. Raises RequestError for a prompt of no known form."""
    return len(split(request.prompt)) * max(1, request.n or 1)


async def prepare(front: Front, request: CompletionRequest, call: Call) -> CompletionReplies:
    """The request, ready to run. Raises RequestError for what it asks for in vain."""
    check_shared(request, policy=front.client.info.policy)
    refuse_unless_neutral("suffix", request.suffix, ("",))
    refuse_unless_neutral("best_of", request.best_of, (request.n or 1,))
    echo = bool(request.echo)
    top = request.logprobs
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise RequestError(f"logprobs must be between 0 and {MAX_LOGPROBS}, got {top}", param="logprobs")
    # A reply of no tokens scores the prompt; the engine draws one, which is thrown away.
    score_only = echo and request.max_tokens == 0
    asked = 1 if score_only else request.max_tokens
    # An echo needs the prompt's log probabilities whether they were asked for under their own name or not.
    prompt_top = max((t for t in (request.prompt_logprobs, top if echo else None) if t is not None), default=None)
    params = sampling_params(
        request, front.generation.sampling, logprobs=top, max_tokens=asked, prompt_logprobs=prompt_top
    )
    prompts = await encode(front, split(request.prompt), add_special=request.add_special_tokens is not False)
    info = front.client.info
    rooms = [
        room(
            len(prompt.token_ids),
            max_model_len=info.max_model_len,
            max_prompt_tokens=front.config.max_prompt_tokens,
            param="prompt" if len(prompts) == 1 else f"prompt[{i}]",
            asked=None if asked is None else ("max_tokens", asked),
        )
        for i, prompt in enumerate(prompts)
    ]
    work = make_work(
        front,
        request,
        call,
        id=new_id("cmpl"),
        params=params,
        prompts=prompts,
        max_tokens=[min(left, DEFAULT_MAX_TOKENS) if asked is None else asked for left in rooms],
        top=top,
        score_only=score_only,
    )
    texts: list[str] | None = None
    tokenizer = front.tokenizer
    if echo:
        # What was sent as text comes back as it was, not as its tokens spell it.
        skip = params.skip_special_tokens
        texts = [
            prompt.text
            if prompt.text is not None
            else ""
            if tokenizer is None
            else tokenizer.decode(prompt.token_ids, skip_special=skip)
            for prompt in prompts
        ]
    return CompletionReplies(work, TokenNames(tokenizer), texts, request.prompt_logprobs)


class CompletionReplies:
    """Writes completions' answers; see `work.Replies`. `echo`: the prompts' texts, None without echo."""

    def __init__(self, work: Work, names: TokenNames, echo: Sequence[str] | None, prompt_top: int | None) -> None:
        self.work = work
        self._names = names
        self._echo = echo
        self._prompt_top = prompt_top
        self._begun: set[int] = set()

    def whole(self, replies: Sequence[Delta]) -> msgspec.Struct:
        """A text_completion."""
        choices = [self._choice(c, d) for c, d in zip(self.work.choices, replies, strict=True)]
        return self._completion(choices, self.work.usage())

    def opening(self) -> list[msgspec.Struct]:
        """Nothing: a text has no role."""
        return []

    def chunks(self, choice: Choice, delta: Delta) -> list[msgspec.Struct]:
        """One chunk, if there is anything to say."""
        fresh = self._echo is not None and choice.index not in self._begun
        ids = delta.token_ids if self.work.return_token_ids else []
        if not (delta.text or delta.positions or ids or delta.finish_reason or fresh):
            return []
        work = self.work
        usage: Usage | UnsetType | None = UNSET
        if work.include_usage:
            usage = work.usage() if work.continuous_usage else None
        return [self._completion([self._choice(choice, delta)], usage)]

    def closing(self, usage: Usage) -> msgspec.Struct:
        """The chunk of the usage."""
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        work = self.work
        return Completion(id=work.id, created=work.created, model=work.model, choices=choices, usage=usage)

    def _choice(self, choice: Choice, delta: Delta) -> CompletionChoice:
        """A choice's part; its first one has the prompt's text, ids and log probabilities."""
        first = choice.index not in self._begun
        self._begun.add(choice.index)
        work = self.work
        prompt = work.prompts[choice.index // work.params.n]
        echo = self._echo[choice.index // work.params.n] if self._echo is not None else ""
        prompt_logprobs: PromptLogprobs | UnsetType = UNSET
        if first and self._prompt_top is not None:
            prompt_logprobs = self._names.prompt(delta.prompt_logprobs or [], self._prompt_top)
        return CompletionChoice(
            index=choice.index,
            text=echo + delta.text if first else delta.text,
            logprobs=self._logprobs(delta, prompt.token_ids, echo, first=first),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason if delta.finish_reason is not None else UNSET,
            token_ids=delta.token_ids if work.return_token_ids else UNSET,
            prompt_token_ids=prompt.token_ids if work.return_token_ids and first else UNSET,
            prompt_logprobs=prompt_logprobs,
        )

    def _logprobs(
        self, delta: Delta, prompt_ids: Sequence[int], echo: str, *, first: bool
    ) -> CompletionLogprobs | None:
        top = self.work.top
        if top is None:
            return None
        reply = self._names.completion(delta.positions, top, shift=len(echo))
        if self._echo is None or not first:
            return reply
        skip = self.work.params.skip_special_tokens
        prompt = self._names.echoed(prompt_ids, delta.prompt_logprobs or [], top, skip_special=skip)
        return CompletionLogprobs(
            prompt.text_offset + reply.text_offset,
            prompt.token_logprobs + reply.token_logprobs,
            prompt.tokens + reply.tokens,
            prompt.top_logprobs + reply.top_logprobs,
        )
