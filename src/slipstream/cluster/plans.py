"""How a group's leader tells its followers what to run: `engine.group.Group` over connections of their own.

A follower connects to the leader and says what it is (`Card`). Once all are there and fit, each is told where JAX's
coordinator will be. Whoever loses the other afterwards ends its process: a group lives and dies as one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic, sleep

import msgspec
import numpy as np

from slipstream.cluster.config import GroupConfig, Report
from slipstream.cluster.line import Line, LineClosed, connect, listen, parse, tuned
from slipstream.cluster.process import LOST_EXIT
from slipstream.engine.group import Call
from slipstream.errors import AT_START, ConfigError, SlipstreamError, WorkerError

logger = logging.getLogger(__name__)

_GREETING = 10.0
_RETRY = 0.2
_SAY_SO = 2.0
_SAY_SO_AT_START = 8.0
"""Seconds for which a leader that is still loading may have more to do before it asks its members."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal in all members. `settings`: those that decide what is compiled, as people write them."""

    size: int
    version: str
    jax: str
    model: str
    settings: dict[str, str]

    def misfit(self, other: Card) -> str | None:
        """Why `other` cannot follow this one; None where it can."""
        if self.version != other.version or self.jax != other.jax:
            ours, its = (f"Slipstream {card.version} on JAX {card.jax}" for card in (self, other))
            return f"the leader is {ours}, it is {its}: install the same on all machines"
        if self.size != other.size:
            return f"the leader's group has {self.size} members, its {other.size}: give all the same --nnodes"
        if self.model != other.model:
            return "it has another checkpoint than the leader: give all the same files"
        pairs = ((name, self.settings.get(name), other.settings.get(name)) for name in self.settings | other.settings)
        different = [f"{name} ({ours}, its {its})" for name, ours, its in pairs if ours != its]
        return f"its settings are not the leader's: {', '.join(different)}" if different else None


class Join(msgspec.Struct, frozen=True, tag="join"):
    """A follower's first message."""

    rank: int
    card: Card


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """All members are there. `coordinator`: host:port for jax.distributed."""

    coordinator: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """This member cannot follow, for a reason that does not go away."""

    reason: str


class Number(msgspec.Struct, frozen=True, tag="number"):
    """A member's number, then the smallest of all of them."""

    value: int


class Host(msgspec.Struct, frozen=True, array_like=True):
    """An array on the host."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def array(self) -> np.ndarray:
        """It, read-only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class Told(msgspec.Struct, frozen=True, tag="call"):
    """A call to make, the `number`-th from 0."""

    number: int
    name: str
    arrays: list[Host]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A follower cannot go on. `kind`: the exception's class name."""

    kind: str
    error: str


class End(msgspec.Struct, frozen=True, tag="end"):
    """The group is done."""


Message = Join | Welcome | Refused | Number | Told | Failed | End

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def _error(kind: str, text: str) -> SlipstreamError:
    """What another member raised before it ended."""
    return AT_START.get(kind, WorkerError)(text)


