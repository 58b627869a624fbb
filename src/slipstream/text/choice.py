"""One reply in the making: from the engine's tokens to text, log probabilities and a finish reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from slipstream.api.engine import EngineRequest, TokenLogprobs, TokenOutput
from slipstream.errors import RequestFailed
from slipstream.text.detokenize import Detokenizer
from slipstream.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Position:
    """A token with its log probabilities. `offset`: characters of the reply's text before it."""

    offset: int
    logprobs: TokenLogprobs


@dataclass
class Delta:
    """What a reply has gained. Deltas of a slow reader's stream merge, so that they never queue up."""

    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        """The text gained."""
        return "".join(self.parts)

    def extend(self, later: Delta) -> None:
        """Append what came after."""
        self.parts += later.parts
        self.token_ids += later.token_ids
        self.positions += later.positions
        self.prompt_logprobs = later.prompt_logprobs if self.prompt_logprobs is None else self.prompt_logprobs
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason


class Choice:
    """The state of one sequence. `feed` takes the engine's outputs in order until `finish_reason` is set.

    Log probabilities travel with the text: a token's position is given out once text past the token's start is, and
    tokens that lie wholly in or after a stop string are dropped with it. Tokens without text of their own (the end of
    text, the first bytes of a character) go with the next text or with the end.
    """

    def __init__(
        self,
        index: int,
        request: EngineRequest,
        tokenizer: Tokenizer | None,
        *,
        stop: Sequence[str] = (),
        skip_special: bool = True,
        include_stop: bool = False,
        min_tokens: int = 0,
        eos_token_ids: Sequence[int] = (),
        score_only: bool = False,
    ) -> None:
        self.index = index
        self.request = request
        self.output_tokens = 0
        self.cached_tokens = 0
        self.queue_seconds: float | None = None
        self.prefill_seconds: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._include_stop = include_stop
        self._eos = frozenset(eos_token_ids)
        self._score_only = score_only
        self._emitted = 0
        self._waiting: deque[Position] = deque()
        self._text: Detokenizer | None = None
        self._ruler: Detokenizer | None = None
        self._length = 0
        if tokenizer is not None:
            prompt_ids = request.prompt_token_ids
            self._text = Detokenizer(
                tokenizer,
                prompt_ids,
                skip_special=skip_special,
                stop=tuple(stop),
                include_stop=include_stop,
                min_tokens=min_tokens,
            )
            if request.sampling.logprobs is not None:
                # Stop strings hold text back; without any, text comes as soon as it is whole: where tokens start.
                self._ruler = Detokenizer(tokenizer, prompt_ids, skip_special=skip_special, stop=(), include_stop=False)

    def feed(self, output: TokenOutput, now: float) -> Delta:
        """What the output adds, at the monotonic time `now`. Raises RequestFailed if the engine gave up."""
        if output.finish_reason in ("error", "abort"):
            raise RequestFailed(
                f"the engine could not finish the request: {output.error or output.finish_reason}", code="engine_error"
            )
        if output.cached_tokens is not None:
            self.cached_tokens = output.cached_tokens
            self.queue_seconds, self.prefill_seconds = output.queue_seconds, output.prefill_seconds
        delta = Delta(prompt_logprobs=output.prompt_logprobs)
        if self._score_only:
            return self._finish(delta, "length", None)
        if output.token_ids:
            self.first_token = now if self.first_token is None else self.first_token
            self.last_token = now
        ended_by_token = output.finish_reason == "stop" and output.stop_reason is not None
        for i, token in enumerate(output.token_ids):
            self.output_tokens += 1
            delta.token_ids.append(token)
            hidden = ended_by_token and not self._include_stop and i == len(output.token_ids) - 1
            stopped = self._push(token, output.logprobs[i] if output.logprobs else None, delta, hidden=hidden)
            if stopped is not None:
                self._release(delta)
                self._waiting.clear()
                return self._finish(delta, "stop", stopped)
        if output.finish_reason is not None:
            stopped = self._flush(delta)
            if stopped is not None:
                self._release(delta)
                self._waiting.clear()
                return self._finish(delta, "stop", stopped)
            delta.positions.extend(self._waiting)
            self._waiting.clear()
            # vLLM's sense: the model's own end of text is no reason worth naming.
            named = None if output.stop_reason in self._eos else output.stop_reason
            return self._finish(delta, output.finish_reason, named)
        self._release(delta)
        return delta

    def _push(self, token: int, logprobs: TokenLogprobs | None, delta: Delta, *, hidden: bool) -> str | None:
        """Add a token's text to the delta; gives the stop string that it completed."""
        if logprobs is not None:
            self._waiting.append(Position(self._length, logprobs))
        if hidden or self._text is None:
            return None
        if self._ruler is not None:
            self._length += len(self._ruler.push([token]).text)
        part = self._text.push([token])
        delta.parts.append(part.text)
        self._emitted += len(part.text)
        return part.stop

    def _flush(self, delta: Delta) -> str | None:
        if self._text is None:
            return None
        part = self._text.finish()
        delta.parts.append(part.text)
        self._emitted += len(part.text)
        return part.stop

    def _release(self, delta: Delta) -> None:
        """Give out the positions whose text has begun to go out; without a tokenizer, all."""
        while self._waiting and (self._text is None or self._waiting[0].offset < self._emitted):
            delta.positions.append(self._waiting.popleft())

    def _finish(self, delta: Delta, reason: str, stop_reason: int | str | None) -> Delta:
        self.finish_reason = delta.finish_reason = reason
        self.stop_reason = delta.stop_reason = stop_reason
        return delta
