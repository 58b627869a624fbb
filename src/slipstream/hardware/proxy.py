"""Devices behind Pathways' proxy (`JAX_PLATFORMS=proxy`): whether it answers, asked before JAX waits for ever."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec

from slipstream.errors import ConfigError

PLATFORMS, TARGET = "JAX_PLATFORMS", "JAX_BACKEND_TARGET"

# What a client of HTTP/2, which gRPC speaks, says first: its preface, and settings without any. RFC 9113, 3.4.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_FRAME_HEADER, _TYPE_AT, _SETTINGS = 9, 3, 4


def is_proxied(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether JAX is to use the devices of a proxy."""
    return "proxy" in environ.get(PLATFORMS, "").split(",")


def reach_proxy(environ: Mapping[str, str] = os.environ, timeout: float = 10.0) -> None:
    """Make sure that the proxy answers, within `timeout` seconds for each step, and register its client if it is here.

    Raises ConfigError, which says what does not answer and how.
    """
    target = environ.get(TARGET, "")
    host, colon, port = target.removeprefix("grpc://").rpartition(":")
    if not target.startswith("grpc://") or not colon or not port.isdecimal():
        raise ConfigError(f"{PLATFORMS}=proxy needs {TARGET}=grpc://HOST:PORT, got {target!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout) as connection:
            connection.sendall(_GREETING)
            answer = b""
            while len(answer) < _FRAME_HEADER and (chunk := connection.recv(_FRAME_HEADER - len(answer))):
                answer += chunk
    except OSError as error:
        how = f"is silent for {timeout:g} s" if isinstance(error, TimeoutError) else f"cannot be reached: {error}"
        raise ConfigError(f"Pathways' proxy at {target} {how}") from None
    if len(answer) < _FRAME_HEADER or answer[_TYPE_AT] != _SETTINGS:
        raise ConfigError(f"what listens at {target} is not Pathways' proxy: it does not speak gRPC")
    with suppress(ImportError):
        if find_spec("pathwaysutils") is not None:
            import_module("pathwaysutils").initialize()
