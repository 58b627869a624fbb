"""Ids and texts equal to transformers', as recorded by tests/golden/make_tokenizers.py."""

from __future__ import annotations

import json

import pytest

from slipstream.text import Detokenizer, Tokenizer
from tests.golden.corpus import CORPUS
from tests.text.conftest import GOLDEN, SPECS, loaded

CASES = {name: json.loads((GOLDEN / f"{name}.json").read_text())["cases"] for name in SPECS}


@pytest.mark.parametrize("case", range(len(CORPUS)), ids=[ascii(text)[:24] for text in CORPUS])
def test_ids_and_text_are_those_of_transformers(name: str, case: int) -> None:
    recorded = CASES[name][case]
    assert recorded["text"] == CORPUS[case]
    tokenizer = loaded(name)
    assert tokenizer.encode(recorded["text"]) == recorded["ids"]
    assert tokenizer.decode(recorded["ids"]) == recorded["decoded"]


@pytest.mark.parametrize("case", range(len(CORPUS)), ids=[ascii(text)[:24] for text in CORPUS])
def test_streamed_text_is_the_decoded_text(name: str, case: int) -> None:
    recorded = CASES[name][case]
    detokenizer = Detokenizer(loaded(name), [])
    deltas = [detokenizer.push([token]).text for token in recorded["ids"]] + [detokenizer.finish().text]
    assert "".join(deltas) == recorded["decoded"]
    assert detokenizer.text == recorded["decoded"]
    if "\ufffd" not in recorded["text"]:
        assert not any("\ufffd" in delta for delta in deltas)


def test_bytes_of_the_tokens_make_up_the_text(tokenizer: Tokenizer) -> None:
    text = "Zażółć 你好 🙂 ᚠ code: x = {1}"
    joined = b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text, add_special=False))
    assert joined.decode().removeprefix(" ") == text
