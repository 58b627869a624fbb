"""The tokenizers that the tests of this folder share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.spec.tokenizer import GgufVocab, TokenizerSpec
from slipstream.text import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizers"


def builtin(name: str) -> TokenizerSpec:
    spec = open_checkpoint(resolve(name)).tokenizer
    assert spec is not None
    return spec


def tiny_llama_vocab(**changes: Any) -> GgufVocab:
    """A SentencePiece vocabulary of 700 pieces, with `changes` to its fields."""
    data = json.loads((GOLDEN / "tiny_llama.vocab.json").read_text())
    fields: dict[str, Any] = {name: tuple(values) for name, values in data.items()}
    return GgufVocab(**{"model": "llama", "pre": "default", **fields, **changes})


def tiny_llama() -> TokenizerSpec:
    special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    return TokenizerSpec(vocab=tiny_llama_vocab(), special=special, add_bos=True)


SPECS: Mapping[str, Callable[[], TokenizerSpec]] = {
    "smollm2": lambda: builtin("smollm2-135m"),
    "gemma3": lambda: builtin("gemma3-270m"),
    "tiny_llama": tiny_llama,
    "byte_level": lambda: TokenizerSpec(tokenizer_json=GOLDEN / "byte_level.tokenizer.json"),
    "legacy": lambda: TokenizerSpec(tokenizer_json=GOLDEN / "legacy.tokenizer.json"),
}


@cache
def loaded(name: str) -> Tokenizer:
    return load_tokenizer(SPECS[name]())


@pytest.fixture(params=SPECS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each tokenizer in turn."""
    return str(request.param)


@pytest.fixture
def tokenizer(name: str) -> Tokenizer:
    """Each tokenizer in turn."""
    return loaded(name)
