"""The files of sentence-transformers beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.checkpoint.hub import HubName, choose
from slipstream.checkpoint.sentence_transformers import dense_files, pooling_of, tokenizer_for
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.source import Answers, Dense, Pooling
from slipstream.spec.tokenizer import TokenizerSpec

TYPES = "sentence_transformers.models."


def write(folder: Path, pooling: dict[str, Any], *modules: str, path: str = "1_Pooling", **files: Any) -> Path:
    """A folder with modules.json, the pooling's config.json, and other files by their names."""
    paths = {"Transformer": "", "Pooling": path}
    listed = [
        {"idx": i, "name": str(i), "path": paths.get(name, f"{i}_{name}"), "type": TYPES + name}
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def modes(chosen: str) -> dict[str, Any]:
    flags = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    return {"word_embedding_dimension": 24, "include_prompt": True} | {
        f"pooling_mode_{flag}": flag == chosen for flag in flags
    }


def test_no_such_files(tmp_path: Path) -> None:
    assert pooling_of(tmp_path) is None


@pytest.mark.parametrize(("mode", "kind"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")])
def test_kinds(mode: str, kind: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, modes(mode), "Transformer", "Pooling", "Normalize")
    assert pooling_of(folder) == Pooling(kind, normalize=True)
    folder = write(tmp_path, modes(mode), "Transformer", "Pooling", sentence_bert_config={"max_seq_length": 256})
    assert pooling_of(folder) == Pooling(kind, normalize=False, max_tokens=256)


def test_the_newer_spelling(tmp_path: Path) -> None:
    assert pooling_of(write(tmp_path, {"pooling_mode": "lasttoken"}, "Transformer", "Pooling")) == Pooling(
        "last", normalize=False
    )


def test_products_after_the_pooling(tmp_path: Path) -> None:
    folder = write(tmp_path, modes("mean_tokens"), "Transformer", "Pooling", "Dense", "Normalize")
    (folder / "2_Dense").mkdir()
    config = folder / "2_Dense" / "config.json"
    config.write_text(json.dumps({"in_features": 24, "out_features": 8, "bias": False}))
    dense = Dense("2_Dense", 24, 8, False, "torch.nn.modules.activation.Tanh")
    pooling = pooling_of(folder)
    assert pooling == Pooling("mean", normalize=True, dense=(dense,))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing: it holds the weights of a Dense module"):
        dense_files(folder, pooling)
    config.write_text(json.dumps({"in_features": 24}))
    with pytest.raises(CheckpointError, match="lacks in_features and out_features"):
        pooling_of(folder)


def test_a_reranker_that_answers(tmp_path: Path) -> None:
    """As Qwen3-Reranker is published since sentence-transformers 5.4."""
    folder = write(tmp_path, {}, "Transformer", "LogitScore")
    (folder / "1_LogitScore").mkdir()
    config = folder / "1_LogitScore" / "config.json"
    config.write_text(json.dumps({"true_token_id": 9693, "false_token_id": 2152}))
    assert pooling_of(folder) == Pooling("last", normalize=False, answers=Answers(9693, 2152))
    said = {"prompts": {"query": "Find it"}, "default_prompt_name": "query", "model_type": "CrossEncoder"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    found = pooling_of(folder)
    assert found is not None and found.answers == Answers(9693, 2152, "Find it")
    config.write_text(json.dumps({"false_token_id": 2152}))
    with pytest.raises(CheckpointError, match="lacks true_token_id"):
        pooling_of(folder)


def test_what_is_not_computed(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="module of type WordWeights; Slipstream computes Transformer, Pooling"):
        pooling_of(write(tmp_path, modes("cls_token"), "Transformer", "Pooling", "WordWeights"))
    with pytest.raises(
        UnsupportedModel, match=r"lists Transformer, Normalize, Pooling; Slipstream computes .* in this order"
    ):
        pooling_of(write(tmp_path, modes("cls_token"), "Transformer", "Normalize", "Pooling"))
    with pytest.raises(UnsupportedModel, match="pooling by max_tokens; it must be one of cls_token, mean_tokens"):
        pooling_of(write(tmp_path, modes("max_tokens"), "Transformer", "Pooling"))
    with pytest.raises(UnsupportedModel, match="lists Transformer; Slipstream computes"):
        pooling_of(write(tmp_path, modes("cls_token"), "Transformer"))
    with pytest.raises(UnsupportedModel, match="include_prompt"):
        pooling_of(write(tmp_path, modes("cls_token") | {"include_prompt": False}, "Transformer", "Pooling"))


def test_damaged_and_hostile_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names a folder outside its own"):
        pooling_of(write(tmp_path, modes("cls_token"), "Transformer", "Pooling", path="../../1_Pooling"))
    with pytest.raises(CheckpointError, match="is missing: it says which states"):
        pooling_of(write(tmp_path, modes("cls_token"), "Transformer", "Pooling", path="2_Pooling"))
    for content in ("{", '{"a": 1}', "[1]"):
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(CheckpointError):
            pooling_of(tmp_path)


def test_what_the_tokenizer_adds_is_left_to_its_file() -> None:
    """Qwen3-Embedding pools a token that its tokenizer.json adds, beside a flag that asks for no bos."""
    spec = TokenizerSpec(add_bos=False, add_eos=True)
    pooled = tokenizer_for(spec, Pooling("last", normalize=True))
    assert pooled is not None and (pooled.add_bos, pooled.add_eos) == (None, True)
    assert tokenizer_for(spec, None) is spec
    assert tokenizer_for(None, Pooling("last", normalize=True)) is None


def test_files_fetched_from_the_hub() -> None:
    needed = ["model.safetensors", "config.json", "modules.json", "1_Pooling/config.json"]
    dense = ["2_Dense/config.json", "2_Dense/model.safetensors"]
    files = [*needed, *dense, "onnx/config.json", "2_Dense/pytorch_model.bin"]
    assert choose(HubName("a/b"), files)[0] == needed + dense