class Leader:
    """The leader's view of its group: a `Group`."""

    rank = 0

    def __init__(self, lines: Sequence[Line], lost: Callable[[str], None]) -> None:
        """Join lines to the followers, by rank from 1. `lost(why)` ends the process."""
        self.size = 1 + len(lines)
        self._lines = lines
        self._told = 0
        self._ending = False
        self._lost = lost
        self._said: list[queue.SimpleQueue[Number | SlipstreamError]] = [queue.SimpleQueue() for _ in lines]
        self._listeners: list[threading.Thread] = []
        for rank, line in enumerate(lines, 1):
            line.wait_for_ever()
            name = f"slipstream-member-{rank}"
            self._listeners.append(threading.Thread(target=self._listen, args=(rank, line), name=name, daemon=True))
            self._listeners[-1].start()

    def smallest(self, number: int) -> int:
        """The smallest of all members' numbers. Raises the error of one that cannot go on."""
        for said in self._said:
            other = said.get()
            if isinstance(other, SlipstreamError):
                raise other
            number = min(number, other.value)
        self._send(Number(number))
        return number

    def tell(self, call: Call) -> None:
        """Have the followers make this call. Raises WorkerError where one is gone."""
        arrays = [Host(array.dtype.str, array.shape, array.tobytes()) for array in call.arrays]
        self._send(Told(self._told, call.name, arrays))
        self._told += 1

    def calls(self) -> Iterator[Call]:
        """Nobody tells the leader anything."""
        return iter(())

    def end(self) -> None:
        """Let the followers end, and wait until they have, but not for ever."""
        self._ending = True
        with contextlib.suppress(WorkerError):
            self._send(End())
            until = monotonic() + _SAY_SO
            for listener in self._listeners:  # A follower that has ended closes its line.
                listener.join(max(0.0, until - monotonic()))
        for line in self._lines:
            line.close()

    def _send(self, message: Message) -> None:
        content = _encode(message)
        for rank, line in enumerate(self._lines, 1):
            try:
                line.send(content)
            except LineClosed as error:
                raise WorkerError(f"member {rank} of the group is gone: {error}") from error

    def _listen(self, rank: int, line: Line) -> None:
        said = self._said[rank - 1]
        while True:
            failed: SlipstreamError | None = None
            try:
                message = _decoder.decode(line.receive())
            except (LineClosed, msgspec.DecodeError) as error:
                failed = WorkerError(f"member {rank} of the group is gone: {error}")
            else:
                if isinstance(message, Number):
                    said.put(message)
                elif isinstance(message, Failed):
                    failed = _error(message.kind, f"member {rank} of the group: {message.error}")
            if failed is not None:
                said.put(failed)
                if not self._ending:
                    # Where the leader waits for members' numbers it says so itself, which is better.
                    sleep(_SAY_SO if type(failed) is WorkerError else _SAY_SO_AT_START)
                    self._lost(str(failed))
                return


class Follower:
    """A follower's view of its group: a `Group`."""

    def __init__(self, line: Line, rank: int, size: int, lost: Callable[[str], None]) -> None:
        """`lost(why)` ends the process."""
        self.rank, self.size = rank, size
        self._line = line
        self._lost = lost
        self._ending = False
        # No limit: the leader is two steps ahead of its own devices at most, which wait for ours.
        self._said: queue.SimpleQueue[Number | Told | None] = queue.SimpleQueue()
        line.wait_for_ever()
        threading.Thread(target=self._listen, name="slipstream-leader", daemon=True).start()

    def smallest(self, number: int) -> int:
        """The smallest of all members' numbers."""
        self._line.send(_encode(Number(number)))
        answer = self._said.get()
        if not isinstance(answer, Number):
            raise WorkerError("the leader ended the group")
        return answer.value

    def tell(self, call: Call) -> None:
        """A follower tells nobody."""

    def calls(self) -> Iterator[Call]:
        """What the leader tells, until it ends the group. Raises WorkerError for a call out of turn."""
        number = 0
        while (told := self._said.get()) is not None:
            if not isinstance(told, Told) or told.number != number:
                raise WorkerError(f"the leader's call {number} was expected, {told} came")
            number += 1
            yield Call(told.name, [host.array() for host in told.arrays])

    def fail(self, error: BaseException) -> None:
        """Tell the leader why this member ends."""
        try:
            self._line.send(_encode(Failed(type(error).__name__, str(error))))
        except LineClosed:
            logger.info("the leader was gone before")

    def end(self) -> None:
        """Leave the group."""
        self._ending = True
        self._line.close()

    def _listen(self) -> None:
        while True:
            try:
                message = _decoder.decode(self._line.receive())
            except (LineClosed, msgspec.DecodeError) as error:
                if not self._ending:
                    self._lost(f"the leader of the group is gone: {error}")
                return
            if isinstance(message, End):
                self._said.put(None)
                return
            if isinstance(message, Number | Told):
                self._said.put(message)


