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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from socket import socketpair
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest
from slipstream.cluster.config import Report, WorkerConfig
from slipstream.cluster.curve import guard_client
from slipstream.cluster.messages import (
    Abort,
    Drop,
    Fatal,
    Fetch,
    FromWorker,
    ImageOutputs,
    ImagesReady,
    Outputs,
    Prefill,
    Progress,
    Ready,
    Shutdown,
    Submit,
    SubmitImages,
    ToWorker,
    TransferInfo,
)
from slipstream.cluster.process import FATAL_EXIT
from slipstream.engine.config import EngineConfig
from slipstream.errors import RequestError, SlipstreamError
from slipstream.telemetry.logs import configure

if TYPE_CHECKING:
    from slipstream.cluster.transfer.desk import Desk  # which loads JAX

logger = logging.getLogger("slipstream.cluster.worker")  # __name__ is __main__ here

STATS_INTERVAL = 0.25
"""Least seconds between two reports while the engine works."""

_PR_SET_PDEATHSIG = 1
_REFUSED = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_BROKEN = zmq.EVENT_DISCONNECTED | sum(_REFUSED)
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
    from slipstream.checkpoint import open_checkpoint, resolve
    from slipstream.engine.start import start

    assert config.engine is not None
    return start(
        open_checkpoint(resolve(config.model, progress=report)),
        among_neighbours(config.engine, config.neighbours),
        report,
        exchanges=config.transfer is not None,
    )


def among_neighbours(engine: EngineConfig, count: int) -> EngineConfig:
    """An engine's settings where `count` workers share a machine: its part of the memory, if that is the devices' too.

    Elsewhere each worker has devices of its own.
    """
    import jax

    if count == 1 or jax.default_backend() != "cpu":
        return engine
    return replace(engine, memory_fraction=engine.memory_fraction / count)


def build_image_engine(config: WorkerConfig, report: Report) -> ImageEngine:
    """The JAX engine that makes pictures with the configured checkpoint. Raises the errors of both."""
    from slipstream.diffusion.start import start

    assert config.images is not None
    return start(Path(config.model), config.images, report)


def open_desk(engine: Any, config: WorkerConfig, wake: Callable[[], None]) -> Desk:
    """What moves the engine's KV pages. Raises ConfigError where it cannot.

    A worker whose parent may be on another machine listens where that one reaches it: its peers may be there too.
    """
    from slipstream.checkpoint import resolve
    from slipstream.cluster.transfer.address import own_address
    from slipstream.cluster.transfer.desk import Desk, fingerprint_of

    if config.transfer_endpoint is None and config.endpoint.startswith("tcp://"):
        config = msgspec.structs.replace(config, transfer_endpoint=f"tcp://{own_address(config.endpoint)}:0")
    return Desk(engine, config, fingerprint_of(resolve(config.model), engine.info.dtype), wake)


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
        if config.parent_secret is not None:
            guard_client(self._socket, config.parent_secret)
        if not config.endpoint.startswith("ipc://"):
            _die_with_connection(self._socket)
        self._socket.connect(config.endpoint)
        self._wakes, self._woken = socketpair()
        for end in (self._wakes, self._woken):
            end.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._woken.fileno(), zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

    def send(self, message: FromWorker) -> None:
        """Send; waits only if the parent has not read the last thousand messages."""
        self._socket.send(self._encoder.encode(message))

    def announce(self, info: EngineInfo | ImageEngineInfo, transfer: TransferInfo | None = None) -> None:
        """Say that the engine is ready. Its outputs go out in messages of its kind from now on."""
        ready, self._outputs = _MESSAGES[type(info)]
        self.send(ready(self._incarnation, info) if transfer is None else ready(self._incarnation, info, transfer))

    def send_outputs(self, outputs: list[Any], stats: EngineStats | ImageEngineStats | None) -> None:
        """Send what one step made."""
        self.send(self._outputs(self._incarnation, outputs, stats))

    def wake(self) -> None:
        """End a wait of `receive`, or the next one. May be called in any thread."""
        with suppress(BlockingIOError):  # it has been woken often enough
            self._wakes.send(b"!")

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[ToWorker]:
        """All messages that have come, in order; with `wait`, after waiting for one, for `wake` or for `seconds`."""
        messages: list[ToWorker] = []
        limit = None if seconds is None else int(1000 * seconds) + 1
        if wait and self._woken.fileno() in dict(self._poller.poll(limit)):
            with suppress(BlockingIOError):
                self._woken.recv(4096)
        while True:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(self._decoder.decode(data))
            except msgspec.DecodeError as error:
                logger.warning("dropped %d bytes that are not a message: %s", len(data), error)

    def close(self) -> None:
        """Send what is left and close."""
        self._socket.disable_monitor()
        self._socket.close()
        self._wakes.close()
        self._woken.close()
        self._context.term()


