"""The client and a healthy worker: streams, aborts, slow readers, starting and ending."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slipstream import errors
from slipstream.api.engine import TokenOutput
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import RestartPolicy
from slipstream.cluster.messages import Abort, Outputs
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from tests.cluster.conftest import EAGER, ROOT, Start, alive, outputs_of, request_of, tokens_of, until
from tests.cluster.fake_engine import FACTORY, REFUSED, FakeOptions, expected


def folder_of(client: WorkerClient) -> Path:
    assert client._post is not None
    return Path(client._post.endpoint.removeprefix("ipc://")).parent


def sent_by(client: WorkerClient, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    worker = client._slots[0].worker
    assert worker is not None
    sent: list[Any] = []
    send = worker.send
    monkeypatch.setattr(worker, "send", lambda message: (sent.append(message), send(message))[1])
    return sent


async def test_start_reports_progress_and_the_engine(start: Start) -> None:
    progress = []
    client = await start(on_progress=lambda *state: progress.append(state))
    assert progress == [("load", 0, 2), ("load", 2, 2)]
    assert client.info.model == "fake" and client.ready and client.failure is None


async def test_a_refused_request_is_an_error_output(start: Start) -> None:
    client = await start()
    bad, good = request_of(1, prompt=(REFUSED,)), request_of(2)
    [output] = await outputs_of(client, bad)
    assert (output.id, output.finish_reason, output.error) == ("r1", "error", "this prompt is refused")
    assert tokens_of(await outputs_of(client, good)) == expected(good)


async def test_two_requests_of_one_name_do_not_mix(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.001))
    requests = [request_of(1, max_tokens=20, prompt=(n,)) for n in range(3)]
    answers = await asyncio.gather(*(outputs_of(client, request) for request in requests))
    for request, outputs in zip(requests, answers, strict=True):
        assert tokens_of(outputs) == expected(request)
        assert {output.id for output in outputs} == {"r1"}


async def test_a_slow_reader_gets_few_large_outputs(start: Start) -> None:
    client = await start()
    request = request_of(1, max_tokens=20_000, logprobs=0)
    outputs: list[TokenOutput] = []
    async for output in client.generate(request):
        outputs.append(output)
        if len(outputs) == 1:
            await until(lambda: client.stats.generation_tokens == 20_000 and client.stats.running == 0)
    assert len(outputs) == 2
    assert tokens_of(outputs) == expected(request)
    assert [len(o.logprobs or []) for o in outputs] == [len(o.token_ids) for o in outputs]
    assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_early_aborts_once(start: Start, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    client = await start(FakeOptions(step_seconds=0.002))
    sent = sent_by(client, monkeypatch)
    request = request_of(1, max_tokens=100_000)
    if how == "close":
        stream = client.generate(request)
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
    else:
        task = asyncio.create_task(outputs_of(client, request))
        await until(lambda: client.stats.steps > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: client.stats.running == 0)
    assert [message.ids for message in sent if isinstance(message, Abort)] == [["0:r1"]]


async def test_a_finished_request_is_not_aborted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await start()
    sent = sent_by(client, monkeypatch)
    await outputs_of(client, request_of(1))
    stream = client.generate(request_of(2, max_tokens=1))
    await anext(stream)
    await stream.aclose()
    assert not [message for message in sent if isinstance(message, Abort)]


async def test_messages_of_an_old_incarnation_are_dropped(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.01))
    request = request_of(1, max_tokens=40)
    seen: list[int] = []
    async for output in client.generate(request):
        seen += output.token_ids
        worker = client._slots[0].worker
        assert worker is not None
        worker._deliver(Outputs(0, [TokenOutput(id="0:r1", token_ids=[1, 2, 3])]))
    assert seen == expected(request)


@pytest.mark.parametrize(
    ("name", "raised"),
    [
        ("ModelNotFound", errors.ModelNotFound),
        ("OutOfMemory", errors.OutOfMemory),
        ("UnsupportedModel", errors.UnsupportedModel),
        ("SomethingElse", errors.WorkerError),
    ],
)
async def test_a_start_that_fails_raises_the_workers_error(
    start: Start, name: str, raised: type[errors.SlipstreamError]
) -> None:
    with pytest.raises(errors.SlipstreamError, match="what a person should read") as caught:
        await start(FakeOptions(error_at_start=name))
    assert type(caught.value) is raised


async def test_a_start_that_dies_without_a_word_tells_its_last_lines(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.WorkerError, match=r"exited with code 9.*last lines:\n(.*\n)*about to exit"):
        await start(FakeOptions(exit_at_start=9))
    captured = capfd.readouterr()
    assert "about to exit" in captured.err and captured.out == ""


async def test_close_leaves_no_process_and_no_folder(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.01))
    folder, pid = folder_of(client), client.worker_pids[0]
    assert folder.stat().st_mode & 0o777 == 0o700
    task = asyncio.create_task(outputs_of(client, request_of(1, max_tokens=100_000)))
    await until(lambda: client.stats.steps > 0)
    await client.close()
    await client.close()
    with pytest.raises(errors.RequestFailed, match="shutting down"):
        await task
    assert not alive(pid) and not folder.exists()


async def test_close_kills_a_worker_that_does_not_answer(start: Start) -> None:
    client = await start(policy=RestartPolicy(shutdown_timeout=0.2))
    pid = client.worker_pids[0]
    os.kill(pid, signal.SIGSTOP)
    await client.close()
    assert not alive(pid)


async def test_close_while_starting(start: Start) -> None:
    client = WorkerClient(TOKENS, FakeOptions(start_seconds=60).model(), EngineConfig(), engine_factory=FACTORY)
    starting = asyncio.create_task(client.start())
    await until(lambda: bool(client.worker_pids))
    folder, pid = folder_of(client), client.worker_pids[0]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(pid) and not folder.exists()


async def test_close_while_restarting(start: Start) -> None:
    client = await start(FakeOptions(start_seconds=0.3), EAGER)
    first = client.worker_pids[0]
    os.kill(first, signal.SIGKILL)
    await until(lambda: client.worker_pids[0] != first)
    second = client.worker_pids[0]
    await client.close()
    assert not alive(second)


PARENT = """
import asyncio, sys
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from tests.cluster.fake_engine import FACTORY, FakeOptions
from tests.cluster.conftest import request_of

async def main():
    model = FakeOptions(step_seconds=float(sys.argv[1])).model()
    client = WorkerClient(TOKENS, model, EngineConfig(), engine_factory=FACTORY)
    await client.start()
    stream = client.generate(request_of(1, max_tokens=100_000))
    await anext(stream)
    print(client.worker_pids[0], client._post.endpoint.removeprefix("ipc://"), flush=True)
    if sys.argv[2] == "wait":
        await asyncio.sleep(60)
    sys.exit(5)

asyncio.run(main())
"""


@pytest.mark.parametrize("ending", ["killed", "exits"])
async def test_the_worker_dies_with_its_parent(ending: str) -> None:
    command = [sys.executable, "-c", PARENT, "0.01", "wait" if ending == "killed" else "exit"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        pid, socket = (await asyncio.to_thread(parent.stdout.readline)).split()
        if ending == "killed":
            parent.kill()
    await until(lambda: not alive(int(pid)))
    if ending == "exits":
        assert not Path(socket).parent.exists()


async def test_the_http_half_loads_no_jax() -> None:
    code = "import sys, slipstream.cluster.worker_client; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
