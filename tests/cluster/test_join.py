"""Workers on other hosts, by real processes on this one: who may join, and what their deaths look like to streams."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from slipstream.cluster import curve, remote
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.keeper_messages import Here, Kill, Refuse, ToKeeper
from slipstream.cluster.launch import Listen
from slipstream.cluster.messages import Ready
from slipstream.cluster.post import KEEPER, Post
from slipstream.cluster.remote import JoinLauncher, Keepers
from slipstream.cluster.transfer.address import own_address
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from tests.cluster.conftest import EAGER, alive, outputs_of, request_of, tokens_of, until
from tests.cluster.fake_engine import FACTORY, FakeOptions, expected

SECRET = "a secret of two hosts"
LOCAL = "tcp://127.0.0.1:*"


@contextmanager
def keeper(endpoint: str, secret: str = SECRET) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "slipstream", "worker", endpoint],
        env=os.environ | {curve.SECRET_VARIABLE: secret},
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def listening(client: WorkerClient) -> tuple[asyncio.Task[None], str]:
    """The client, waiting for its worker, and where."""
    starting = asyncio.create_task(client.start())
    await until(lambda: client._post is not None)
    assert client._post is not None
    return starting, client._post.endpoint


async def child_of(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    await until(lambda: len(children.read_text().split()) == 1)
    return int(children.read_text())


async def test_streams_go_on_when_a_worker_and_when_a_host_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_BEATS", 2)
    launcher = JoinLauncher(Listen(LOCAL, SECRET))
    model = FakeOptions(step_seconds=0.005).model()
    client = WorkerClient(TOKENS, model, EngineConfig(), policy=EAGER, engine_factory=FACTORY, launcher=launcher)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        starting, endpoint = await listening(client)
        first = stack.enter_context(keeper(endpoint))
        await starting
        second = stack.enter_context(keeper(endpoint))
        keepers = launcher._keepers
        assert keepers is not None
        await until(lambda: len(keepers.places) == 2)
        requests = [request_of(n, max_tokens=500) for n in range(16)]
        tasks = [asyncio.create_task(outputs_of(client, request)) for request in requests]
        await until(lambda: client.stats.steps > 10)
        worker = await child_of(first)
        os.kill(worker, signal.SIGKILL)
        await until(lambda: client.ready and client.restarts == 1)
        worker = await child_of(first)  # where it was, though another host is free
        first.kill()  # the host: its worker goes with it
        for request, outputs in zip(requests, await asyncio.gather(*tasks), strict=True):
            assert tokens_of(outputs) == expected(request)
        assert client.restarts == 2
        assert not alive(worker)
        worker = await child_of(second)
        await client.close()
        await until(lambda: not alive(worker))
        assert second.poll() is None


async def test_a_keeper_is_free_for_the_next_parent() -> None:
    config = WorkerConfig(
        model=FakeOptions().model(),
        endpoint="",
        identity="theirs",
        incarnation=1,
        parent_pid=0,
        engine_factory=FACTORY,
    )
    endpoint = LOCAL
    with ExitStack() as stack:
        process = None
        for _ in range(2):
            post = Post(endpoint, SECRET)
            keepers = Keepers(post)
            endpoint = post.endpoint
            process = process or stack.enter_context(keeper(endpoint))
            got: list[object] = []
            post.register(b"theirs", got.append)
            worker = keepers.start(await keepers.free(lambda *_: True), config)
            await until(lambda got=got: any(isinstance(message, Ready) for message in got))
            pid = await child_of(process)
            await until(lambda worker=worker, pid=pid: worker.remote_pid == pid)
            # The parent goes without a word.
            await keepers.close()
            await post.close()
            await until(lambda pid=pid: not alive(pid))


async def test_without_the_secret_nobody_joins_or_is_joined() -> None:
    post = Post(LOCAL, SECRET)
    keepers = Keepers(post)
    context = zmq.asyncio.Context()
    keys = curve.keys_of(SECRET)
    strangers = {}
    for name in ("plain", "other secret", "another client"):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, KEEPER + name.encode())
        if name == "other secret":
            curve.guard_client(socket, "another secret of theirs")
        if name == "another client":  # It knows the listener's public key, and has keys of its own.
            socket.curve_serverkey = keys.listener[0]
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(post.endpoint)
        await socket.send(msgspec.msgpack.encode(Here(remote.__version__, name, "both")))
        strangers[name] = socket
    friend = context.socket(zmq.DEALER)
    friend.setsockopt(zmq.ROUTING_ID, KEEPER + b"friend")
    curve.guard_client(friend, SECRET)
    friend.connect(post.endpoint)
    decoder = msgspec.msgpack.Decoder(ToKeeper)
    await friend.send(msgspec.msgpack.encode(Here("0.0.0", "old", "both")))
    refusal = decoder.decode(await friend.recv())
    assert isinstance(refusal, Refuse) and "0.0.0" in refusal.why
    await friend.send(b"\xc1")
    await friend.send(msgspec.msgpack.encode(Here(remote.__version__, "friend", "both", "of another parent", 7)))
    assert decoder.decode(await friend.recv()) == Kill("of another parent")
    await asyncio.sleep(0.5)
    assert keepers.places == ["friend"]
    await keepers.close()
    context.destroy(linger=0)
    await post.close()


def test_what_others_reach_needs_a_secret() -> None:
    async def listen(endpoint: str, secret: str | None) -> None:
        await Post(endpoint, secret).close()

    with pytest.raises(ConfigError, match="set a secret"):
        asyncio.run(listen("tcp://0.0.0.0:*", None))
    with pytest.raises(ConfigError, match="write tcp://HOST:PORT"):
        asyncio.run(listen("0.0.0.0", None))
    with pytest.raises(ConfigError, match=r"cannot listen on tcp://192\.0\.2\.1:1 for workers"):
        asyncio.run(listen("tcp://192.0.2.1:1", SECRET))
    asyncio.run(listen("tcp://0.0.0.0:*", SECRET))
    asyncio.run(listen(LOCAL, None))


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [("127.0.0.9", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("node", False)],
)
def test_loopback(endpoint: str, answer: bool) -> None:
    assert curve.is_loopback(f"tcp://{endpoint}:5557") is answer


def test_the_secret_comes_from_a_file_or_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    assert curve.read_secret(file, {}) == curve.read_secret(None, {curve.SECRET_VARIABLE: SECRET}) == SECRET
    with pytest.raises(ConfigError, match="at least 16 characters"):
        curve.read_secret(None, {})
    with pytest.raises(ConfigError, match="cannot read"):
        curve.read_secret(tmp_path / "nothing", {})


def test_a_host_knows_the_address_that_others_reach_it_at() -> None:
    assert own_address("tcp://127.0.0.1:5557") == "127.0.0.1"
    assert own_address("tcp://localhost:5557") in ("127.0.0.1", "[::1]")


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(Listen(LOCAL, SECRET)) and "Keys object" in repr(curve.keys_of(SECRET))
