"""The load generator against an endpoint with known delays and faults. Orders and counts, no exact times."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slipstream.bench.options import ServeOptions
from slipstream.bench.report import Report
from slipstream.bench.serve import run
from slipstream.errors import ConfigError, EndpointError

from .endpoint import Endpoint, running


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with running() as endpoint:
        yield endpoint


def load(server: Endpoint, folder: Path, **options: Any) -> tuple[Report, str]:
    console = Console(file=io.StringIO(), width=120)
    defaults: dict[str, Any] = {"requests": 6, "warmup": 0, "prompt_tokens": "8", "output_tokens": "4"}
    given = {**defaults, "base_url": server.url, "output": folder / "report.json", **options}
    report = run(ServeOptions(**given), console=console, command=["slipstream", "bench", "serve"])
    return report, console.file.getvalue()  # type: ignore[attr-defined]


def test_counts_and_files(endpoint: Endpoint, tmp_path: Path) -> None:
    report, said = load(endpoint, tmp_path, warmup=2, slo=("ttft:60000",))
    summary = report.summary
    assert len(endpoint.bodies) == 8 and endpoint.bodies[-1]["model"] == "toy"
    assert (summary.requests, summary.succeeded, summary.errors) == (6, 6, {})
    assert (summary.input_tokens, summary.output_tokens) == (48, 24)
    assert summary.itl_of == "tokens" and summary.good_share == 1.0
    assert [len(row.chunks) for row in report.rows] == [4] * 6
    assert "6 of 6" in said and "ITL" in said and "(chunks)" not in said and "Goodput (ttft 60000 ms)" in said
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["schema"] == "slipstream.bench.serve/1"
    assert set(written) == {"schema", "created", "command", "machine", "model", "options", "summary", "rows"}
    assert written["command"] == ["slipstream", "bench", "serve"]
    assert written["options"]["rate"] == "inf" and written["options"]["requests"] == 6
    assert written["summary"]["ttft"]["count"] == 6
    assert [row["index"] for row in written["rows"]] == list(range(6))
    assert len(written["rows"][0]["chunks"]) == 4 and written["rows"][0]["failure"] is None
    assert {"system", "python", "slipstream", "host"} == set(written["machine"])
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_chat_and_an_svg(endpoint: Endpoint, tmp_path: Path) -> None:
    report, _ = load(endpoint, tmp_path, endpoint="chat", plot=tmp_path / "plot.svg")
    assert report.summary.input_tokens == 48
    assert [len(row.chunks) for row in report.rows] == [4] * 6  # The chunk that brings only the role is no token.
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_delays_are_measured(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.delay, endpoint.gap = 0.2, 0.05
    report, _ = load(endpoint, tmp_path)
    for row in report.rows:
        assert row.ttft is not None and row.ttft >= 0.2
        assert row.e2e >= 0.2 + 3 * 0.05
        assert row.tpot is not None and row.e2e > row.ttft > row.tpot


def test_waiting_for_a_turn_counts_as_latency(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.delay = 0.1
    report, said = load(endpoint, tmp_path, concurrency=2)
    assert endpoint.most_open == 2 and report.summary.peak_in_flight == 2
    assert all(row.scheduled == 0 for row in report.rows)
    first, last = report.rows[0], report.rows[-1]
    assert last.late > 0.1 and last.ttft is not None and first.ttft is not None
    assert last.ttft > first.ttft + 0.1
    assert "late (waiting for a free place under --concurrency)" in said


def test_arrivals_do_not_wait_for_answers(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.delay = 0.5
    report, _ = load(endpoint, tmp_path, rate=50, arrivals="constant")
    assert endpoint.most_open == 6
    assert [row.scheduled for row in report.rows] == pytest.approx([i / 50 for i in range(6)])
    assert all(row.sent >= row.scheduled for row in report.rows)


def test_every_failure_is_counted(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = {0: "busy", 1: "cut", 2: "error", 3: "hang"}
    report, said = load(endpoint, tmp_path, concurrency=1, timeout=1.0)
    assert report.summary.errors == {"http_429": 1, "truncated": 1, "stream": 1, "timeout": 1}
    assert (report.summary.succeeded, report.summary.failed) == (2, 4)
    assert "The queue is full." in said and "The worker died." in said and "4 requests failed" in said
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["rows"][0]["failure"] == {"kind": "http_429", "message": "The queue is full."}


def test_chunks_of_several_tokens(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.tokens_per_chunk = 2
    report, said = load(endpoint, tmp_path)
    assert report.summary.itl_of == "chunks" and report.summary.tokens_per_chunk == 2.0
    assert report.summary.output_tokens == 24
    assert "A chunk carried 2.00 tokens" in said and "ITL (chunks)" in said


def test_no_usage_and_early_ends(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.usage, endpoint.stop_after = False, 3
    report, said = load(endpoint, tmp_path)
    assert report.summary.without_usage == 6 and report.summary.output_tokens == 18
    assert "6 answers came without usage" in said and "6 answers ended before max_tokens." in said


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"nothing answers at http://127.0.0.1:9/v1 .*slipstream serve"):
        load(Endpoint(url="http://127.0.0.1:9"), tmp_path)


def test_keys_come_from_the_variable(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.key = "sk-1"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="set OPENAI_API_KEY"):
        load(endpoint, tmp_path)
    monkeypatch.setenv("MY_KEY", "sk-1")
    report, said = load(endpoint, tmp_path, api_key_variable="MY_KEY")
    assert report.summary.succeeded == 6
    assert "sk-1" not in said + (tmp_path / "report.json").read_text()


def test_a_failing_warm_up_ends_the_run(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = {0: "busy"}
    with pytest.raises(EndpointError, match=r"warm-up request failed \(http_429\): The queue is full"):
        load(endpoint, tmp_path, warmup=1)


def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "aiohttp":
            raise ImportError("No module named 'aiohttp'", name="aiohttp")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs aiohttp.*pip install 'slipstream\[bench\]'"):
        load(Endpoint(url="http://127.0.0.1:9"), tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(Endpoint(url="http://127.0.0.1:9"), tmp_path / "none")
