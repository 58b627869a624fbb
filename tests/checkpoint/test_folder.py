from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint import folder as hf
from slipstream.checkpoint import open_checkpoint, why_no_tokenizer
from slipstream.checkpoint.folder import generation_of, tokenizer_of
from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import TokenizerSpec
from tests.checkpoint.gguf_files import write_llama


def fill(folder: Path, **files: Any) -> Path:
    """Write files; "__" in a name stands for "."; what is not a text is written as JSON."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def tokenizer(folder: Path, **files: Any) -> TokenizerSpec:
    spec = tokenizer_of(fill(folder, tokenizer__json={}, **files))
    assert spec is not None
    return spec


def test_a_folder_opens_with_all_its_parts(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    fill(
        tmp_path,
        config__json={"model_type": "llama", "eos_token_id": 7},
        tokenizer__json={},
        tokenizer_config__json={"bos_token": "<s>", "chat_template": "T"},
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path
    assert checkpoint.config == {"model_type": "llama", "eos_token_id": 7}
    assert set(checkpoint.source.names()) == {"a"}
    assert checkpoint.tokenizer == TokenizerSpec(
        tokenizer_json=tmp_path / "tokenizer.json", special={"bos": "<s>"}, chat_templates={"default": "T"}
    )
    assert checkpoint.generation.eos_token_ids == (7,)


def test_special_tokens_as_texts_and_as_objects(tmp_path: Path) -> None:
    spec = tokenizer(
        tmp_path,
        tokenizer_config__json={
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "</s>",
            "pad_token": None,
            "add_bos_token": True,
            "add_eos_token": False,
        },
        special_tokens_map__json={"unk_token": {"content": "<unk>"}, "eos_token": "<other>"},
    )
    assert spec.special == {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    assert (spec.add_bos, spec.add_eos) == (True, False)
    assert spec.chat_templates == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config__json": {"chat_template": "A"}}, {"default": "A"}),
        (
            {
                "tokenizer_config__json": {
                    "chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
                }
            },
            {"default": "A", "tool_use": "B"},
        ),
        ({"chat_template__json": {"chat_template": "C"}}, {"default": "C"}),
        ({"tokenizer_config__json": {"chat_template": "A"}, "chat_template__jinja": "D"}, {"default": "D"}),
    ],
)
def test_chat_templates(tmp_path: Path, files: dict[str, Any], expected: dict[str, str]) -> None:
    assert tokenizer(tmp_path, **files).chat_templates == expected


def test_additional_templates(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert tokenizer(tmp_path, chat_template__jinja="D").chat_templates == {"default": "D", "rag": "R"}


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"eos_token_id": 2}, {}, (2,)),
        ({"eos_token_id": [2, 5]}, {}, (2, 5)),
        ({"eos_token_id": 2}, {"generation_config__json": {"eos_token_id": [1, 106]}}, (1, 106)),
        ({"eos_token_id": None, "text_config": {"eos_token_id": 9}}, {}, (9,)),
        ({}, {}, ()),
        ({"eos_token_id": "2"}, {}, ()),
        (
            {"eos_token_id": 0},
            {
                "tokenizer_config__json": {
                    "eos_token": "<|im_end|>",
                    "added_tokens_decoder": {"0": {"content": "<|endoftext|>"}, "2": {"content": "<|im_end|>"}},
                }
            },
            (0, 2),
        ),
    ],
)
def test_end_tokens(tmp_path: Path, config: dict[str, Any], files: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert generation_of(fill(tmp_path, **files), config).eos_token_ids == expected


def test_sampling_values(tmp_path: Path) -> None:
    fill(tmp_path, generation_config__json={"temperature": 0.6, "top_p": 0.9, "max_length": 20, "top_k": None})
    assert generation_of(tmp_path, {}).sampling == {"temperature": 0.6, "top_p": 0.9}
    fill(tmp_path, generation_config__json={"do_sample": False, "temperature": 0.6})
    assert generation_of(tmp_path, {}).sampling == {"temperature": 0.0}


def test_sentencepiece_alone_is_no_tokenizer_and_says_why(tmp_path: Path) -> None:
    assert tokenizer_of(tmp_path) is None
    assert "no tokenizer.json: text cannot be encoded" in hf.why_no_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    assert tokenizer_of(tmp_path) is None
    assert "tokenizer.model (SentencePiece) but no tokenizer.json" in hf.why_no_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 5000, '{"a": ' + "1" * 5000 + "}"])
def test_damaged_json_is_a_clear_error(tmp_path: Path, content: str) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    for name in ("config__json", "generation_config__json", "tokenizer_config__json"):
        fill(tmp_path, config__json={}, tokenizer__json={}, generation_config__json={}, tokenizer_config__json={})
        fill(tmp_path, **{name: content})
        with pytest.raises(CheckpointError, match=name.replace("__", r"\.")):
            open_checkpoint(tmp_path)


def test_a_checkpoint_says_why_it_has_no_tokenizer(tmp_path: Path) -> None:
    gguf = open_checkpoint(write_llama(tmp_path / "a.gguf", tokenizer__ggml__model="none"))
    assert gguf.tokenizer is None
    assert "no tokenizer in its metadata" in why_no_tokenizer(gguf)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    assert "no tokenizer.json" in why_no_tokenizer(open_checkpoint(fill(tmp_path, config__json={})))


def test_what_a_path_may_be(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no \.gguf file"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickle only \(pytorch_model\.bin\)"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    write_llama(tmp_path / "a.gguf")
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    write_llama(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"name one: a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


def test_safetensors_without_config_is_an_error(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
