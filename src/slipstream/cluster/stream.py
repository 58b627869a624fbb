"""One request's output between the worker's socket and its reader."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from slipstream.api.engine import EngineRequest, TokenLogprobs, TokenOutput
from slipstream.api.outputs import FinishReason
from slipstream.errors import RequestError


class Stream:
    """Everything that is known of a request in flight: enough to hand it out, and to replay it on another worker.

    Outputs that the reader has not taken are merged into one, so a slow reader costs the tokens and log probabilities
    themselves and no queue of objects. `fruitless` counts the workers that died with it in a row without giving it a
    token.
    """

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.finished = False
        self.fruitless = 0
        self._tokens: list[int] = []
        self._tokens_at_submit = 0
        self._taken = 0
        self._logprobs: list[TokenLogprobs] | None = None
        self._prompt_logprobs: list[TokenLogprobs] | None = None
        self._had_prompt_logprobs = False
        self._opening: TokenOutput | None = None
        self._had_opening = False
        self._finish_reason: FinishReason | None = None
        self._stop_reason: int | None = None
        self._error: str | None = None
        self._pooled: bytes | None = None
        self._failure: RequestError | None = None
        self._news = asyncio.Event()

    @property
    def text(self) -> list[int]:
        """The prompt's tokens and all that followed."""
        return [*self.request.prompt_token_ids, *self.request.output_token_ids, *self._tokens]

    def submit(self, wire_id: str) -> EngineRequest:
        """The request, under that id, for a worker to go on with: after a replay, its tokens so far count as output."""
        self._tokens_at_submit = len(self._tokens)
        sampling = self.request.sampling
        if self._had_prompt_logprobs:
            sampling = replace(sampling, prompt_logprobs=None)
        return replace(
            self.request,
            id=wire_id,
            sampling=sampling,
            output_token_ids=[*self.request.output_token_ids, *self._tokens],
        )

    def orphan(self) -> None:
        """Note that the worker that held this request died."""
        self.fruitless = 0 if self.advanced else self.fruitless + 1

    @property
    def advanced(self) -> bool:
        """Whether it got a token since it was last submitted."""
        return len(self._tokens) > self._tokens_at_submit

    def push(self, output: TokenOutput) -> None:
        """Add a step's output."""
        self._tokens += output.token_ids
        if output.logprobs is not None:
            self._logprobs = [] if self._logprobs is None else self._logprobs
            self._logprobs += output.logprobs
        if output.prompt_logprobs is not None and not self._had_prompt_logprobs:
            self._prompt_logprobs = output.prompt_logprobs
            self._had_prompt_logprobs = True
        if output.cached_tokens is not None and not self._had_opening:
            self._opening = output
            self._had_opening = True
        self._pooled = output.pooled or self._pooled
        if output.finish_reason is not None:
            self._finish_reason, self._stop_reason = output.finish_reason, output.stop_reason
            self._error = output.error
            self.finished = True
        self._news.set()

    def fail(self, error: RequestError) -> None:
        """End the stream with an error, after the tokens that it already has."""
        self.finished = True
        self._failure = error
        self._news.set()

    async def take(self) -> TokenOutput:
        """All that came since the last call; waits until there is something. Raises what `fail` was given."""
        await self._news.wait()
        self._news.clear()
        tokens = self._tokens[self._taken :]
        if self._failure is not None:
            if not tokens:
                raise self._failure
            self._news.set()
        self._taken = len(self._tokens)
        logprobs, self._logprobs = self._logprobs, None
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        opening, self._opening = self._opening, None
        return TokenOutput(
            id=self.request.id,
            token_ids=tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            cached_tokens=None if opening is None else opening.cached_tokens,
            queue_seconds=None if opening is None else opening.queue_seconds,
            prefill_seconds=None if opening is None else opening.prefill_seconds,
            finish_reason=self._finish_reason,
            stop_reason=self._stop_reason,
            error=self._error,
            pooled=self._pooled,
        )
