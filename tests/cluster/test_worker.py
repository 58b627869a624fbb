"""The worker's own half: its loop, step by step, and its socket against garbage."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from slipstream.api.engine import EngineStats, TokenOutput
from slipstream.cluster import worker
from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.messages import Abort, FromWorker, Outputs, Progress, Ready, Shutdown, Submit, ToWorker
from slipstream.cluster.post import Post
from slipstream.engine.config import EngineConfig
from tests.cluster.conftest import request_of, until
from tests.cluster.fake_engine import FACTORY, FakeEngine, FakeOptions, expected


class ScriptedLink:
    """Gives the messages of each turn, and records what the worker sends and whether it would have waited."""

    def __init__(self, turns: list[list[ToWorker]]) -> None:
        self.turns = iter(turns)
        self.waited: list[bool] = []
        self.sent: list[tuple[list[TokenOutput], EngineStats | None]] = []

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[ToWorker]:
        self.waited.append(wait)
        return next(self.turns)

    def send_outputs(self, outputs: list[TokenOutput], stats: EngineStats | None) -> None:
        self.sent.append((outputs, stats))


def test_one_message_a_step_and_stats_on_going_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STATS_INTERVAL", 1e9)
    requests = [request_of(1, max_tokens=2), request_of(2, max_tokens=3)]
    link = ScriptedLink([[Submit(requests)], [], [], [Shutdown()]])
    worker.serve(FakeEngine(FakeOptions(), 1), link)
    assert link.waited == [True, False, False, True]
    assert [[(o.id, len(o.token_ids)) for o in outputs] for outputs, _ in link.sent] == [
        [],
        [("r1", 1), ("r2", 1)],
        [("r1", 1), ("r2", 1)],
        [("r2", 1)],
    ]
    assert [stats and stats.steps for _, stats in link.sent] == [0, None, None, 3]


def test_an_abort_is_taken_before_the_next_step() -> None:
    engine = FakeEngine(FakeOptions(), 1)
    requests = [request_of(n, max_tokens=100) for n in range(3)]
    link = ScriptedLink([[Submit(requests)], [Abort(["r0", "r2"])], [Abort(["r1", "unknown"])], [Shutdown()]])
    worker.serve(engine, link)
    assert [[o.id for o in outputs] for outputs, _ in link.sent] == [[], ["r0", "r1", "r2"], ["r1"], []]
    assert engine.steps == 2 and not engine.rows
    assert link.sent[-1][1] is not None and link.sent[-1][1].running == 0


@pytest.fixture
def router(tmp_path: Path) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    endpoint = f"ipc://{tmp_path}/s"
    socket.bind(endpoint)
    socket.rcvtimeo = 20_000
    yield socket, endpoint
    context.destroy(linger=0)


def spawn(endpoint: str) -> subprocess.Popen[bytes]:
    config = WorkerConfig(
        model=FakeOptions().model(),
        engine=EngineConfig(),
        endpoint=endpoint,
        identity="me",
        incarnation=4,
        parent_pid=os.getpid(),
        engine_factory=FACTORY,
    )
    command = [sys.executable, "-P", "-m", "slipstream.cluster.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    process.stdin.flush()
    return process


def receive(socket: zmq.Socket[bytes]) -> FromWorker:
    identity, data = socket.recv_multipart()
    assert identity == b"me"
    message: FromWorker = msgspec.msgpack.decode(data, type=FromWorker)
    assert message.incarnation == 4
    return message


def test_garbage_does_not_kill_the_worker(router: tuple[zmq.Socket[bytes], str]) -> None:
    socket, endpoint = router
    with spawn(endpoint) as process:
        assert [type(receive(socket)) for _ in range(4)] == [Progress, Progress, Ready, Outputs]
        wrong_type = msgspec.msgpack.encode({"type": "submit", "requests": 5})
        unknown = msgspec.msgpack.encode({"type": "dance"})
        for junk in (b"", b"\xc1", b"\xff" * 1000, os.urandom(5000), wrong_type, unknown, b"\xdd\xff\xff\xff\xff"):
            socket.send_multipart([b"me", junk])
        request = request_of(1, max_tokens=3)
        socket.send_multipart([b"me", msgspec.msgpack.encode(Submit([request]))])
        tokens = []
        while len(tokens) < 3:
            message = receive(socket)
            assert isinstance(message, Outputs)
            tokens += [token for output in message.outputs for token in output.token_ids]
        assert tokens == expected(request)
        socket.send_multipart([b"me", msgspec.msgpack.encode(Shutdown())])
        assert process.stderr is not None and process.stdin is not None
        log = process.stderr.read()
        assert process.wait(20) == 0
    assert log.count(b"bytes that are not a message") == 7


def test_the_end_of_standard_input_ends_the_worker(router: tuple[zmq.Socket[bytes], str]) -> None:
    socket, endpoint = router
    with spawn(endpoint) as process:
        assert [type(receive(socket)) for _ in range(3)] == [Progress, Progress, Ready]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 1


async def test_garbage_and_strangers_do_not_reach_the_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    got: list[FromWorker] = []

    def deliver(message: FromWorker) -> None:
        got.append(message)
        if message.incarnation == 1:
            raise RuntimeError("a handler's mistake")

    post = Post()
    post.register(b"worker", deliver)
    context = zmq.asyncio.Context()
    peers = {}
    for name in (b"worker", b"stranger"):
        peers[name] = context.socket(zmq.DEALER)
        peers[name].setsockopt(zmq.ROUTING_ID, name)
        peers[name].connect(post.endpoint)
    await peers[b"stranger"].send(msgspec.msgpack.encode(Outputs(9, [])))
    for junk in ([b"\xc1"], [b""], [b"a", b"b"], [msgspec.msgpack.encode({"type": "ready"})]):
        await peers[b"worker"].send_multipart(junk)
    for incarnation in (1, 2):
        await peers[b"worker"].send(msgspec.msgpack.encode(Outputs(incarnation, [])))
    await until(lambda: len(got) == 2)
    await until(lambda: "a stranger" in caplog.text)
    assert got == [Outputs(1, []), Outputs(2, [])]
    assert caplog.text.count("that are not a message") == 4
    post.send(b"nobody", Shutdown())
    context.destroy(linger=0)
    await post.close()
