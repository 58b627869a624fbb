"""The bound on the text of a token holds for every tokenizer that has one, and lifts where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from slipstream.text import Tokenizer

from .conftest import loaded

NAMES = ("smollm2", "gemma3", "tiny_llama", "legacy", "byte_level")


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)  # the first call loads the tokenizer
@given(text=st.text(st.sampled_from(" \n1=-a\u0301\u00e9\u0378\u4f60\U0001f642"), max_size=400))
def test_no_token_stands_for_more(name: str, text: str) -> None:
    tokenizer = loaded(name)
    assert tokenizer.most_characters is not None
    ids = tokenizer.encode(text, add_special=False)
    assert len(text) <= tokenizer.most_characters * len(ids)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("character", [" ", "\n", "=", "-", "\u0301"])
def test_not_even_for_a_long_run(name: str, character: str) -> None:
    tokenizer = loaded(name)
    assert tokenizer.most_characters is not None
    assert tokenizer.most_characters * len(tokenizer.encode(character * 5000, add_special=False)) >= 5000


def bytes_only() -> Backend:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def test_what_lifts_the_bound() -> None:
    assert Tokenizer(bytes_only()).most_characters == 1
    composing = bytes_only()
    composing.normalizer = normalizers.NFC()
    assert Tokenizer(composing).most_characters == 4
    stripping = bytes_only()
    stripping.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    assert Tokenizer(stripping).most_characters is None
    greedy = bytes_only()
    greedy.add_tokens([AddedToken("<end>", rstrip=True)])
    assert Tokenizer(greedy).most_characters is None
    assert Tokenizer(Backend(models.WordLevel(vocab={"[UNK]": 0}, unk_token="[UNK]"))).most_characters is None
