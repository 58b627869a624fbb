"""Models whose weights nobody has here: by name, or from config.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.checkpoint.outline import outline, published
from slipstream.errors import CheckpointError, ModelNotFound
from slipstream.models.registry import family
from slipstream.spec.param import params

BILLIONS = {"llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55, "mixtral-8x7b": 46.70, "qwen3-32b": 32.76}
"""As the models' cards have them."""


@pytest.mark.parametrize("name", BILLIONS)
def test_published_models_have_their_size(name: str) -> None:
    members = family(outline(name))
    count = sum(leaf.size for _, leaf in params(members.plan(members.from_hf(outline(name)))))
    assert count / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)


def test_every_published_model_has_a_size_here() -> None:
    assert set(published()) == set(BILLIONS)


def test_a_folder_needs_config_json_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert outline(str(tmp_path)) == outline(str(tmp_path / "config.json")) == {"model_type": "llama"}
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        outline(str(tmp_path.parent))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match=r"llama-9 is neither .* one of llama-3\.1-8b, "):
        outline("llama-9")
