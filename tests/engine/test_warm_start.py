"""A second start: nothing is traced, compiled or packed, and the replies are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipstream.engine import build as building
from slipstream.engine import lowering
from slipstream.engine.loop import Engine
from slipstream.kernels.native import library
from tests.engine import quantized, tiny

CONFIG = tiny.CONFIG | {"hidden_size": 64, "intermediate_size": 64}
PROMPT = [5, 9, 17, 33, 2]


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on tracing a step and packing weights fail."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("not a warm start")

    def forbid() -> None:
        monkeypatch.setattr(lowering, "make_step", refuse)
        monkeypatch.setattr(lowering, "admit", refuse)
        if library.reason() is None:  # else there are no packed weights
            monkeypatch.setattr(building, "load", refuse)

    return forbid


def engine(tmp_path: Path, **settings: Any) -> Engine:
    caches = {"compile_cache": str(tmp_path / "c"), "weight_cache": str(tmp_path / "w")}
    small = {"max_seqs": 1, "max_batched_tokens": 8, "max_model_len": 32, "kernels": "auto"}
    return tiny.engine(quantized.checkpoint(CONFIG), **(small | caches | settings))


def reply(built: Engine) -> list[int]:
    return tiny.tokens(tiny.run(built, [tiny.request("a", PROMPT)])["a"])


def test_a_second_start_traces_compiles_and_packs_nothing(
    tmp_path: Path, forbidden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "fingerprint", lambda _: [["tiny"]])  # random weights have no file of their own
    expected = reply(engine(tmp_path))
    assert (tmp_path / "c" / "steps").stat().st_mode & 0o777 == 0o700
    forbidden()
    warm = engine(tmp_path)
    assert warm.stats().compiles == 0
    assert reply(warm) == expected
    assert warm.stats().compiles_after_ready == 0


def test_other_settings_are_compiled_for(tmp_path: Path, forbidden: Any) -> None:
    engine(tmp_path)
    forbidden()
    with pytest.raises(AssertionError, match="warm"):
        engine(tmp_path, max_model_len=24)


def test_empty_strings_keep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "fingerprint", lambda _: [["tiny"]])
    engine(tmp_path, compile_cache="", weight_cache="")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_made_are_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "folder")
    assert len(reply(engine(tmp_path, compile_cache=inside, weight_cache=inside))) == 8