def _die_with_connection(socket: zmq.Socket[bytes]) -> None:
    """End this process when the socket's connection, which is to be made, breaks or is refused.

    The library would connect again, and what was under way would be lost without a word: outputs in the middle of a
    stream. So a connection lasts as long as a worker.
    """
    socket.reconnect_ivl = -1
    monitor = socket.get_monitor_socket(_BROKEN | zmq.EVENT_MONITOR_STOPPED)

    def watch() -> None:
        try:
            event = recv_monitor_message(monitor)
        except zmq.ContextTerminated:  # `close` is faster than the event that tells of it
            monitor.close()
            return
        if event["event"] == zmq.EVENT_MONITOR_STOPPED:
            monitor.close()
            return
        refused = event["event"] in _REFUSED
        why = "it was refused: is the secret the same on both ends?" if refused else "it was closed, or is silent"
        os.write(2, f"the connection to the parent at {event['endpoint'].decode()} is gone: {why}\n".encode())
        os._exit(1)

    threading.Thread(target=watch, name="slipstream-connection-watch", daemon=True).start()


def serve(engine: AnyEngine, link: Link, desk: Desk | None = None) -> None:
    """Run the engine until Shutdown. Waits on the socket while there is no work. `desk`: of one that moves pages."""
    link.send_outputs([], engine.stats())
    reported, idle, seconds = monotonic(), True, None
    while True:
        outputs: list[Any] = []
        for message in link.receive(wait=not engine.has_work, seconds=seconds):
            match message:
                case Submit() | Prefill() | Fetch() | Drop() if desk is not None:
                    outputs += _add_all(engine, desk.handle(message))
                case Submit(requests=requests) | SubmitImages(requests=requests) | Prefill(requests=requests):
                    outputs += _add_all(engine, requests)
                case Abort(ids=ids):
                    for request_id in ids:
                        engine.abort(request_id)
                    if desk is not None:
                        desk.abort(ids)
                case Shutdown():
                    return
        if desk is not None:
            outputs += _add_all(engine, desk.arrivals())
        if engine.has_work:
            outputs += engine.step()
            idle = False
        if desk is not None:
            outputs, seconds = desk.after(outputs)
            idle = idle and not desk.news
        now, done = monotonic(), not engine.has_work
        due = now - reported >= STATS_INTERVAL or done
        stats: Any = engine.stats() if due and not idle else None
        if desk is not None and stats is not None:
            stats = desk.counted(stats)
        if outputs or stats is not None:
            link.send_outputs(outputs, stats)
        if stats is not None:
            reported, idle = now, done


def _add_all(engine: Any, requests: Iterable[EngineRequest | ImageRequest]) -> list[TokenOutput | ImageOutput]:
    """The refusals."""
    return [refusal for request in requests if (refusal := _add(engine, request))]


def _add(engine: Any, request: EngineRequest | ImageRequest) -> TokenOutput | ImageOutput | None:
    try:
        engine.add(request)
    except RequestError as error:
        if isinstance(request, ImageRequest):
            return ImageOutput(id=request.id, finish_reason="error", error=error.message, refused=True)
        return TokenOutput(id=request.id, token_ids=[], finish_reason="error", error=error.message)
    return None


@contextmanager
def _engine(config: WorkerConfig, report: Report) -> Iterator[AnyEngine]:
    if config.group is not None:
        from slipstream.cluster.group_engine import leading

        with leading(config, report) as led:
            yield led
        return
    module, _, function = config.engine_factory.partition(":")
    engine: AnyEngine = getattr(import_module(module), function)(config, report)
    yield engine


def run(config: WorkerConfig) -> int:
    """Build the engine and serve. Returns the exit code; whatever ends the worker is sent as Fatal first.

    A follower in a group speaks to its leader alone.
    """
    if config.group is not None and config.group.rank:
        from slipstream.cluster.group_engine import run_follower

        return run_follower(config)
    link = Link(config)
    try:

        def report(stage: str, done: int, total: int | None) -> None:
            link.send(Progress(config.incarnation, stage, done, total))

        with _engine(config, report) as engine:
            # What the build made lives as long as the process: the collector need not look at it between steps.
            gc.collect()
            gc.freeze()
            desk = None if config.transfer is None else open_desk(engine, config, link.wake)
            link.announce(engine.info, None if desk is None else desk.info)
            serve(engine, link, desk)
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
    if config.processors is not None:  # threads that are started from now on inherit it
        os.sched_setaffinity(0, config.processors)
    configure(format=config.log_format, level=config.log_level)
    code = run(config)
    if config.group is not None:
        # JAX's own goodbye waits for all members, and aborts where one is gone.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


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
