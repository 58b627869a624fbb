"""`slipstream bench step` on a tiny model: calls are counted and added up, with what they read and do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from slipstream.bench import ceilings, step
from slipstream.bench.ceilings import Ceilings
from slipstream.bench.options import StepOptions
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from tests.engine.test_native import CONFIG, checkpoint

pytestmark = pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")

LAYERS = CONFIG["num_hidden_layers"]


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "measure", lambda: Ceilings(1e10, 1e11, 5e10))


def test_a_step_is_taken_apart(tmp_path: Path) -> None:
    text = io.StringIO()
    options = StepOptions(streams=(1, 2), context=5, prompt=12, steps=10, json=tmp_path / "step.json")
    found = step.run(checkpoint(), options, console=Console(file=text))
    assert [one.tokens for one in found] == [1, 2, 12]
    for one in found:
        parts = {part.name: part for part in one.parts}
        assert parts["attention"].calls == parts["feed-forward"].calls == LAYERS
        assert parts["sampling"].calls == parts["rows of a table"].calls == 1
        assert one.rest == pytest.approx(one.seconds - sum(part.seconds for part in one.parts))
        width, hidden = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        assert parts["feed-forward"].operations == LAYERS * 2 * 3 * width * hidden * one.tokens
        assert parts["feed-forward"].bytes >= LAYERS * 3 * width * hidden * 34 / 32  # Q8_0
    two = {part.name: part for part in found[1].parts}
    a_token = LAYERS * 4 * CONFIG["hidden_size"]  # for each row and each token that it looks at: 6 to 16 of them
    assert 2 * 6 * a_token <= two["attention"].operations <= 2 * 16 * a_token

    lines = text.getvalue().splitlines()
    assert lines[0].startswith("decode, 1 stream at 5: ") and "\t".join(step.COLUMNS) in lines
    assert any(line.startswith(step.REST) for line in lines)
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["schema"] == step.SCHEMA and report["ceilings"]["read"] == 1e10
    assert [one["workload"] for one in report["steps"]] == [one.workload for one in found]
    assert not list(step._traced_calls()), "nothing is written down after a measurement"


def test_ceilings_are_rates_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_ROUNDS", 1000)
    monkeypatch.setattr(ceilings, "PASSES", 1)
    found = ceilings.measure()
    assert min(found.read, found.integers, found.floats) > 1e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"context": 0}, "--context must be at least 1"),
        ({"streams": ()}, "--streams takes numbers"),
        ({"streams": (0,)}, "--streams takes numbers"),
        ({"prompt": -1}, "--prompt must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StepOptions(**wrong)


def test_a_report_without_a_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it first"):
        step.run(checkpoint(), StepOptions(json=tmp_path / "none" / "step.json"))
