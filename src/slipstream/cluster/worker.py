"""A worker process: `python -m slipstream.cluster.worker`, started by the supervisor. One engine, one socket.

Each turn of its loop takes all messages that have come, runs one step, and sends what that step made as one message.
The loop is the same for an engine of tokens and one of pictures.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

import msgspec
import zmq

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest
from slipstream.cluster.config import Report, WorkerConfig
from slipstream.cluster.messages import (
    Abort,
    Fatal,
    FromWorker,
    ImageOutputs,
    ImagesReady,
    Outputs,
    Progress,
    Ready,
    Shutdown,
    Submit,
    SubmitImages,
    ToWorker,
)
from slipstream.cluster.process import FATAL_EXIT
from slipstream.errors import RequestError, SlipstreamError
from slipstream.telemetry.logs import configure

logger = logging.getLogger("slipstream.cluster.worker")  # __name__ is __main__ here

STATS_INTERVAL = 0.25
"""Least seconds between two reports while the engine works."""

_PR_SET_PDEATHSIG = 1
_LINGER_MS = 2000


Request = TypeVar("Request", contravariant=True)
Output = TypeVar("Output", covariant=True)
Info = TypeVar("Info", covariant=True)
Stats = TypeVar("Stats", covariant=True)


class WorkerEngine(Protocol[Request, Output, Info, Stats]):
    """What a worker runs. `slipstream.engine.loop.Engine` is one, `slipstream.diffusion`'s another."""

    @property
    def info(self) -> Info:
        """What the engine is."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError for one that it refuses."""

    def abort(self, request_id: str) -> object:
        """Drop a request; nothing happens for one that is not there. What it holds is free after the next step."""

    def step(self) -> Sequence[Output]:
        """Run one step and return what became known."""

    def stats(self) -> Stats:
        """Gauges, counters, and the times of the steps since the last call."""


TokenEngine = WorkerEngine[EngineRequest, TokenOutput, EngineInfo, EngineStats]
ImageEngine = WorkerEngine[ImageRequest, ImageOutput, ImageEngineInfo, ImageEngineStats]
AnyEngine = TokenEngine | ImageEngine


def build_engine(config: WorkerConfig, report: Report) -> TokenEngine:
    """The JAX engine for the configured checkpoint. Raises the errors of both."""
    # Only a worker that builds this engine loads JAX.
    from slipstream.checkpoint import open_checkpoint
    from slipstream.engine.start import start

    assert config.engine is not None
    return start(open_checkpoint(Path(config.model)), config.engine, report)


def build_image_engine(config: WorkerConfig, report: Report) -> ImageEngine:
    """The JAX engine that makes pictures with the configured checkpoint. Raises the errors of both."""
    from slipstream.diffusion.start import start

    assert config.images is not None
    return start(Path(config.model), config.images, report)


_MESSAGES: dict[type[Any], tuple[type[Any], type[Any]]] = {
    EngineInfo: (Ready, Outputs),
    ImageEngineInfo: (ImagesReady, ImageOutputs),
}


