"""Tokenizers of image models' text encoders: rows of one length, from CLIP's files and from SentencePiece's pieces."""

from __future__ import annotations

import pytest

from slipstream.errors import CheckpointError, RequestError
from slipstream.spec.tokenizer import ClipVocab, TokenizerSpec, UnigramVocab
from slipstream.text.padded import PaddedTokenizer

TOKENS = ["a", "b", "c", "!", "1", "a</w>", "b</w>", "c</w>", "!</w>", "1</w>", "ab</w>", "cab</w>"]
MERGES = (("a", "b</w>"), ("c", "ab</w>"))
CLIP = ClipVocab({token: i for i, token in enumerate([*TOKENS, "<|startoftext|>", "<|endoftext|>"])}, MERGES)
START, END = 12, 13
PIECES = (("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), ("\u2581ab", -1.0), ("a", -4.0), ("b", -4.0))
UNIGRAM = UnigramVocab(PIECES, 2, None)


def clip(pad: str = "<|endoftext|>", length: int = 8) -> PaddedTokenizer:
    special = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": pad}
    return PaddedTokenizer.of(TokenizerSpec(clip=CLIP, special=special, max_length=length))


def unigram(length: int | None = None) -> PaddedTokenizer:
    special = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    return PaddedTokenizer.of(TokenizerSpec(unigram=UNIGRAM, special=special, max_length=6), length)


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def test_words_of_clip() -> None:
    """Lower case, white space of any kind, digits and signs as words of their own."""
    rows = clip().rows(["CAB ab", "b\n\t 11!", ""])
    assert rows.dtype == "int32" and rows.shape == (3, 8)
    assert rows[0].tolist() == [START, *ids("cab</w>", "ab</w>"), *[END] * 5]
    assert rows[1].tolist() == [START, *ids("b</w>", "1</w>", "1</w>", "!</w>"), *[END] * 3]
    assert rows[2].tolist() == [START, *[END] * 7]


def test_the_end_of_a_long_text_is_cut_off() -> None:
    assert clip(length=5).rows(["a b c a b c"])[0].tolist() == [START, *ids("a</w>", "b</w>", "c</w>"), END]
    assert clip(length=5).count("a b c a b c") == 8
    assert unigram().rows(["ab " * 20])[0].tolist() == [4, 4, 4, 4, 4, 1]


def test_another_token_fills_up() -> None:
    """SDXL's second encoder has "!" for that; in a text it is then that token too, as in transformers."""
    assert clip("!").rows(["ab! c"])[0].tolist() == [START, *ids("ab</w>", "!", "c</w>"), END, *ids("!", "!", "!")]


def test_pieces_of_t5() -> None:
    assert unigram().rows(["ab  a"])[0].tolist() == [4, 3, 5, 1, 0, 0]
    assert unigram(9).rows(["ab"])[0].tolist() == [4, 1, *[0] * 7]
    assert unigram().rows(["<extra_id_0> x"])[0].tolist() == [len(PIECES) + 99, 3, 2, 1, 0, 0]


def test_what_cannot_be_read() -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.json has no <\|startoftext\|>"):
        PaddedTokenizer.of(TokenizerSpec(clip=ClipVocab({"a": 0}, ())))
    with pytest.raises(CheckpointError, match=r"merges\.txt does not fit vocab\.json"):
        PaddedTokenizer.of(TokenizerSpec(clip=ClipVocab(CLIP.ids, (("x", "y"),))))
    with pytest.raises(CheckpointError, match=r"spiece\.model has no piece </s>"):
        PaddedTokenizer.of(TokenizerSpec(unigram=UnigramVocab((("a", 0.0), ("b", 0.0)), 0, None)))
    with pytest.raises(CheckpointError, match=r"spiece\.model cannot be read as a tokenizer"):
        PaddedTokenizer.of(TokenizerSpec(unigram=UnigramVocab(PIECES, 2, b"\xff\xff\xff\xff\xff")))
    with pytest.raises(CheckpointError, match="a tokenizer needs either"):
        PaddedTokenizer.of(TokenizerSpec(clip=CLIP, unigram=UNIGRAM))
    with pytest.raises(CheckpointError, match="must say which token fills up its rows"):
        PaddedTokenizer.of(TokenizerSpec(clip=CLIP, max_length=8))
    with pytest.raises(CheckpointError, match="must say how long they are"):
        PaddedTokenizer.of(TokenizerSpec(clip=CLIP, special={"pad": "a"}))
    with pytest.raises(RequestError, match="not valid Unicode"):
        clip().rows(["a\ud800"])