@dataclass(frozen=True)
class Joined:
    """A group that is complete. `coordinator`: host:port, where member 0 starts JAX's coordinator."""

    group: Leader | Follower
    coordinator: str


def join(config: GroupConfig, card: Card, report: Report) -> Joined:
    """Wait for the other members. Raises ConfigError for what cannot work, WorkerError where one does not come."""
    return _lead(config, card, report) if config.rank == 0 else _follow(config, card, report)


def _lead(config: GroupConfig, card: Card, report: Report) -> Joined:
    lines: dict[int, Line] = {}
    until = monotonic() + config.patience
    with listen(config.plans, config.secret) as listening:
        while len(lines) < config.size - 1:
            report("wait for members", 1 + len(lines), config.size)
            listening.settimeout(max(0.01, until - monotonic()))
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                for line in lines.values():
                    line.close()
                missing = ", ".join(str(rank) for rank in range(1, config.size) if rank not in lines)
                raise WorkerError(
                    f"of {config.size} members of the group these did not come to {config.plans} within "
                    f"{config.patience:g} s: {missing}"
                ) from None
            try:
                rank, line = _accept(tuned(connection), config, card)
            except LineClosed as error:
                logger.warning("somebody came to %s who is no member: %s", config.plans, error)
                connection.close()
                continue
            if rank in lines:  # It was started again meanwhile.
                lines[rank].close()
            lines[rank] = line
        report("wait for members", config.size, config.size)
    coordinator = _free_address(config.plans)
    leader = Leader([lines[rank] for rank in sorted(lines)], _end_process)
    leader._send(Welcome(coordinator))
    return Joined(leader, coordinator)


def _accept(connection: socket.socket, config: GroupConfig, card: Card) -> tuple[int, Line]:
    """Greet one that connected. Raises LineClosed for one that is no member, or that is refused."""
    line = Line(connection, config.secret, accepted=True, timeout=_GREETING)
    try:
        message = _decoder.decode(line.receive())
    except msgspec.DecodeError as error:
        raise LineClosed(f"its first message cannot be read: {error}") from error
    if not isinstance(message, Join) or not 0 < message.rank < config.size:
        reason = f"it is no member 1 to {config.size - 1} of the group"
    else:
        misfit = card.misfit(message.card)
        if misfit is None:
            return message.rank, line
        reason = f"member {message.rank} is refused: {misfit}"
    line.send(_encode(Refused(reason)))
    raise LineClosed(reason)


def _follow(config: GroupConfig, card: Card, report: Report) -> Joined:
    assert config.rank is not None
    until = monotonic() + config.patience
    while True:
        report("wait for the leader", 0, None)
        connection: socket.socket | None = None
        try:
            connection = connect(config.plans, _GREETING)
            line = Line(connection, config.secret, accepted=False, timeout=_GREETING)
            line.send(_encode(Join(config.rank, card)))
            break
        except (OSError, LineClosed) as error:
            if connection is not None:
                connection.close()
            if monotonic() > until:
                raise WorkerError(f"no leader at {config.plans} within {config.patience:g} s: {error}") from error
            sleep(_RETRY)
    line.wait_for_ever()
    try:
        answer = _decoder.decode(line.receive())
    except LineClosed as error:
        line.close()
        raise WorkerError(
            f"the leader at {config.plans} ended the connection: it was restarted, or has another secret"
        ) from error
    if isinstance(answer, Refused):
        line.close()
        raise ConfigError(answer.reason)
    if not isinstance(answer, Welcome):
        line.close()
        raise WorkerError(f"{config.plans} answered with something else than a welcome")
    return Joined(Follower(line, config.rank, config.size, _end_process), answer.coordinator)


def _free_address(plans: str) -> str:
    """host:port for JAX's coordinator: a port that is free now, where the plans are listened for."""
    _, address = parse(plans)
    host = "127.0.0.1" if isinstance(address, str) else address[0]
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _end_process(why: str) -> None:
    """A member without its group is of no use, and may be stuck in a step for ever: nothing but this ends that."""
    logger.error("%s", why)
    os._exit(LOST_EXIT)
