"""The far end of a remote launcher: a process on another host that runs a worker for the parent there, and watches it.

It connects to the parent, says every second that it is there, starts a worker when it is told to, and says how that
ended. It holds nothing: a parent that comes back finds it free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
from dataclasses import dataclass

import msgspec
import zmq
import zmq.asyncio
from msgspec.structs import replace

from slipstream import __version__
from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.curve import guard_client
from slipstream.cluster.keeper_messages import BEAT_SECONDS, FromKeeper, Gone, Here, Kill, Refuse, Start, ToKeeper
from slipstream.cluster.post import KEEPER
from slipstream.cluster.process import WorkerProcess
from slipstream.errors import WorkerError

logger = logging.getLogger(__name__)

_NOTICE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class KeeperConfig:
    """How a keeper finds its parent: `endpoint` and `secret`, as in `launch.Listen`.

    `name`: part of its identity; empty: a random one. `role`: of the workers that it takes. `once`: it ends with its
    first worker.
    """

    endpoint: str
    secret: str
    name: str = ""
    role: str = "both"
    once: bool = False


class Keeper:
    """Runs one worker at a time. A subprocess, so that its death is the worker's alone and is seen from outside."""

    def __init__(self, config: KeeperConfig) -> None:
        self._config = config
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, KEEPER + (config.name or secrets.token_hex(8)).encode())
        self._socket.linger = int(BEAT_SECONDS * 1000)
        # While there is no connection nothing is kept: what an earlier parent was to hear means nothing to the next.
        self._socket.immediate = True
        guard_client(self._socket, config.secret)
        self._socket.connect(config.endpoint)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToKeeper] = msgspec.msgpack.Decoder(ToKeeper)
        self._process: WorkerProcess | None = None
        self._worker: str | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve the parent, until cancelled, or with `once` until the first worker has ended.

        Raises WorkerError if the parent has no use for it.
        """
        tasks = [asyncio.create_task(work()) for work in (self._beat, self._obey)]
        try:
            await asyncio.wait({*tasks, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self._process is not None:
                self._process.kill()
                await asyncio.wait({self._process.exited})
            self._context.destroy(linger=int(BEAT_SECONDS * 1000))

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        unheard = loop.time()
        while True:
            if self._send(self._here()):
                unheard = loop.time()
            elif loop.time() - unheard >= _NOTICE_SECONDS:
                logger.warning("no connection to %s: no such server yet, or another secret", self._config.endpoint)
                unheard = loop.time()
            await asyncio.sleep(BEAT_SECONDS)

    def _here(self) -> Here:
        pid = None if self._process is None else self._process.pid
        return Here(__version__, f"{platform.node()}:{os.getpid()}", self._config.role, self._worker, pid)

    async def _obey(self) -> None:
        while True:
            data = await self._socket.recv()
            try:
                message = self._decoder.decode(data)
            except msgspec.DecodeError as error:
                logger.warning("dropped %d bytes that are not a message: %s", len(data), error)
                continue
            match message:
                case Start(config=config) if self._worker is None:
                    await self._start(config)
                case Start():
                    logger.warning("told to start a worker while one runs")
                case Kill(worker=worker):
                    if worker == self._worker and self._process is not None:
                        self._process.kill()
                case Refuse(why=why):
                    raise WorkerError(f"the server at {self._config.endpoint} does not take this worker: {why}")

    async def _start(self, config: WorkerConfig) -> None:
        here = replace(
            config, endpoint=self._config.endpoint, parent_secret=self._config.secret, parent_pid=os.getpid()
        )
        self._worker = config.identity
        try:
            self._process = await WorkerProcess.spawn(here)
        except OSError as error:
            self._end(Gone(config.identity, 1, f"could not be started on {platform.node()}: {error}", ""))
            return
        self._send(self._here())
        self._watch = asyncio.create_task(
            self._tell_end(self._process, config.identity), name="slipstream-keeper-watch"
        )

    async def _tell_end(self, process: WorkerProcess, worker: str) -> None:
        code = await asyncio.shield(process.exited)
        self._end(Gone(worker, code, process.describe_exit(), process.last_lines))

    def _end(self, gone: Gone) -> None:
        self._process = self._worker = None
        self._send(gone)
        if self._config.once and not self._ended.done():
            self._ended.set_result(None)

    def _send(self, message: FromKeeper) -> bool:
        """Send if there is a connection; whether there is."""
        sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(message), zmq.NOBLOCK))
        return sent.done() and sent.exception() is None  # without a connection: zmq.Again, at once


def keep(config: KeeperConfig) -> None:
    """Run a keeper in an event loop of its own. Raises WorkerError if the parent has no use for it."""

    async def run() -> None:
        await Keeper(config).run()

    asyncio.run(run())
