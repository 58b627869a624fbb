"""The process: bind, serve, drain on SIGTERM or SIGINT, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from slipstream.cluster.client import EngineClient, ImageClient
from slipstream.errors import ConfigError
from slipstream.server.app import build_app
from slipstream.server.config import ServerConfig, chat_template
from slipstream.server.front import Front
from slipstream.server.wire import Wire
from slipstream.spec.source import GenerationDefaults
from slipstream.spec.tokenizer import TokenizerSpec
from slipstream.telemetry import logs
from slipstream.text import Tokenizer, load_tokenizer

log = logging.getLogger("slipstream.server")

# Seconds that connections get to close once no request runs on them.
_CLOSING = 5
# Seconds that an idle connection stays open: longer than proxies and client libraries keep theirs, so that they, not
# we, close it, and no request is sent into a closing one.
_KEEP_ALIVE = 75


def tokenizer_for(spec: TokenizerSpec | None, config: ServerConfig) -> Tokenizer | None:
    """The checkpoint's tokenizer, with the settings' chat template in place of its own if they name one.

    Raises ConfigError for a template that cannot be read or that has no tokenizer to go with.
    """
    template = chat_template(config)
    if spec is None:
        if template is not None:
            raise ConfigError("a chat template needs a tokenizer, and this checkpoint has none")
        return None
    return load_tokenizer(spec if template is None else replace(spec, chat_templates={"default": template}))


def run(
    config: ServerConfig,
    client: EngineClient | None,
    tokenizer: Tokenizer | None,
    generation: GenerationDefaults,
    *,
    images: ImageClient | None = None,
    locate: Callable[[str], Path] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal ends it; returns after a drain. `on_ready` gets the server's URL when all engines are ready.
    `locate`: see `Front`.

    SIGTERM and SIGINT drain: /ready turns 503, new requests get 503, running ones finish within `drain_timeout`. A
    second signal ends at once. Raises ConfigError if the port is taken, and whatever kept an engine from starting.
    """
    logs.configure(format=config.log_format, level=config.log_level)
    listener = bind(config)
    url = url_of(listener)
    failures: list[BaseException] = []

    def on_start(error: BaseException | None) -> None:
        if error is not None:
            failures.append(error)
            server.should_exit = True
        elif on_ready is not None:
            on_ready(url)

    app = build_app(client, tokenizer, generation, config, images=images, locate=locate, on_start=on_start)
    server = Server(
        uvicorn.Config(
            app,
            http=Wire,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_CLOSING,
        )
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(serve(server, app, config, listener))
    if failures:
        raise failures[0]


async def serve(server: Server, app: Starlette, config: ServerConfig, listener: socket.socket) -> None:
    """Serve on a bound socket until the server is told to exit; signals drain it first."""
    front: Front = app.state.front
    loop = asyncio.get_running_loop()
    drains: list[asyncio.Task[None]] = []

    def leave(timeout: float) -> None:
        if not drains:
            drains.append(asyncio.create_task(drain(server, front, timeout)))

    def on_signal() -> None:
        if drains:
            log.warning("a second signal: ending at once")
            front.cancel_all()
            server.should_exit = server.force_exit = True
        leave(config.drain_timeout)

    front.leave = leave

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        await server.serve(sockets=[listener])
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        for task in drains:
            task.cancel()
        # uvicorn leaves the lifespan's end out when it is forced to exit.
        await front.close()


async def drain(server: Server, front: Front, timeout: float) -> None:
    """Let running requests finish, at most `timeout` seconds, then cancel what is left and end the server."""
    log.info("draining", extra={"sequences": sum(one.in_flight for one in front.admissions), "timeout_s": timeout})
    if not await front.drain(timeout):
        cancelled = front.cancel_all()
        log.warning("the drain's time is over", extra={"cancelled": cancelled})
        # They write their last event now.
        await front.drain(_CLOSING)
    server.should_exit = True


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `serve`: its own way ends a drained process with a signal's status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket. Raises ConfigError with the way out if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"no such address: --host {config.host} ({error.strerror or error})") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Listening from now on: two servers cannot take one port, and clients wait instead of being refused.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror}): "
            "choose another --port, or 0 for a free one"
        ) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL under which this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1"
    elif address.version == 6:
        host = f"[{host}]"
    return f"http://{host}:{port}"
