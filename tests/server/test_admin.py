"""Draining and reloading over HTTP: real worker processes (with a small engine) behind a real socket."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import httpx
import pytest

from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import RestartPolicy, WorkerSpec
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.server.admin import check_admin
from slipstream.server.config import ServerConfig
from slipstream.spec.source import GenerationDefaults
from tests.cluster.fake_engine import FACTORY, FakeOptions

from .conftest import Live, Start

ROOT = Path(__file__).parents[2]
KEY = {"authorization": "Bearer secret"}
SLOW = FakeOptions(step_seconds=0.005)


@pytest.fixture
def live(start: Start, monkeypatch: pytest.MonkeyPatch) -> Live:
    """A server with two workers, a key, and no tokenizer."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "secret")
    client = WorkerClient(
        TOKENS,
        SLOW.model(),
        [WorkerSpec(engine=EngineConfig())] * 2,
        policy=RestartPolicy(delays=(0.0,)),
        engine_factory=FACTORY,
    )
    return start(client=client, tokenizer=None, generation=GenerationDefaults(), config={"admin": True})


def post(live: Live, path: str, body: dict[str, object]) -> httpx.Response:
    return live.post(path, json=body, headers=KEY)


def tokens(live: Live, count: int) -> list[int]:
    reply = post(live, "/v1/completions", {"prompt": [1, 2, 3], "max_tokens": count, "seed": 1, "temperature": 0})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["token_ids"]


def test_a_worker_leaves_and_weights_change_under_requests(live: Live) -> None:
    assert live.get("/admin/workers").status_code == 401
    listed = live.get("/admin/workers", headers=KEY).json()["workers"]
    assert [(one["worker"], one["state"]) for one in listed] == [(0, "ready"), (1, "ready")]
    health = live.get("/health").json()
    assert health["workers"][1] == {"worker": 1, "role": "both", "state": "ready", "restarts": 0}
    alone = tokens(live, 150)
    answers: list[list[int]] = []
    threads = [threading.Thread(target=lambda: answers.append(tokens(live, 150))) for _ in range(6)]
    for thread in threads:
        thread.start()
    live.until(lambda: sum(state.requests for state in live.client.workers) == 6)
    drained = post(live, "/admin/drain", {"worker": 0, "timeout": 0})
    assert (drained.status_code, drained.json()["moved"]) == (200, 3)
    assert [one["state"] for one in drained.json()["workers"]] == ["left", "ready"]
    changed = post(live, "/admin/reload", {"model": FakeOptions(step_seconds=0.004).model(), "timeout": 0})
    assert changed.status_code == 200, changed.text
    assert [one["state"] for one in changed.json()["workers"]] == ["ready", "ready"]
    assert all("0.004" in one["model"] for one in changed.json()["workers"])
    for thread in threads:
        thread.join()
    assert answers == [alone] * 6


def test_what_cannot_be(live: Live) -> None:
    assert post(live, "/admin/drain", {"worker": 5}).status_code == 404
    assert post(live, "/admin/drain", {"worker": 0, "timeout": -1}).status_code == 400
    assert post(live, "/admin/drain", {"name": 0}).status_code == 400
    failed = post(live, "/admin/reload", {"model": FakeOptions(error_at_start="CheckpointError").model(), "timeout": 0})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "reload_failed")
    assert "what a person should read" in failed.json()["error"]["message"]
    live.until(lambda: all(state.state == "ready" for state in live.client.workers))
    assert post(live, "/admin/drain", {"worker": 0, "timeout": 0}).status_code == 200
    last = post(live, "/admin/drain", {"worker": 1})
    assert last.status_code == 409 and "last one" in last.json()["error"]["message"]
    # A test's server has no process to end.
    assert post(live, "/admin/drain", {}).status_code == 503


def test_the_whole_server_may_drain(start: Start) -> None:
    live = start(config={"admin": True})
    asked: list[float] = []
    live.front.leave = asked.append
    assert live.post("/admin/drain", json={"timeout": 3}).status_code == 202
    assert asked == [3.0]


def test_without_the_flag_there_is_nothing(start: Start) -> None:
    live = start()
    assert live.get("/admin/workers").status_code == 404
    assert live.post("/admin/drain", json={}).status_code == 404


def test_an_open_address_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPSTREAM_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="lets everybody"):
        check_admin(ServerConfig(host="0.0.0.0", admin=True))
    check_admin(ServerConfig(admin=True))
    check_admin(ServerConfig(host="0.0.0.0"))
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "secret")
    check_admin(ServerConfig(host="0.0.0.0", admin=True))
