"""A client over worker processes: gives requests to them, routes outputs back, and replays what a dead one had."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic

from msgspec.structs import replace

from slipstream.cluster.agreement import check_ready
from slipstream.cluster.cargo import Cargo, Info, Output, Request, Stats
from slipstream.cluster.client import WorkerState
from slipstream.cluster.config import Report, RestartPolicy, WorkerConfig, WorkerSpec
from slipstream.cluster.launch import Launcher, LocalLauncher
from slipstream.cluster.messages import Abort, AnyOutputs, AnyReady, Drop, Fetch, Prefill, Ticket, new_ticket_id
from slipstream.cluster.placing import Place, place
from slipstream.cluster.post import Post
from slipstream.cluster.process import EarlyWorker
from slipstream.cluster.rolling import Rolling
from slipstream.cluster.slot import Flight, Slot
from slipstream.cluster.supervisor import Hooks, Supervisor
from slipstream.cluster.totals import totals
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig
from slipstream.errors import RequestFailed, Unavailable
from slipstream.routing import digests
from slipstream.telemetry.logs import LogFormat

logger = logging.getLogger(__name__)


class WorkerClient(Generic[Request, Output, Info, Stats]):
    """Runs a model in worker processes and speaks to them; an `EngineClient`, or an `ImageClient`, as its cargo is.

    A worker's death is answered by giving every request that it had to another one at once, or to its successor, with
    the tokens that there are so far. The same request continues with the same tokens wherever it runs (the random key
    of a token is its seed and position), so a reader sees a pause and nothing else. A picture begins anew, and is the
    same picture. For the same reason a request may begin on a prefill worker and go on on another one, with or without
    the KV pages of the first.

    Parameters
    ----------
    cargo
        Tokens or images: `cargo.TOKENS`, `cargo.IMAGES`.
    model
        The checkpoint's folder or file.
    engine
        The engine's settings, of the cargo's kind; or several workers, each with its own.
    policy
        When to restart a worker, when to give up, when it counts as hung.
    threshold
        Tokens that a decode worker must lack for a prefill worker to compute them; None: never.
    on_progress
        Called with (stage, done, total) while a worker starts, also when it is restarted.
    on_stats
        Called with each report of a worker, for histograms: `stats` shows only the newest one.
    log_format, log_level
        How the workers write their log lines, and the least level of them. Their standard error goes to ours, so auto
        asks whether ours is a terminal.
    engine_factory
        What a worker builds, as "module:function", in place of the cargo's own; tests put a small engine here.
    early
        Worker processes that were started before the model was known; they become the first ones.
    launcher
        Where workers run; None: on this host.
    """

    def __init__(
        self,
        cargo: Cargo[Request, Output, Info, Stats],
        model: str | Path,
        engine: EngineConfig | ImageEngineConfig | Sequence[WorkerSpec],
        *,
        policy: RestartPolicy | None = None,
        threshold: int | None = None,
        on_progress: Report | None = None,
        on_stats: Callable[[Stats], None] | None = None,
        log_format: LogFormat = "auto",
        log_level: str = "info",
        engine_factory: str | None = None,
        early: EarlyWorker | Sequence[EarlyWorker] | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        if isinstance(engine, EngineConfig | ImageEngineConfig):
            engine = [WorkerSpec(engine=engine)]
        self._config = WorkerConfig(
            model=str(model),
            endpoint="",
            identity="",
            incarnation=0,
            parent_pid=os.getpid(),
            neighbours=len(engine) if launcher is None else 1,
            log_format=log_format if log_format != "auto" else "text" if sys.stderr.isatty() else "json",
            log_level=log_level,
            secret=secrets.token_hex(32),
            engine_factory=engine_factory or cargo.factory,
        )
        self._cargo = cargo
        self._launcher = launcher or LocalLauncher([early] if isinstance(early, EarlyWorker) else early or ())
        self._policy = policy or RestartPolicy()
        self._threshold = threshold
        self._on_progress = on_progress
        self._on_stats = on_stats
        self._slots = [Slot(i, spec, cargo, str(model)) for i, spec in enumerate(engine)]
        self._flights: dict[str, Flight[Request, Output]] = {}
        self._waiting: dict[Flight[Request, Output], None] = {}
        self._numbers = itertools.count()
        self._post: Post | None = None
        self._stats = cargo.idle
        self._refusal: str | None = "the engine has not been started"
        self._on_trial: Flight[Request, Output] | None = None
        self._replayed = 0
        self._rolling = Rolling(self._slots, self._take_away, self._settings)

    @property
    def info(self) -> Info:
        """What the engines are, together. Raises Unavailable before `start` has returned."""
        infos = [slot.info for slot in self._slots if slot.info is not None]
        if not infos:
            raise Unavailable("the engine is not ready yet")
        return infos[0] if len(infos) == 1 else self._cargo.joined(infos)

    @property
    def stats(self) -> Stats:
        """The newest statistics, of all workers. Counters go on over restarts."""
        return self._stats

    @property
    def ready(self) -> bool:
        """Whether a worker takes requests right now. Requests that come while none does wait for it."""
        return self._refusal is None and any(slot.takes for slot in self._slots)

    @property
    def failure(self) -> str | None:
        """Why no request is taken (not started, given up, closed); None while all is well or will be."""
        return self._refusal

    @property
    def restarts(self) -> int:
        """Worker processes that were started in place of a dead one."""
        return sum(slot.worker.restarts for slot in self._slots if slot.worker is not None)

    @property
    def replayed(self) -> int:
        """Requests that were given to a new worker because theirs died."""
        return self._replayed

    @property
    def workers(self) -> list[WorkerState]:
        """Each worker's state."""
        return [slot.described() for slot in self._slots]

    @property
    def member_pids(self) -> list[int]:
        """Process ids of all members of the newest worker of each slot; a group's leader comes first."""
        return [pid for slot in self._slots if slot.worker is not None for pid in slot.worker.pids]

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the newest worker of each slot."""
        return [state.pid for state in self.workers if state.pid is not None]

    async def start(self) -> None:
        """Start the workers and wait until all are ready. Raises the first one's error that is not, or WorkerError."""
        listen = self._launcher.listen
        self._post = Post() if listen is None else Post(listen.endpoint, listen.secret)
        self._launcher.open(self._post)
        for slot in self._slots:
            hooks = Hooks(
                progress=partial(self._progress, slot),
                accept=partial(check_ready, slot, self._slots),
                up=partial(self._up, slot),
                outputs=partial(self._outputs, slot),
                down=partial(self._down, slot),
                waits=slot.waits,
                lost=partial(self._lost, slot),
                busy=partial(_busy, slot),
            )
            slot.worker = Supervisor(self._post, self._settings(slot, slot.model), self._policy, hooks, self._launcher)
        try:
            async with asyncio.TaskGroup() as group:
                for slot in self._slots:
                    assert slot.worker is not None
                    group.create_task(slot.worker.start())
        except BaseException as error:
            await self.close()
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error from None
        self._refusal = None

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The request's outputs, in order, nothing twice, until one has `finish_reason`.

        Outputs that arrive while the reader is elsewhere come as one. Leaving the iterator early (aclose, or the
        task's cancellation) aborts the request. Raises RequestFailed when no worker can be had.
        """
        if self._refusal is not None:
            raise RequestFailed(f"the request cannot be run: {self._refusal}")
        flight: Flight[Request, Output] = Flight(next(self._numbers), request.id, self._cargo.stream(request))
        self._waiting[flight] = None
        self._place([flight])
        try:
            while True:
                output = await flight.stream.take()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._leave(flight)

    async def drain(self, index: int, timeout: float) -> int:
        """As `Rolling.drain`."""
        return await self._rolling.drain(index, timeout)

    async def reload(self, model: str | None, timeout: float, index: int | None = None) -> int:
        """As `Rolling.reload`."""
        return await self._rolling.reload(model, timeout, index)

    async def close(self) -> None:
        """Stop the workers and remove what they left. Requests in flight fail. May be called twice."""
        self._refuse("the server is shutting down")
        await self._rolling.close()
        post, self._post = self._post, None
        await asyncio.gather(*(slot.worker.stop() for slot in self._slots if slot.worker is not None))
        await self._launcher.close()
        if post is not None:
            await post.close()

    def _settings(self, slot: Slot[Request, Output, Info, Stats], model: str) -> WorkerConfig:
        """What a worker of this slot is told."""
        engine = slot.spec.engine
        return replace(
            self._config,
            model=model,
            engine=engine if isinstance(engine, EngineConfig) else None,
            images=engine if isinstance(engine, ImageEngineConfig) else None,
            role=slot.role,
            transfer=None if slot.role == "both" else "socket",
            processors=slot.spec.processors,
            group=slot.spec.group,
        )

    def _place(self, flights: Iterable[Flight[Request, Output]], *, whole: bool = False) -> None:
        """Give waiting requests to workers, as far as there are; `whole`: to one each, which computes all of it."""
        plain: dict[Slot[Any, Any, Any, Any], list[Request]] = {}
        for flight in flights:
            where = place(self._slots, flight.stream.text, None if whole else self._threshold)
            if where is None:
                break
            del self._waiting[flight]
            request = flight.submit()
            self._flights[flight.wire_id] = flight
            where.slot.hold(flight, uncached=where.uncached)
            if where.target is None:
                plain.setdefault(where.slot, []).append(request)
            else:
                self._split(flight, where, request)
        for slot, requests in plain.items():
            slot.send(self._cargo.submit(requests))

    def _split(self, flight: Flight[Request, Output], where: Place, request: Any) -> None:
        """Let one worker compute the prompt while another one fetches its KV pages."""
        origin, target = where.slot, where.target
        assert target is not None and origin.transfer is not None
        ticket = Ticket(id=new_ticket_id(), endpoint=origin.transfer.endpoint, kind=origin.transfer.kind)
        flight.ticket, flight.origin, flight.target = ticket.id, origin, target
        origin.hold_ticket(flight)
        target.hold_ticket(flight)
        origin.send(Prefill([request], [ticket.id], ticket.deadline_seconds))
        target.send(Fetch([ticket], [[*request.prompt_token_ids, *request.output_token_ids]]))

    def _hand_over(self, flight: Flight[Request, Output]) -> None:
        """A prefill worker is done: whoever fetches the pages goes on, or, if that one is gone, another worker."""
        self._land(flight)
        target, ticket = flight.target, flight.ticket
        if target is None or ticket is None or not target.takes:
            self._drop(flight)
            self._place([flight], whole=True)
            return
        del self._waiting[flight]
        request = flight.submit()
        self._flights[flight.wire_id] = flight
        target.hold(flight, uncached=0)
        target.send(replace(self._cargo.submit([request]), tickets={flight.wire_id: ticket}))

    def _land(self, flight: Flight[Request, Output]) -> None:
        """Take a request from its worker; from now on it waits."""
        self._flights.pop(flight.wire_id, None)
        if flight.slot is not None:
            flight.slot.let_go(flight)
        self._waiting[flight] = None

    def _drop(self, flight: Flight[Request, Output]) -> None:
        """Forget the request's ticket, and tell who has it."""
        ticket, flight.ticket = flight.ticket, None
        for slot in (flight.origin, flight.target):
            if slot is not None and ticket is not None:
                slot.let_go_ticket(ticket)
                slot.send(Drop([ticket]))
        flight.origin = flight.target = None

    def _take_away(self, slot: Slot[Request, Output, Info, Stats]) -> int:
        """Give what a live worker has to others. Returns the number of requests."""
        flights = list(slot.flights.values())
        if flights:
            slot.send(Abort([flight.wire_id for flight in flights]))
        for flight in {*flights, *slot.tickets.values()}:
            self._drop(flight)
        for flight in flights:
            self._land(flight)
        self._place_waiting()
        return len(flights)

    def _leave(self, flight: Flight[Request, Output]) -> None:
        """The reader is gone. What has not ended is aborted, once; with no worker up, forgetting it is enough."""
        self._waiting.pop(flight, None)
        if self._flights.pop(flight.wire_id, None) is None:
            return
        slot = flight.slot
        assert slot is not None
        slot.let_go(flight)
        slot.send(Abort([flight.wire_id]))
        self._drop(flight)
        self._acquit(flight)

    def _suspect(self, flight: Flight[Request, Output]) -> bool:
        return flight.stream.fruitless >= self._policy.suspect_after

    def _place_waiting(self) -> None:
        self._place([flight for flight in self._waiting if not self._suspect(flight)])
        self._try_suspect()

    def _try_suspect(self) -> None:
        """Run the next request that may be what kills workers: one at a time, so that no other is blamed."""
        if self._on_trial is None:
            suspect = next((flight for flight in self._waiting if self._suspect(flight)), None)
            if suspect is not None:
                self._place([suspect], whole=True)
                self._on_trial = suspect if suspect.slot is not None else None

    def _acquit(self, flight: Flight[Request, Output]) -> None:
        """A suspect got a token, or is gone: the next one may run."""
        if flight is self._on_trial and (flight.stream.advanced or flight.slot is None):
            flight.stream.fruitless = 0
            self._on_trial = None
            self._try_suspect()

    def _refuse(self, why: str) -> None:
        """Take no request from now on, and fail those in flight."""
        self._refusal = why
        for flight in [*self._flights.values(), *self._waiting]:
            flight.stream.fail(RequestFailed(f"the request could not be finished: {why}"))
        self._flights.clear()
        self._waiting.clear()

    def _progress(self, slot: Slot[Request, Output, Info, Stats], stage: str, done: int, total: int | None) -> None:
        if self._on_progress is not None:
            named = stage if len(self._slots) == 1 else f"{stage} (worker {slot.index})"
            self._on_progress(named, done, total)

    def _up(self, slot: Slot[Request, Output, Info, Stats], ready: AnyReady) -> None:
        slot.up(ready)
        self._place_waiting()

    def _outputs(self, slot: Slot[Request, Output, Info, Stats], message: AnyOutputs) -> None:
        outputs: list[Any] = message.outputs
        for output in outputs:
            # No request: it was aborted, or taken from the worker, while this was under way.
            flight = self._flights.get(output.id)
            if flight is not None and flight.slot is slot:
                self._output(flight, output)
        stats: Any = message.stats
        if stats is not None:
            slot.report(stats)
            self._stats = totals(self._slots, slot)
            if self._on_stats is not None:
                self._on_stats(self._stats)

    def _output(self, flight: Flight[Request, Output], output: Any) -> None:
        flight.stream.push(output)
        flight.queued = 0
        slot = flight.slot
        if flight.stream.finished:
            del self._flights[flight.wire_id]
            assert slot is not None
            slot.let_go(flight)
            # What comes next in a conversation begins with the reply too.
            slot.memory.add(digests(flight.stream.text))
            self._drop(flight)
        elif getattr(output, "handed", False):
            self._hand_over(flight)
        elif flight.ticket is not None and slot is flight.target:
            self._drop(flight)
        self._acquit(flight)

    def _down(self, slot: Slot[Request, Output, Info, Stats], reason: str) -> None:
        slot.down("restarting", reason)
        self._stats = totals(self._slots, slot)
        flights = list(slot.flights.values())
        for flight in {*flights, *slot.tickets.values()}:
            self._drop(flight)
        for flight in flights:
            self._land(flight)
            flight.stream.orphan()
            if flight is self._on_trial:
                self._on_trial = None
            if flight.stream.fruitless < self._policy.max_fruitless:
                self._replayed += 1
            else:
                del self._waiting[flight]
                why = f"the worker died {flight.stream.fruitless} times in a row with it: {reason}"
                flight.stream.fail(RequestFailed(f"the request was given up: {why}"))
        self._place_waiting()

    def _lost(self, slot: Slot[Request, Output, Info, Stats], reason: str) -> None:
        why = f"the worker died more often than it is restarted ({self._policy.max_restarts} times): {reason}"
        slot.state, slot.reason = "lost", why
        if not any(other.may_return for other in self._slots):
            self._refuse(why)


def _busy(slot: Slot[Any, Any, Any, Any]) -> bool:
    return slot.alive and bool(slot.flights)
