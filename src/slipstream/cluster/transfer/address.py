"""Where a worker listens for who fetches its pages: a unix socket, or TCP. Beyond this machine only with a secret."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from slipstream.cluster.post import IPC_PATH_LIMIT
from slipstream.errors import ConfigError

_BACKLOG = 128
_EVERY = ("0.0.0.0", "::", "")


class Listener:
    """A socket that listens, at `endpoint`. `beyond`: it can be reached from other machines."""

    def __init__(self, asked: str | None, secret: str | None) -> None:
        """Listen at tcp://HOST:PORT (port 0: a free one) or unix:PATH; None: a unix socket in a private folder.

        Raises ConfigError for an address that is malformed, taken, or reachable from other machines without a secret.
        """
        self.beyond = False
        if asked is None and hasattr(socket, "AF_UNIX"):
            folder = tempfile.mkdtemp(prefix="slipstream-kv-")
            self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            asked = f"unix:{Path(folder) / 'pages'}"
        family, where = parse(asked or "tcp://127.0.0.1:0")
        if not isinstance(where, str):
            self.beyond = not _loopback(where[0])
            if self.beyond and not secret:
                raise ConfigError(
                    f"KV pages would be offered to other machines at {asked}, to whoever asks: give all workers one "
                    "secret, or listen on 127.0.0.1"
                )
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family != getattr(socket, "AF_UNIX", None):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(where)
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"KV pages cannot be offered at {asked}: {error}") from error
        self.endpoint = f"unix:{where}" if isinstance(where, str) else _named(family, self.socket.getsockname())

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # a thread that waits for a connection waits no more
        self.socket.close()
        if hasattr(self, "_remove"):
            self._remove()


def connect(endpoint: str, seconds: float) -> socket.socket:
    """A connection to where a worker listens. Raises OSError, and ConfigError for what is no address."""
    family, where = parse(endpoint)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(where)
        if not isinstance(where, str):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        connection.close()
        raise
    return connection


def parse(endpoint: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """The kind of an address and itself. Raises ConfigError."""
    kind, _, rest = endpoint.partition(":")
    if kind == "unix" and rest and hasattr(socket, "AF_UNIX"):
        if len(rest.encode()) > IPC_PATH_LIMIT:
            raise ConfigError(f"{endpoint} is longer than a unix socket's path may be ({IPC_PATH_LIMIT} bytes)")
        return socket.AF_UNIX, rest
    host, _, port = rest.removeprefix("//").rpartition(":")
    if kind == "tcp" and rest.startswith("//") and port.isdecimal() and int(port) < 2**16:
        host = host.strip("[]")
        return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, int(port))
    raise ConfigError(f"{endpoint!r} is no address for KV pages: write tcp://HOST:PORT or unix:PATH")


def own_address(endpoint: str) -> str:
    """The address of this host that an endpoint's host would see, in brackets if it is one of IPv6."""
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of datagrams: nothing is sent
        own: str = probe.getsockname()[0]
    return f"[{own}]" if family == socket.AF_INET6 else own


def host_of(endpoint: str | None) -> str:
    """The host that an address listens at: loopback for a unix socket. Raises ConfigError."""
    where = None if endpoint is None else parse(endpoint)[1]
    return where[0] if isinstance(where, tuple) else "127.0.0.1"


def _named(family: socket.AddressFamily, where: tuple[str, int]) -> str:
    """The address that others are told: where it listens everywhere, by this machine's name."""
    host = socket.gethostname() if where[0] in _EVERY else where[0]
    return f"tcp://[{host}]:{where[1]}" if ":" in host else f"tcp://{host}:{where[1]}"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
