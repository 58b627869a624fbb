"""Clients that leave, read slowly or come at a bad time; a server that starts, drains and stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from slipstream.errors import ConfigError
from slipstream.server import ServerConfig
from slipstream.server.serve import bind, drain, url_of

from .conftest import Live, Start
from .memory_client import INFO, MemoryClient
from .toys import ids

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def connect(live: Live, body: dict[str, object], *, receive_buffer: int | None = None) -> socket.socket:
    """A raw connection with a request sent."""
    host, port = live.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(start: Start, stream: bool) -> None:
    live = start("x" * 400, delay=0.02)
    connection = connect(live, HI | {"stream": stream, "n": 2})
    live.until(lambda: len(live.client.requests) == 2)
    if stream:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    connection.close()
    live.until(lambda: list(live.client.ends.values()) == ["closed"] * 2)
    live.until(lambda: live.front.admission.in_flight == 0)
    assert 'finished_reason="abort",model_name="toy"} 2.0' in live.get("/metrics").text


def test_a_client_that_leaves_before_the_first_token(start: Start) -> None:
    live = start("x", gate=asyncio.Event())
    connection = connect(live, HI | {"stream": True})
    live.until(lambda: len(live.client.requests) == 1)
    connection.close()
    live.until(lambda: list(live.client.ends.values()) == ["closed"])


def test_a_client_that_leaves_within_its_body(start: Start) -> None:
    live = start("x")
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert live.post(CHAT, json=HI).status_code == 200
    assert live.front.admission.in_flight == 0


def test_a_slow_reader_gets_everything_in_fewer_events(start: Start) -> None:
    """The engine runs to its end while nobody reads: what is pending merges, and nothing is lost."""
    words = 20_000
    text = "".join(chr(97 + i % 26) for i in range(words))
    info = msgspec.structs.replace(INFO, max_model_len=words + 100)
    live = start(text, info=info, burst=4, send_buffer=4096)
    connection = connect(live, HI | {"stream": True}, receive_buffer=4096)
    live.until(lambda: list(live.client.ends.values()) == ["finished"])
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += connection.recv(1 << 16)
    connection.close()
    body = b"".join(received.split(b"\r\n\r\n", 1)[1].split(b"\r\n")[1::2])
    events = [event.removeprefix("data: ") for event in body.decode().strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(deltas) == text
    assert len(deltas) < words / 4 / 2


def test_a_reader_that_stalls_is_cut_off_at_the_deadline(start: Start) -> None:
    live = start("y" * 400, config={"request_timeout": 0.5}, delay=0.002, send_buffer=4096)
    connection = connect(live, HI | {"stream": True}, receive_buffer=4096)
    live.until(lambda: list(live.client.ends.values()) == ["closed"])
    live.until(lambda: live.front.admission.in_flight == 0)
    connection.close()


def test_not_ready_until_the_engine_is(start: Start) -> None:
    gate = asyncio.Event()

    class Loading(MemoryClient):
        async def start(self) -> None:
            await gate.wait()

    live = start(client=Loading(lambda _: ids("x")), wait=False)
    assert live.get("/health").status_code == 200
    assert (live.get("/ready").status_code, live.get("/ready").json()["status"]) == (503, "starting")
    for reply in (live.post(CHAT, json=HI), live.get("/v1/models"), live.post("/tokenize", json={"prompt": "x"})):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "starting")
        assert int(reply.headers["retry-after"]) > 0
    live.call(gate.set)
    live.until(lambda: live.front.started)
    assert live.get("/ready").status_code == 200
    live.stop()
    assert live.client.closed


def test_a_restarting_worker_is_not_ready_but_requests_wait(start: Start) -> None:
    live = start("x")
    live.client.ready = False
    assert live.get("/ready").json()["status"] == "restarting"
    assert live.get("/health").status_code == 200
    assert live.post(CHAT, json=HI).status_code == 200
    live.client.failure = "the worker died too often"
    assert live.get("/health").status_code == 503


def test_drain_lets_streams_finish_and_takes_no_more(start: Start) -> None:
    live = start("abcdef", gate=asyncio.Event())
    connection = connect(live, HI | {"stream": True})
    live.until(lambda: live.front.admission.in_flight == 1)
    drained = asyncio.run_coroutine_threadsafe(drain(live.server, live.front, 20), live.loop)
    live.until(lambda: live.front.admission.draining)
    assert live.get("/ready").json()["status"] == "draining"
    refused = live.post(CHAT, json=HI)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    live.call(live.client.gate.set)
    drained.result(20)
    live.thread.join(20)
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    connection.close()
    assert b"[DONE]" in received
    assert list(live.client.ends.values()) == ["finished"]


def test_a_drain_that_takes_too_long_tells_its_streams(start: Start) -> None:
    live = start("abcdef" * 50, delay=0.05)
    connection = connect(live, HI | {"stream": True})
    live.until(lambda: live.front.admission.in_flight == 1)
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    asyncio.run_coroutine_threadsafe(drain(live.server, live.front, 0.05), live.loop).result(20)
    live.thread.join(20)
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    connection.close()
    assert b'"code":"stopped"' in received
    assert received.rstrip().endswith(b"0")
    assert list(live.client.ends.values()) == ["closed"]


SERVER = """
import sys
from slipstream.server import ServerConfig, run
from slipstream.spec.source import GenerationDefaults
from tests.server.memory_client import MemoryClient
from tests.server.toys import EOS_ID, TOKENIZER, ids

