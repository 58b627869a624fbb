"""The whole comparison with participants that compute nothing: order, failures, table, JSON, plot, document."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slipstream.bench.peers.comparing import run
from slipstream.bench.peers.environments import Unavailable
from slipstream.bench.peers.options import PeersOptions
from slipstream.bench.peers.participants import Model, Participant
from slipstream.bench.peers.process import Failed
from slipstream.bench.peers.report import Report
from slipstream.bench.peers.run import Launch, Launcher
from slipstream.errors import ConfigError

FAKE = Path(__file__).parent / "fake.py"

ENTERED = (
    Participant("slipstream-exact", "Slipstream exact", "", "gguf", ("smollm2", "gemma3"), precision="exact"),
    Participant("slipstream-fast", "Slipstream fast", "", "gguf", ("smollm2", "gemma3"), precision="fast"),
    Participant("slipstream-http-exact", "", "", "gguf", ("smollm2",), precision="exact", http=True),
    Participant("openvino", "OpenVINO Q4_1", "", "gguf", ("smollm2",), "openvino"),
    Participant("vllm", "vLLM CPU bf16", "", "gguf", ("smollm2",), "vllm"),
)
SPEEDS = {"slipstream-exact": 200.0, "slipstream-fast": 400.0, "slipstream-http-exact": 100.0, "openvino": 80.0}

Compare = Callable[..., tuple[Report, str]]


def launcher(folder: Path, faults: dict[str, dict[str, object]]) -> Launcher:
    def launch(participant: Participant, model: Model, cpus: list[int], progress: object) -> Launch:
        name = participant.name
        if faults.get(name, {}).get("fault") == "missing":
            raise Unavailable("pip cannot install it")
        settings = {
            "name": name,
            "speed": SPEEDS.get(name, 50.0),
            "first": 10 / SPEEDS.get(name, 50.0),
            "log": str(folder / "commands"),
            **faults.get(name, {}),
        }
        return Launch((sys.executable, "-S", FAKE, json.dumps(settings)), {})

    return launch


@pytest.fixture
def comparison(tmp_path: Path) -> Compare:
    def go(faults: dict[str, dict[str, object]] | None = None, **options: Any) -> tuple[Report, str]:
        chosen = {"model": "smollm2", "rounds": 2, "workloads": "decode-1,ttft-128", "json": tmp_path / "report.json"}
        told, table = io.StringIO(), io.StringIO()
        report = run(
            PeersOptions(**{**chosen, **options}),
            console=Console(file=table, width=200),
            progress=Console(file=told, width=200),
            command=["slipstream", "bench", "peers"],
            participants=ENTERED,
            launcher=launcher(tmp_path, faults or {}),
            bandwidth=lambda: 20.0,
        )
        (tmp_path / "told").write_text(told.getvalue())
        return report, table.getvalue()

    return go


def commands(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "commands").read_text().splitlines()]


def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    plain = json.loads((folder / "report.json").read_text())
    return {(row["workload"], row["precision"]): row for row in plain["rows"]}


def test_rounds_alternate_and_everybody_gets_the_same_prompts(comparison: Compare, tmp_path: Path) -> None:
    comparison(workloads="decode-1", rounds=3)
    asked = commands(tmp_path)
    four = ["slipstream-exact", "slipstream-fast", "openvino", "vllm"]
    assert [name for name, *_ in asked] == [*four, *four[1:], *four[:1], *four[2:], *four[:2]]
    by_round = [{tuple(line[1:]) for line in asked[at : at + 4]} for at in (0, 4, 8)]
    assert [len(each) for each in by_round] == [1, 1, 1]
    assert len(set.union(*by_round)) == 3  # and no round has another's


def test_a_peer_far_behind_sits_out_after_two_rounds(comparison: Compare, tmp_path: Path) -> None:
    slow: dict[str, dict[str, object]] = {"vllm": {"speed": 39.0}}  # the best peer, OpenVINO, has 80
    names = ["openvino", "vllm"]

    def counts(report: Report) -> list[int]:
        return [len(report.results.samples["smollm2", "decode-1", name]) for name in names]

    report, table = comparison(slow, workloads="decode-1", rounds=4)
    assert "and so not in every round of each workload: vLLM CPU bf16." in table
    assert counts(report) == [4, 2]
    assert rows(tmp_path)["decode-1", "exact"]["vllm"] == pytest.approx(39)
    assert counts(comparison(slow, workloads="decode-1", rounds=4, thorough=True)[0]) == [4, 4]
    assert counts(comparison({"vllm": {"speed": 41.0}}, workloads="decode-1", rounds=3)[0]) == [3, 3]
    late: dict[str, dict[str, object]] = {"vllm": {"first": 0.3}}  # OpenVINO's first token comes at 0.125 s
    report, _ = comparison(late, workloads="ttft-128", rounds=3)
    assert [len(report.results.samples["smollm2", "ttft-128", name]) for name in names] == [3, 2]


def test_numbers_and_ratios(comparison: Compare, tmp_path: Path) -> None:
    comparison()
    decode = rows(tmp_path)["decode-1", "exact"]
    assert (decode["slipstream"], decode["openvino"], decode["vllm"]) == pytest.approx((200, 80, 50))
    assert (decode["best_peer"], decode["ratio"]) == ("openvino", pytest.approx(2.5))
    first = rows(tmp_path)["ttft-128", "fast"]
    assert (first["slipstream"], first["openvino"], first["ratio"]) == pytest.approx((25, 125, 5))


def test_the_report(comparison: Compare, tmp_path: Path) -> None:
    comparison()
    plain = json.loads((tmp_path / "report.json").read_text())
    assert plain["schema"] == "slipstream.bench.peers/1"
    assert plain["command"] == ["slipstream", "bench", "peers"]
    assert (plain["rounds"], plain["options"]["seed"]) == (2, 0)
    assert plain["versions"]["vllm"] == {"fake": "vllm"}
    assert plain["machine"]["host"]["cpu_model"]
    (samples,) = [
        each for each in plain["samples"] if (each["workload"], each["participant"]) == ("ttft-128", "openvino")
    ]
    assert (len(samples["samples"]), samples["min"], samples["max"]) == (2, 125, 125)
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_the_server_is_measured_where_users_meet_it(comparison: Compare, tmp_path: Path) -> None:
    comparison(workloads="serve-32", precision="exact")
    assert {name for name, *_ in commands(tmp_path)} == {"slipstream-http-exact", "openvino", "vllm"}
    assert rows(tmp_path)["serve-32", "exact"]["ratio"] == pytest.approx(1.25)


def test_fresh_processes_and_bandwidth(comparison: Compare, tmp_path: Path) -> None:
    report, _ = comparison(workloads="decode-1,start,memory-32,bandwidth", precision="exact")
    start, memory = rows(tmp_path)["start", "exact"], rows(tmp_path)["memory-32", "exact"]
    assert 0 < start["slipstream"] < 30 and start["ratio"] > 0
    assert memory["metric"] == "MiB" and 3 < memory["slipstream"] < 200
    assert report.results.bandwidth == [20.0, 20.0]
    share = rows(tmp_path)["bandwidth", "exact"]
    # 200 tokens a second of a model of some 96.6 MB, beside 20 GB/s.
    assert (share["best_peer"], share["slipstream"]) == (None, pytest.approx(96.6, abs=0.2))


def test_a_peer_that_dies_leaves_the_others_alone_and_comes_back(comparison: Compare, tmp_path: Path) -> None:
    faults: dict[str, dict[str, object]] = {"openvino": {"fault": "killed", "when": 8}}
    report, table = comparison(faults, workloads="decode-1,decode-8,ttft-128")
    assert rows(tmp_path)["decode-8", "exact"]["openvino"] is None
    assert rows(tmp_path)["decode-8", "exact"]["errors"] == {"openvino": "it ended with signal SIGKILL"}
    assert rows(tmp_path)["decode-8", "exact"]["best_peer"] == "vllm"
    assert rows(tmp_path)["ttft-128", "exact"]["openvino"] == 125
    assert len(report.results.samples["smollm2", "ttft-128", "openvino"]) == 2
    assert "OpenVINO Q4_1 failed in decode-8: it ended with signal SIGKILL" in table


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "pip cannot install it"),
        ("error", "Trouble: as asked"),
        ("exits", "it ended with exit status 3: out of luck"),
    ],
)
def test_a_peer_that_cannot_take_part_is_reported(comparison: Compare, tmp_path: Path, fault: str, reason: str) -> None:
    _, table = comparison({"vllm": {"fault": fault}})
    row = rows(tmp_path)["decode-1", "exact"]
    assert (row["vllm"], row["errors"], row["best_peer"]) == (None, {"vllm": reason}, "openvino")
    assert f"vLLM CPU bf16 failed in decode-1, ttft-128: {reason}" in table
    assert "failed" in next(line for line in table.splitlines() if line.strip().startswith("decode-1"))


def test_the_table(comparison: Compare, tmp_path: Path) -> None:
    _, table = comparison()
    (line,) = [line for line in table.splitlines() if line.strip().startswith("decode-1")]
    assert line.split() == ["decode-1", "tok/s", "200", "400", "80*", "50", "2.50x", "5.00x"]
    assert "2 round(s): too few to quote." in table
    assert "round 2 of 2: SmolLM2-135M-Instruct, Q4_1, round 2" in (tmp_path / "told").read_text()


def test_the_document(comparison: Compare, tmp_path: Path) -> None:
    document = tmp_path / "docs" / "performance.md"
    (tmp_path / "docs" / "images").mkdir(parents=True)
    document.write_text("# Before\n<!-- peers -->\nold\n<!-- /peers -->\nAfter.\n")
    comparison(docs=document, plot=tmp_path / "docs" / "images" / "peers.png")
    text = document.read_text()
    assert text.startswith("# Before\n<!-- peers -->\n") and text.endswith("\n<!-- /peers -->\nAfter.\n")
    assert "old" not in text
    assert "| decode-1 | tok/s | 200 | 400 | 80\\* | 50 | 2.50x | 5.00x |" in text
    assert "```\nslipstream bench peers\n```" in text
    assert "](images/peers.png)" in text


def test_a_document_without_markers_is_refused_before_anything_runs(comparison: Compare, tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("<!-- peers -->\n")
    with pytest.raises(ConfigError, match="once each and in this order"):
        comparison(docs=document)
    assert not (tmp_path / "commands").exists()


def test_a_bandwidth_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    def broken() -> float:
        raise Failed("no native library")

    report = run(
        PeersOptions(
            model="smollm2", rounds=1, workloads="decode-1,bandwidth", precision="exact", json=tmp_path / "report.json"
        ),
        console=Console(file=io.StringIO()),
        progress=Console(file=io.StringIO()),
        participants=ENTERED[:1],
        launcher=launcher(tmp_path, {}),
        bandwidth=broken,
    )
    assert report.results.errors == {("smollm2", "bandwidth", "slipstream-exact"): "no native library"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": "ollama"}, "--peers has no 'ollama': there are"),
        ({"workloads": "decode-1,encode"}, "--workloads has no 'encode'"),
        ({"precision": "loose"}, "--precision has no 'loose'"),
        ({"precision": ""}, "--precision takes exact, fast, got nothing"),
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"plot": Path("a.gif")}, "--plot must end in"),
        ({"docs": Path("nowhere.md")}, "--docs takes a Markdown file that exists"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PeersOptions(**options)


def test_peers_are_named_one_by_one_or_by_family() -> None:
    every = PeersOptions().peer_names
    assert every == (
        *("openvino", "llamacpp-q4_1", "llamacpp-q4_0", "llamacpp-q8_0", "llamacpp-q4_k_m", "vllm", "transformers"),
    )
    assert PeersOptions(peers="llamacpp").peer_names == every[1:5]
    assert PeersOptions(peers="vllm, llamacpp-q8_0").peer_names == ("llamacpp-q8_0", "vllm")
    assert PeersOptions(peers="none").peer_names == ()


def test_more_threads_than_there_are_is_refused(comparison: Compare) -> None:
    with pytest.raises(ConfigError, match="--threads 4096 is more than the"):
        comparison(threads=4096)