class Link:
    """The worker's end of the socket."""

    def __init__(self, config: WorkerConfig) -> None:
        self._incarnation = config.incarnation
        self._outputs: type[Any] = Outputs
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, config.identity.encode())
        self._socket.linger = _LINGER_MS
        self._socket.connect(config.endpoint)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

    def send(self, message: FromWorker) -> None:
        """Send; waits only if the parent has not read the last thousand messages."""
        self._socket.send(self._encoder.encode(message))

    def announce(self, info: EngineInfo | ImageEngineInfo) -> None:
        """Say that the engine is ready. Its outputs go out in messages of its kind from now on."""
        ready, self._outputs = _MESSAGES[type(info)]
        self.send(ready(self._incarnation, info))

    def send_outputs(self, outputs: list[Any], stats: EngineStats | ImageEngineStats | None) -> None:
        """Send what one step made."""
        self.send(self._outputs(self._incarnation, outputs, stats))

    def receive(self, *, wait: bool) -> list[ToWorker]:
        """All messages that have come, in order; with `wait`, at least one."""
        messages: list[ToWorker] = []
        while True:
            try:
                data = self._socket.recv(0 if wait and not messages else zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(self._decoder.decode(data))
            except msgspec.DecodeError as error:
                logger.warning("dropped %d bytes that are not a message: %s", len(data), error)

    def close(self) -> None:
        """Send what is left and close."""
        self._socket.close()
        self._context.term()


def serve(engine: AnyEngine, link: Link) -> None:
    """Run the engine until Shutdown. Waits on the socket while there is no work."""
    link.send_outputs([], engine.stats())
    reported, idle = monotonic(), True
    while True:
        outputs: list[Any] = []
        for message in link.receive(wait=not engine.has_work):
            match message:
                case Submit(requests=requests) | SubmitImages(requests=requests):
                    outputs += [refusal for request in requests if (refusal := _add(engine, request))]
                case Abort(ids=ids):
                    for request_id in ids:
                        engine.abort(request_id)
                case Shutdown():
                    return
        if engine.has_work:
            outputs += engine.step()
            idle = False
        now, done = monotonic(), not engine.has_work
        due = now - reported >= STATS_INTERVAL or done
        stats = engine.stats() if due and not idle else None
        if outputs or stats is not None:
            link.send_outputs(outputs, stats)
        if stats is not None:
            reported, idle = now, done


def _add(engine: Any, request: EngineRequest | ImageRequest) -> TokenOutput | ImageOutput | None:
    try:
        engine.add(request)
    except RequestError as error:
        if isinstance(request, ImageRequest):
            return ImageOutput(id=request.id, finish_reason="error", error=error.message, refused=True)
        return TokenOutput(id=request.id, token_ids=[], finish_reason="error", error=error.message)
    return None


def run(config: WorkerConfig) -> int:
    """Build the engine and serve. Returns the exit code; whatever ends the worker is sent as Fatal first."""
    link = Link(config)
    try:
        module, _, function = config.engine_factory.partition(":")
        factory = getattr(import_module(module), function)

        def report(stage: str, done: int, total: int | None) -> None:
            link.send(Progress(config.incarnation, stage, done, total))

        engine: AnyEngine = factory(config, report)
        # What the build made lives as long as the process: the collector need not look at it between steps.
        gc.collect()
        gc.freeze()
        link.announce(engine.info)
        serve(engine, link)
    except Exception as error:
        if isinstance(error, SlipstreamError):
            logger.error("%s", error)
        else:
            logger.exception("the engine failed")
        link.send(Fatal(config.incarnation, type(error).__name__, str(error)))
        return FATAL_EXIT
    finally:
        link.close()
    return 0


def die_with_parent(parent_pid: int) -> None:
    """Make sure that this process ends when its parent does, however that ends.

    Two ways, because each has a gap: Linux sends SIGKILL when the parent's thread that started us is gone; and standard
    input, which the parent holds open, ends (on every system, but not if another process inherited the pipe).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="slipstream-parent-watch", daemon=True).start()


def main() -> None:
    """Entry point: the configuration is the first line of standard input; arguments are modules to load before."""
    faulthandler.enable()
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        # Terminals and service managers signal parent and worker alike. The parent decides: it may want to drain.
        signal.signal(interrupt, signal.SIG_IGN)
    # Standard output belongs to the parent's user; what a library prints here is log.
    os.dup2(2, 1)
    # JAX tells, as information, of each kind of device that is not there.
    logging.getLogger("jax").setLevel(logging.WARNING)
    for module in sys.argv[1:]:  # what the engine will need is loaded while the parent finds out which model it is
        import_module(module)
    config = msgspec.json.decode(_first_line(), type=WorkerConfig)
    die_with_parent(config.parent_pid)
    configure(format=config.log_format, level=config.log_level)
    sys.exit(run(config))


def _first_line() -> bytes:
    """Standard input up to the first newline, unbuffered: the watch reads on from there."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            sys.exit("a worker is started by its parent, which writes its configuration to standard input")
        line += chunk
    return line


if __name__ == "__main__":
    main()
