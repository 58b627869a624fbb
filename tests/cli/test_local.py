"""`slipstream chat` without a server: what is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipstream.checkpoint import RandomSource, save_checkpoint
from slipstream.cli import local
from slipstream.engine.config import EngineConfig
from slipstream.errors import NoChatTemplate
from slipstream.models.registry import family
from tests.models.variants.llama import LLAMA


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(local, "LLM", load)
    members = family(LLAMA)
    source = RandomSource(members.plan(members.from_hf(LLAMA)))
    base = save_checkpoint(source, tmp_path / "base", LLAMA)
    with pytest.raises(NoChatTemplate, match="use /v1/completions"):
        local.LocalReplies.load(str(base), EngineConfig())
