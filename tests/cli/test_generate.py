"""`slipstream generate` with a small model in its own worker process, from the command line to the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slipstream.checkpoint import RandomSource, save_checkpoint
from slipstream.cli.generate import GenerateOptions
from slipstream.errors import ConfigError
from slipstream.models.registry import family
from tests.models.variants.llama import LLAMA


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = family(LLAMA)
    source = RandomSource(members.plan(members.from_hf(LLAMA)))
    return save_checkpoint(source, tmp_path_factory.mktemp("models") / "tiny", LLAMA)


def line(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}) + "\n"


ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def command(model: Path, source: Path, target: Path) -> list[str | Path]:
    sizes = ["--max-model-len", "64", "--max-seqs", "2", "--max-batched-tokens", "16", "--kv-bytes", "1MiB"]
    return [sys.executable, "-m", "slipstream", "generate", source, target, "--model", model, *sizes]


def run(model: Path, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    line = command(model, source, target)
    return subprocess.run(line, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)


def test_answers_errors_and_resumption(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        line("a", prompt=[1, 2, 3], max_tokens=4, temperature=0, ignore_eos=True, return_token_ids=True)
        + line("b", prompt=[5] * 30, max_tokens=6, seed=1, ignore_eos=True)
        + line("text", prompt="no tokenizer here")
        + line("long", prompt=[1] * 200)
        + line("c", prompt=[1, 2, 3], max_tokens=4, temperature=0, ignore_eos=True, return_token_ids=True)
    )
    done = run(model, source, target)
    assert done.returncode == 1, done.stderr
    assert "3 answered, 2 failed, 0 had a result before" in done.stderr
    rows = {row["custom_id"]: row["response"] for row in map(json.loads, target.read_text().splitlines())}
    assert {name: row["status_code"] for name, row in rows.items()} == {
        "a": 200, "b": 200, "c": 200, "text": 400, "long": 400,
    }  # fmt: skip
    assert rows["a"]["body"]["usage"]["completion_tokens"] == 4
    assert rows["b"]["body"]["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 30, "completion_tokens": 6, "total_tokens": 36, "prompt_tokens_details": None,
    }  # fmt: skip
    assert rows["a"]["body"]["choices"][0]["token_ids"] == rows["c"]["body"]["choices"][0]["token_ids"]
    assert rows["a"]["body"]["model"] == "tiny"
    assert "tokenizer" in rows["text"]["body"]["error"]["message"]
    assert all(row["request_id"] for row in rows.values())

    again = run(model, source, target)
    assert again.returncode == 0
    assert "0 answered, 0 failed, 5 had a result before" in again.stderr
    assert len(target.read_text().splitlines()) == 5


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_leaves_nothing(
    model: Path, tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    source, target, temporary = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "tmp"
    temporary.mkdir()
    source.write_text("".join(line(f"{i}", prompt=[i + 1], max_tokens=60, ignore_eos=True) for i in range(2000)))
    process = subprocess.Popen(
        command(model, source, target), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT | {"TMPDIR": str(temporary)}
    )
    while process.poll() is None and not (target.exists() and target.stat().st_size):
        time.sleep(0.02)
    process.send_signal(stop)
    said = process.communicate(timeout=60)[1]
    results = target.read_text().splitlines()
    assert process.returncode == code, said
    assert 0 < len(results) < 2000
    assert f"stopped with {2000 - len(results)} of 2000 lines left: run the same command again" in said
    assert [path.name for path in temporary.glob("slipstream*")] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"concurrency": 0}, "at least 1"), ({"url": "http://a", "model": "b"}, "leave --url out")],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerateOptions(**fields)
