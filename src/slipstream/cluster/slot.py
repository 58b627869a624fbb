"""One worker of a fleet as the client sees it: what state it is in, what it was given, what it told of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic

from msgspec.structs import replace

from slipstream.cluster.cargo import Cargo, InFlight, Info, Output, Request, Stats
from slipstream.cluster.client import State, WorkerState
from slipstream.cluster.config import Role, WorkerSpec
from slipstream.cluster.messages import AnyReady, Ready, ToWorker, TransferInfo
from slipstream.cluster.supervisor import Supervisor
from slipstream.engine.config import EngineConfig
from slipstream.routing import Candidate, Memory

_ALIVE = ("ready", "draining")


class Flight(Generic[Request, Output]):
    """A request on its way: its stream, and who has it.

    `slot`: the worker that computes it, None while it waits for one. `wire_id`: its name on the socket: a new one each
    time that it is given to a worker, so that late outputs for an aborted request, or of a worker that it was taken
    from, reach nobody. `queued`: tokens that the worker computes before it answers, 0 once it has.

    With prefill and decode apart: `ticket` names the KV pages that `origin` computes and `target` fetches. `slot` is
    the one, then the other; the ticket is forgotten when the other has answered.
    """

    def __init__(self, number: int, name: str, stream: InFlight[Request, Output]) -> None:
        """`number`: never used before; `name`: the request's own id, for people who read messages."""
        self.stream = stream
        self.slot: Slot[Any, Any, Any, Any] | None = None
        self.origin: Slot[Any, Any, Any, Any] | None = None
        self.target: Slot[Any, Any, Any, Any] | None = None
        self.ticket: str | None = None
        self.queued = 0
        self.wire_id = ""
        self._number = number
        self._name = name
        self._submitted = 0

    def submit(self) -> Request:
        """The request for a worker to go on with, under a new name on the socket."""
        again = f".{self._submitted}" if self._submitted else ""
        self._submitted += 1
        self.wire_id = f"{self._number}{again}:{self._name}"
        return self.stream.submit(self.wire_id)


class Slot(Generic[Request, Output, Info, Stats]):
    """The state of one worker, whichever process it is by now. The client alone changes it."""

    def __init__(self, index: int, spec: WorkerSpec, cargo: Cargo[Request, Output, Info, Stats], model: str) -> None:
        self.index = index
        self.spec = spec
        self.model = model
        self.state: State = "starting"
        self.reason: str | None = None
        self.generation = 0
        self.worker: Supervisor | None = None
        self.info: Info | None = None
        self.transfer: TransferInfo | None = None
        self.stats = self._retired = cargo.idle
        self.memory = Memory(0)
        self.flights: dict[str, Flight[Request, Output]] = {}
        self.tickets: dict[str, Flight[Request, Output]] = {}
        self._cargo = cargo
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def role(self) -> Role:
        """Which part of requests it is for."""
        return self.spec.role

    @property
    def takes(self) -> bool:
        """Whether it may be given requests."""
        return self.state == "ready"

    @property
    def alive(self) -> bool:
        """Whether its process reads messages."""
        return self.state in _ALIVE

    @property
    def may_return(self) -> bool:
        """Whether it takes requests, or will by itself."""
        return self.state not in ("lost", "left")

    def send(self, message: ToWorker) -> None:
        """Send to its process; to one that is gone, nothing."""
        if self.alive and self.worker is not None:
            self.worker.send(message)

    def up(self, ready: AnyReady) -> None:
        """Its process takes requests."""
        assert isinstance(ready.info, self._cargo.info)
        self.info = ready.info
        self.transfer = ready.transfer if isinstance(ready, Ready) else None
        self.memory = Memory(self._cargo.room(self.info, self.stats)[0])
        self.state, self.reason = "ready", None

    def waits(self, reason: str, seconds: float) -> None:
        """Its process is started again after a while."""
        self.reason = f"{reason}; it is started again in {seconds:g} s"

    def down(self, state: State, reason: str | None) -> None:
        """Its process is gone, and with it what was in its memory. Its counters stay."""
        self.state, self.reason = state, reason
        self._retired = self.stats = self._with_counters(self._cargo.idle, self.stats)

    def report(self, stats: Stats) -> None:
        """Take its process's statistics."""
        self.stats = self._with_counters(stats, self._retired)

    def hold(self, flight: Flight[Request, Output], *, uncached: int) -> None:
        """Note that it computes this request, with so many tokens before the first answer."""
        flight.slot, flight.queued = self, uncached
        self.flights[flight.wire_id] = flight
        self._empty.clear()

    def let_go(self, flight: Flight[Request, Output]) -> None:
        """It has the request no more."""
        self.flights.pop(flight.wire_id, None)
        flight.slot = None
        self._settle()

    def hold_ticket(self, flight: Flight[Request, Output]) -> None:
        """Note that it gives or takes the pages of this request's ticket."""
        assert flight.ticket is not None
        self.tickets[flight.ticket] = flight
        self._empty.clear()

    def let_go_ticket(self, ticket: str) -> None:
        """The ticket is used, or of no use."""
        self.tickets.pop(ticket, None)
        self._settle()

    async def emptied(self) -> None:
        """Wait until it has nothing more to do."""
        await self._empty.wait()

    def cached(self, blocks: Sequence[bytes]) -> int:
        """Tokens of a text with these digests that its prefix cache probably has."""
        return self.memory.match(blocks)

    def candidate(self, blocks: Sequence[bytes]) -> Candidate:
        """What a request would find here."""
        assert self.info is not None
        coming = sum(1 for flight in self.tickets.values() if flight.target is self and flight.slot is not self)
        return Candidate(
            cached_tokens=self.cached(blocks),
            queued_tokens=sum(flight.queued for flight in self.flights.values()),
            sequences=len(self.flights) + coming,
            free_tokens=self._cargo.room(self.info, self.stats)[1],
        )

    def can_feed(self, other: Slot[Request, Output, Info, Stats]) -> bool:
        """Whether the other one can go on with KV pages that this one computes."""
        return self.transfer is not None and other.transfer is not None and self.transfer.fits(other.transfer)

    def described(self) -> WorkerState:
        """What to tell of it."""
        return WorkerState(
            index=self.index,
            role=self.role,
            state=self.state,
            reason=self.reason,
            model=self.model,
            pid=None if self.worker is None else self.worker.pid,
            restarts=0 if self.worker is None else self.worker.restarts,
            requests=len(self.flights),
            processors=self.spec.processors,
            threads=self.spec.engine.cpu_threads if isinstance(self.spec.engine, EngineConfig) else None,
            info=self.info,
            stats=self.stats,
        )

    def _settle(self) -> None:
        if not self.flights and not self.tickets:
            self._empty.set()

    def _with_counters(self, stats: Stats, earlier: Stats) -> Stats:
        """`stats` with the counters of `earlier` processes added."""
        sums = {name: getattr(stats, name) + getattr(earlier, name) for name in self._cargo.counters}
        return replace(stats, **sums)
