"""Where worker processes run: one protocol, and the launcher that runs them on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.members import spawn
from slipstream.cluster.post import Post
from slipstream.cluster.process import EarlyWorker
from slipstream.errors import WorkerError


@dataclass(frozen=True)
class Listen:
    """Where workers of other hosts reach the parent, `tcp://HOST:PORT` (port `*`: a free one), and what both know."""

    endpoint: str
    secret: str = field(repr=False)


class Launched(Protocol):
    """A worker that was started."""

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when it has died, with its exit code; less than zero: minus the signal that killed it.

        Wait for it by `asyncio.wait`: awaiting it would let a waiter that is cancelled cancel it for all others.
        """

    @property
    def pid(self) -> int | None:
        """Its process id, where it runs on this host."""

    @property
    def pids(self) -> Sequence[int]:
        """Those of all its processes that run on this host, that one first."""

    @property
    def last_lines(self) -> str:
        """The end of what it wrote to standard error."""

    def kill(self) -> None:
        """Kill it, if it still runs. `exited` tells when it is gone."""

    def describe_exit(self) -> str:
        """How it died, for a person: "was killed by SIGKILL"."""


class Launcher(Protocol):
    """Starts workers in one kind of place, each when it is asked to; who asks watches and replaces them."""

    @property
    def listen(self) -> Listen | None:
        """Where the parent must listen for its workers; None: on a socket of this host."""

    def open(self, post: Post) -> None:
        """Begin, with the parent's socket. Called once, before `launch`."""

    async def launch(self, config: WorkerConfig) -> Launched:
        """Start a worker, waiting for a place if need be. Raises WorkerError where none can be had."""

    async def close(self) -> None:
        """End what it keeps. Its workers are dead by then. May be called twice."""


class LocalLauncher:
    """Workers are child processes. `early`: some that were started before; they become the first workers."""

    listen: Listen | None = None

    def __init__(self, early: Iterable[EarlyWorker] = ()) -> None:
        self._early = iter(early)

    def open(self, post: Post) -> None:
        """Nothing to do: a child is told where the socket is."""

    async def launch(self, config: WorkerConfig) -> Launched:
        """Start a child process."""
        try:
            return await spawn(config, next(self._early, None))
        except OSError as error:
            raise WorkerError(f"no worker process could be started: {error}") from error

    async def close(self) -> None:
        """Nothing is kept."""
