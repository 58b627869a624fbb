"""Pathways' proxy is asked first whether it is there: nothing here may hang."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from slipstream.errors import ConfigError
from slipstream.hardware.proxy import is_proxied, reach_proxy


@contextmanager
def port(answer: bytes | None) -> Iterator[str]:
    """One that accepts a client and answers it; None: says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, suppress(ConnectionError):  # it is left without a word
                client.recv(100)
                if answer is not None:
                    client.sendall(answer)
                client.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


def reach(target: str) -> None:
    reach_proxy({"JAX_BACKEND_TARGET": target}, timeout=0.3)


def test_one_that_speaks_is_taken() -> None:
    with port(bytes(3) + b"\x04" + bytes(5)) as target:
        reach(target)


def test_a_silent_one_and_another_service_are_not() -> None:
    with port(None) as target, pytest.raises(ConfigError, match=r"is silent for 0\.3 s"):
        reach(target)
    with port(b"SSH-2.0-OpenSSH_9.2") as target, pytest.raises(ConfigError, match="does not speak gRPC"):
        reach(target)
    with port(b"") as target, pytest.raises(ConfigError, match="silent"):
        reach(target)


def test_a_closed_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    with pytest.raises(ConfigError, match="cannot be reached"):
        reach(f"grpc://127.0.0.1:{number}")


@pytest.mark.parametrize("target", ["", "127.0.0.1:29001", "grpc://host", "grpc://host:x"])
def test_another_form_is_said(target: str) -> None:
    with pytest.raises(ConfigError, match="JAX_BACKEND_TARGET=grpc://HOST:PORT"):
        reach(target)


def test_the_platform_asks_for_it() -> None:
    assert is_proxied({"JAX_PLATFORMS": "proxy,cpu"})
    assert not is_proxied({"JAX_PLATFORMS": "cpu"}) and not is_proxied({})