class Tells(MemoryClient):
    async def close(self):
        print("closed", flush=True)

run(
    ServerConfig(port=0, log_format="json", drain_timeout=float(sys.argv[1])),
    Tells(lambda _: ids("abc" * 20), delay=0.05),
    TOKENIZER,
    GenerationDefaults((EOS_ID,)),
    on_ready=lambda url: print(url, flush=True),
)
assert "jax" not in sys.modules
print("returned", flush=True)
"""


@pytest.mark.parametrize(("number", "twice"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)])
def test_signals_end_the_process(number: signal.Signals, twice: bool, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, "30"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with httpx.stream("POST", url + CHAT, json=HI | {"stream": True}, timeout=20) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(number)
            if twice:
                until_draining(url)
                process.send_signal(number)
            text = "\n".join(lines)
        assert ("[DONE]" in text) and (("stopped" in text) == twice)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0, (tmp_path / "log").read_text()
        assert out.split()[-1] == "returned"
        assert "closed" in out
    finally:
        process.kill()
        process.communicate()
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any(line["message"] == "draining" for line in logged)


def until_draining(url: str) -> None:
    for _ in range(2000):
        if httpx.get(url + "/ready").status_code == 503:
            return
        time.sleep(0.005)
    raise AssertionError("the server does not drain")


def test_an_engine_that_cannot_start_ends_the_run() -> None:
    code = """
from slipstream.errors import OutOfMemory
from slipstream.server import ServerConfig, run
from slipstream.spec.source import GenerationDefaults
from tests.server.memory_client import MemoryClient

class Broken(MemoryClient):
    async def start(self):
        raise OutOfMemory("needs 9 GiB")

try:
    run(ServerConfig(port=0), Broken(list), None, GenerationDefaults())
except OutOfMemory as error:
    print("caught", error)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env, check=True)
    assert done.stdout.strip() == "caught needs 9 GiB"


def test_a_taken_port_and_a_wrong_host_say_what_to_do() -> None:
    with bind(ServerConfig(port=0)) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match="choose another --port"):
            bind(ServerConfig(port=port))
    with pytest.raises(ConfigError, match="no such address"):
        bind(ServerConfig(host="no.such.host.invalid"))
    with bind(ServerConfig(host="0.0.0.0", port=0)) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")
