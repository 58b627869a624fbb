from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipstream.checkpoint import open_checkpoint
from slipstream.errors import CheckpointError
from slipstream.spec.source import Checkpoint
from slipstream.spec.tokenizer import TokenizerSpec
from tests.checkpoint.gguf_files import LLAMA, TOKENIZER, TOKENS, llama_tensors, write, write_llama


def opened(tmp_path: Path, **changes: Any) -> Checkpoint:
    return open_checkpoint(write_llama(tmp_path / "x.gguf", **changes))


def tokenizer(tmp_path: Path, **changes: Any) -> TokenizerSpec:
    spec = opened(tmp_path, **changes).tokenizer
    assert spec is not None
    return spec


def test_the_vocabulary(tmp_path: Path) -> None:
    spec = tokenizer(tmp_path, tokenizer__ggml__add_space_prefix=False)
    assert spec.tokenizer_json is None
    assert spec.vocab is not None
    assert (spec.vocab.model, spec.vocab.pre, spec.vocab.tokens) == ("gpt2", "smollm", tuple(TOKENS))
    assert spec.vocab.types == (2, 3, 3, 3, 3, 1, 1, 1, 1, 1, 6, 1)
    assert (spec.vocab.scores, spec.vocab.merges, spec.vocab.add_space_prefix) == (None, ("a b",), False)
    assert spec.special == {"bos": "<s>", "eos": "</s>"}
    assert list(spec.chat_templates) == ["default"]


@pytest.mark.parametrize(
    ("changes", "bos"),
    [
        ({}, False),
        ({"tokenizer__ggml__add_bos_token": True}, True),
        ({"tokenizer__ggml__add_bos_token": None}, False),
        ({"tokenizer__ggml__add_bos_token": None, "tokenizer__ggml__pre": "llama-bpe"}, True),
        ({"tokenizer__ggml__add_bos_token": None, "tokenizer__ggml__model": "llama"}, True),
        ({"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": None}, False),
    ],
)
def test_whether_the_begin_token_is_added(tmp_path: Path, changes: dict[str, Any], bos: bool) -> None:
    assert tokenizer(tmp_path, **changes).add_bos is bos


def test_scores_and_named_templates(tmp_path: Path) -> None:
    spec = tokenizer(
        tmp_path,
        tokenizer__ggml__model="llama",
        tokenizer__ggml__scores=[-float(i) for i in range(12)],
        tokenizer__chat_template__tool_use="{{ tools }}",
    )
    assert spec.vocab is not None
    assert spec.vocab.scores == tuple(-float(i) for i in range(12))
    assert spec.chat_templates["tool_use"] == "{{ tools }}"
    assert set(spec.chat_templates) == {"default", "tool_use"}


def test_a_reply_ends_at_the_stated_tokens_and_at_those_the_template_writes(tmp_path: Path) -> None:
    assert opened(tmp_path).generation.eos_token_ids == (2, 4)
    assert opened(tmp_path, tokenizer__chat_template=None).generation.eos_token_ids == (2,)
    stated = opened(tmp_path, tokenizer__chat_template=None, tokenizer__ggml__eot_token_id=4)
    assert stated.generation.eos_token_ids == (2, 4)
    none = opened(tmp_path, tokenizer__chat_template=None, tokenizer__ggml__eos_token_id=0xFFFFFFFF)
    assert none.generation.eos_token_ids == ()


def test_a_text_token_that_looks_like_an_ending_is_none(tmp_path: Path) -> None:
    types = [2, 3, 3, 3, 1, 1, 1, 1, 1, 1, 6, 1]  # <|im_end|> is ordinary text here
    assert opened(tmp_path, tokenizer__ggml__token_type=types).generation.eos_token_ids == (2,)


def test_sampling_values(tmp_path: Path) -> None:
    generation = opened(tmp_path, general__sampling__temp=0.7, general__sampling__top_k=40).generation
    assert generation.sampling == {"temperature": 0.7, "top_k": 40}


def test_no_tokenizer_is_none(tmp_path: Path) -> None:
    assert open_checkpoint(write(tmp_path / "x.gguf", "llama", LLAMA, llama_tensors())).tokenizer is None
    assert opened(tmp_path, tokenizer__ggml__model="none").tokenizer is None


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer__ggml__tokens": None},
        {"tokenizer__ggml__tokens": [1, 2, 3]},
        {"tokenizer__ggml__model": 3},
        {"tokenizer__ggml__pre": 3},
        {"tokenizer__ggml__merges": [1]},
        {"tokenizer__ggml__token_type": [1, 1]},
        {"tokenizer__ggml__scores": [float("nan")] * 12},
        {"tokenizer__ggml__eos_token_id": 12},
        {"tokenizer__ggml__bos_token_id": [1, 2]},
        {"tokenizer__ggml__add_bos_token": "yes"},
        {"tokenizer__ggml__tokens": [*TOKENS, "more"], "tokenizer__ggml__token_type": [1] * 13},
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="token"):
        opened(tmp_path, **changes)


def test_the_fixture_has_a_type_for_each_token() -> None:
    types = TOKENIZER["tokenizer.ggml.token_type"]
    assert isinstance(types, list)
    assert len(types) == len(TOKENS)
