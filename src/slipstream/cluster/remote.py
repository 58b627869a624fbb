"""Workers on other hosts, run there by keepers that connect to the parent (`keeper.py`): its end of that."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from slipstream import __version__
from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.keeper_messages import BEAT_SECONDS, FromKeeper, Gone, Here, Kill, Refuse, Start, ToKeeper
from slipstream.cluster.launch import Launched, Listen
from slipstream.cluster.post import Post

logger = logging.getLogger(__name__)

SILENT_BEATS = 5
"""Beats of a keeper that may be missed; after that its host counts as lost."""

_PATIENCE_BEATS = 10
_LOST = -signal.SIGKILL
_NOTICE_SECONDS = 30.0


@dataclass
class _Seat:
    """A keeper as it was last heard. `missed`: beats since. `worker`: what was started there and has not ended.

    `unanswered`: how often it said that it is free since it was told to start that.
    """

    here: Here
    missed: int = 0
    unanswered: int = 0
    worker: RemoteWorker | None = None


class RemoteWorker:
    """A worker that a keeper runs. `place`: where, for people; `remote_pid`: its process id there, once known."""

    pid: int | None = None
    pids: tuple[int, ...] = ()

    def __init__(self, identity: str, place: str, kill: Callable[[], None]) -> None:
        self.identity = identity
        self.place = place
        self.remote_pid: int | None = None
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._kill = kill
        self._how = "is still running"
        self._words = ""

    @property
    def last_lines(self) -> str:
        """The end of what it wrote to standard error, as its keeper tells."""
        return self._words

    def kill(self) -> None:
        """Tell its keeper to kill it. `exited` tells when it is gone, or nothing is heard of it."""
        if not self.exited.done():
            self._kill()

    def describe_exit(self) -> str:
        """How it died, and where."""
        return f"on {self.place} {self._how}"

    def end(self, code: int, how: str, words: str = "") -> None:
        """Take note of its end; the first counts."""
        if not self.exited.done():
            self._how, self._words = how, words
            self.exited.set_result(code)


class Keepers:
    """The keepers that have connected. Who is silent for `SILENT_BEATS` is lost, and with it its worker.

    Silence is counted in waits of this process, not by the clock: where it stood still itself, one wait passes, what
    came meanwhile is read, and nobody is blamed.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._seats: dict[bytes, _Seat] = {}
        self._changed = asyncio.Event()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)
        post.hear_keepers(self._hear)
        self._counting = asyncio.get_running_loop().create_task(self._count(), name="slipstream-keepers")

    @property
    def places(self) -> list[str]:
        """The keepers that there are, for people."""
        return sorted(seat.here.place for seat in self._seats.values())

    async def free(self, fits: Callable[[bytes, Here], bool]) -> bytes:
        """Wait for a keeper without a worker that `fits`; the one that came first."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            for identity, seat in self._seats.items():
                if seat.worker is None and seat.here.worker is None and fits(identity, seat.here):
                    return identity
            self._changed.clear()
            try:
                async with asyncio.timeout(_NOTICE_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                logger.warning(
                    "waiting for a worker to join for %.0f s; there are %s", loop.time() - since, self.places
                )

    def start(self, identity: bytes, config: WorkerConfig) -> RemoteWorker:
        """Run a worker at a free keeper."""
        seat = self._seats[identity]
        worker = RemoteWorker(config.identity, seat.here.place, lambda: self._send(identity, Kill(config.identity)))
        # Until it says so itself, a keeper that was told a moment ago is not free.
        seat.worker, seat.missed, seat.unanswered = worker, 0, 0
        self._send(identity, Start(config))
        return worker

    def lose(self, identity: bytes, how: str) -> None:
        """Take a keeper for gone, with its worker."""
        seat = self._seats.pop(identity, None)
        if seat is not None and seat.worker is not None:
            seat.worker.end(_LOST, how)

    async def close(self) -> None:
        """Listen no more."""
        self._counting.cancel()
        await asyncio.wait({self._counting})

    def _send(self, identity: bytes, message: ToKeeper) -> None:
        self._post.send_bytes(identity, self._encoder.encode(message))

    def _hear(self, identity: bytes, data: bytes) -> None:
        try:
            message = self._decoder.decode(data)
        except msgspec.DecodeError as error:
            logger.warning("dropped %d bytes of a keeper that are not a message: %s", len(data), error)
            return
        match message:
            case Here():
                self._here(identity, message)
            case Gone(worker=worker, code=code, how=how, words=words):
                seat = self._seats.get(identity)
                if seat is not None and seat.worker is not None and seat.worker.identity == worker:
                    seat.worker.end(code, how, words)
                    seat.worker = None
                    # Free now, not with its next beat: the worker that follows starts where this one was.
                    seat.here = replace(seat.here, worker=None, pid=None)
        self._changed.set()

    def _here(self, identity: bytes, here: Here) -> None:
        if here.version != __version__:
            self._send(identity, Refuse(f"it is slipstream {here.version}, the server is {__version__}"))
            logger.warning("%s runs slipstream %s, this is %s: refused", here.place, here.version, __version__)
            return
        seat = self._seats.setdefault(identity, _Seat(here))
        seat.here, seat.missed = here, 0
        worker = seat.worker
        if here.worker is not None and (worker is None or worker.identity != here.worker):
            # One that we took for lost, or of a parent before us.
            self._send(identity, Kill(here.worker))
        elif worker is not None and here.worker is not None:
            worker.remote_pid = here.pid
        elif worker is not None:
            # The connection broke: one of its messages, or of ours, is lost. It was told a moment ago, or is free.
            seat.unanswered += 1
            if worker.remote_pid is not None or seat.unanswered > _PATIENCE_BEATS:
                worker.end(_LOST, "ended while there was no connection")
                seat.worker = None

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            for identity, seat in list(self._seats.items()):
                seat.missed += 1
                if seat.missed > SILENT_BEATS:
                    logger.warning("%s is lost: nothing was heard of it for %d s", seat.here.place, SILENT_BEATS)
                    self.lose(identity, f"gave no sign of life for {SILENT_BEATS * BEAT_SECONDS:g} s")


class JoinLauncher:
    """Workers run where `slipstream worker` was started: its keeper connects, and waits to be told what to run."""

    def __init__(self, listen: Listen) -> None:
        self.listen: Listen | None = listen
        self._keepers: Keepers | None = None

    def open(self, post: Post) -> None:
        """Listen for keepers."""
        self._keepers = Keepers(post)

    async def launch(self, config: WorkerConfig) -> Launched:
        """Wait for a free keeper, for as long as it takes, and start the worker there."""
        assert self._keepers is not None
        identity = await self._keepers.free(lambda _, here: here.role in ("both", config.role))
        return self._keepers.start(identity, config)

    async def close(self) -> None:
        """Listen no more."""
        keepers, self._keepers = self._keepers, None
        if keepers is not None:
            await keepers.close()
