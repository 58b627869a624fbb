"""`slipstream models` and `pull` over a cache in a folder of the test's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.checkpoint import CachedModel, names
from slipstream.checkpoint.builtin import BUILTINS, EMBEDDED
from slipstream.cli.models import ModelsOptions, listed, models
from slipstream.cli.pull import pull
from slipstream.errors import ModelNotFound


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names.hub, "cached_repos", list)
    return tmp_path


def test_built_in_models_are_listed_before_they_are_fetched() -> None:
    assert [row.name for row in listed()] == [*BUILTINS, *EMBEDDED]
    assert all((row.path is None) == (row.name in BUILTINS) for row in listed())


def test_cached_models_are_listed_with_their_place(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = CachedModel("org/other", own_cache / "other", 5 << 20, "safetensors")
    fetched = CachedModel("smollm2-135m", own_cache / "smol.gguf", 7, "GGUF")
    monkeypatch.setattr("slipstream.checkpoint.cached_models", lambda: [fetched, other])
    rows = {row.name: row for row in listed()}
    assert list(rows) == [*BUILTINS, *EMBEDDED, "org/other"]
    assert rows["smollm2-135m"].path == str(own_cache / "smol.gguf")
    assert rows["gemma3-270m"].path is None
    assert (rows["org/other"].size, rows["org/other"].format) == (5 << 20, "safetensors")


def test_a_pipe_gets_a_line_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    models()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [*BUILTINS, *EMBEDDED]
    assert {line[3] for line in lines if line[0] in BUILTINS} == {"not fetched"}


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    models(options=ModelsOptions(json=True))
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*BUILTINS, *EMBEDDED]
    assert set(rows[0]) == {"name", "size", "format", "path", "about"}


def test_pull_prints_where_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    pull(str(folder))
    assert capsys.readouterr().out == f"{folder}\n"


def test_pull_says_what_was_tried() -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        pull("./absent.gguf")
