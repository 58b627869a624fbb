"""The engine: schedule, dispatch, collect, one step ahead of the device."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenLogprobs, TokenOutput
from slipstream.engine.exchange import Exchange
from slipstream.engine.request import RowPlan, Sequence, StepPlan
from slipstream.engine.runner import RowResult, Runner
from slipstream.engine.scheduler import Committed, Scheduler
from slipstream.errors import RequestError
from slipstream.kernels.compiles import CompileCounter
from slipstream.routing import Candidate

STEPS_IN_FLIGHT = 2  # one on the device, one planned behind it: the device never waits for the host


@dataclass
class _Reply:
    """What is held of a request until it can be sent: prompt log probabilities come whole, with the first token.

    `added`, `admitted`: when the engine took it, and when its first step was planned; seconds of the monotonic clock.
    """

    added: float
    admitted: float | None = None
    epoch: int = 0
    started: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass
class _Counters:
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    scheduled_tokens: int = 0
    padded_tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)


class Engine:
    """One model being served. Not thread safe: one thread adds, aborts and steps."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        info: EngineInfo,
        compiles: CompileCounter,
        exchange: Exchange | None = None,
    ) -> None:
        """Join parts that are ready; `build.build` makes them from a checkpoint. `exchange`: of the same scheduler."""
        self.info = info
        self.exchange = exchange
        self._scheduler = scheduler
        self._runner = runner
        self._compiles = compiles
        self._in_flight: deque[tuple[StepPlan, Any, float]] = deque()
        self._replies: dict[str, _Reply] = {}
        self._counters = _Counters()
        self._last_collected = 0.0
        self._started = False

    @property
    def load(self) -> Candidate:
        """What a new request would wait for here; what it would find in the prefix cache is left to the caller."""
        scheduler = self._scheduler
        return Candidate(
            queued_tokens=scheduler.queued_tokens,
            sequences=scheduler.num_running + scheduler.num_waiting,
            free_tokens=scheduler.pages.available * self.info.page_size,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._in_flight or self._scheduler.num_running or self._scheduler.num_waiting)

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises RequestError for one that cannot be served."""
        for token in request.prompt_token_ids:
            if not 0 <= token < self.info.vocab_size:
                raise RequestError(
                    f"token id {token} is outside the model's vocabulary of {self.info.vocab_size}", param="prompt"
                )
        self._scheduler.add(Sequence.of(request))
        self._replies[request.id] = _Reply(time.monotonic())

    def abort(self, request_id: str) -> bool:
        """Drop a request; its pages are free at once. False if it is not here (any more)."""
        self._replies.pop(request_id, None)
        return self._scheduler.abort(request_id) is not None

    def step(self) -> list[TokenOutput]:
        """Start the next step, then wait for the one before it and return its tokens; empty when there is no work."""
        self.start()
        return self.finish()

    def start(self) -> None:
        """The first half of `step`: start the next step, if there is one to start."""
        waiting = self._scheduler.num_waiting
        plan = self._scheduler.schedule()
        if (
            plan is None
            and waiting
            and not self._in_flight
            and self.exchange is not None
            and self.exchange.let_all_go()
        ):
            plan = self._scheduler.schedule()  # pages were held for others, and nothing else will give any back
        self._started = plan is not None
        if plan is not None:
            self._count(plan)
            if self._scheduler.num_waiting < waiting:
                self._stamp(plan)
            self._in_flight.append((plan, self._runner.dispatch(plan), time.monotonic()))

    def finish(self) -> list[TokenOutput]:
        """The second half: wait for the step before the one that was started, or for the last where none was."""
        if not self._in_flight or (self._started and len(self._in_flight) < STEPS_IN_FLIGHT):
            return []
        done, handle, dispatched = self._in_flight.popleft()
        results = self._runner.collect(handle)
        now = time.monotonic()
        # The device starts a step when the one before it is done, which may be after its dispatch.
        self._counters.step_seconds.append(now - max(dispatched, self._last_collected))
        self._counters.step_tokens.append(done.num_tokens)
        self._last_collected = now
        outputs = (self._commit(row, result) for row, result in zip(done.rows, results, strict=True))
        return [output for output in outputs if output is not None]

    def stats(self) -> EngineStats:
        """Gauges and counters as of now; step times since the last call."""
        counters, scheduler = self._counters, self._scheduler
        seconds, counters.step_seconds = counters.step_seconds, []
        tokens, counters.step_tokens = counters.step_tokens, []
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            pages_used=scheduler.pages.used,
            pages_total=scheduler.pages.num_pages,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            steps=counters.steps,
            padded_tokens=counters.padded_tokens,
            scheduled_tokens=counters.scheduled_tokens,
            compiles=self._compiles.total,
            compiles_after_ready=self._compiles.after_ready,
            step_seconds=seconds,
            step_tokens=tokens,
        )

    def _count(self, plan: StepPlan) -> None:
        counters = self._counters
        counters.steps += 1
        counters.scheduled_tokens += plan.num_tokens
        counters.padded_tokens += self._runner.rows_computed(plan) - plan.num_tokens

    def _stamp(self, plan: StepPlan) -> None:
        """Note when the requests that a plan admits were admitted: the first time counts."""
        now = time.monotonic()
        for row in plan.rows:
            reply = self._replies[row.sequence.id]
            reply.admitted = now if reply.admitted is None else reply.admitted

    def _commit(self, row: RowPlan, result: RowResult) -> TokenOutput | None:
        """Take one row's result; returns what the front should know, if anything."""
        reply = self._replies.get(row.sequence.id)
        committed = self._scheduler.commit(row, result.token)
        if committed is None or reply is None:
            return None
        if reply.epoch != row.epoch:  # preempted meanwhile: the prompt is being computed again from its start
            reply.epoch, reply.prompt_logprobs = row.epoch, []
        reply.prompt_logprobs += result.prompt_logprobs
        return None if committed.token is None else self._output(reply, committed, result)

    def _output(self, reply: _Reply, committed: Committed, result: RowResult) -> TokenOutput:
        sequence, first = committed.sequence, not reply.started
        reply.started = True
        self._counters.generation_tokens += result.pooled is None
        if first:
            self._counters.prompt_tokens += sequence.prompt_len
        if committed.finish_reason is not None:
            del self._replies[sequence.id]
        assert committed.token is not None
        if result.pooled is not None:
            output = TokenOutput(id=sequence.id, token_ids=[], finish_reason="stop", pooled=result.pooled)
            return self._opened(output, reply, sequence)
        output = TokenOutput(
            id=sequence.id,
            token_ids=[committed.token],
            logprobs=None if result.logprobs is None else [result.logprobs],
            finish_reason=committed.finish_reason,
            stop_reason=committed.stop_reason,
        )
        return self._opened(output, reply, sequence) if first else output

    def _opened(self, output: TokenOutput, reply: _Reply, sequence: Sequence) -> TokenOutput:
        """A reply's first output, with what comes once."""
        assert reply.admitted is not None
        wants_prompt = sequence.request.sampling.prompt_logprobs is not None
        return msgspec.structs.replace(
            output,
            prompt_logprobs=reply.prompt_logprobs if wants_prompt else None,
            cached_tokens=sequence.cached_tokens,
            queue_seconds=reply.admitted - reply.added,
            prefill_seconds=time.monotonic() - reply.admitted,
        )
