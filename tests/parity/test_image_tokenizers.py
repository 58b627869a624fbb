"""Rows of ids equal to those that diffusers' pipelines take from transformers, over the corpus and random texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from slipstream.checkpoint.image_tokenizer import tokenizer_of
from slipstream.text.from_clip import END, START
from slipstream.text.padded import PaddedTokenizer
from slipstream.text.pieces import CHAR_OF
from tests.golden.corpus import CORPUS
from tests.parity.test_tokenizers import texts

LINES = [line for text in CORPUS for line in text.splitlines() if line.strip()]


def write_clip(folder: Path, pad: str) -> None:
    """CLIP's two files: all bytes, inside a word and at its end, and merges that were learned from the corpus."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    learned.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    bytes_ = [CHAR_OF[byte] for byte in range(256)]
    tokens = [*bytes_, *(char + "</w>" for char in bytes_), *dict.fromkeys(map("".join, merges)), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})
    )


def compare(folder: Path, theirs: Any, length: int) -> None:
    ours = PaddedTokenizer.of(tokenizer_of(folder), length)
    found = ours.rows(texts())
    expected = theirs(texts(), padding="max_length", max_length=length, truncation=True, return_tensors="np").input_ids
    for text, one, other in zip(texts(), found.tolist(), expected.tolist(), strict=True):
        assert one == other, text


@pytest.mark.parametrize("pad", [END, "!"])
def test_clip(pad: str, tmp_path: Path) -> None:
    """From its two files, and from the tokenizer.json that transformers makes of them."""
    write_clip(tmp_path, pad)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    compare(tmp_path, theirs, 77)
    compare(tmp_path, theirs, 12)
    theirs.save_pretrained(tmp_path / "saved")
    compare(tmp_path / "saved", theirs, 77)


def test_t5(tmp_path: Path) -> None:
    """From SentencePiece's file, and from the tokenizer.json that transformers makes of it."""
    prefix = str(tmp_path / "spiece")
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4), model_prefix=prefix, vocab_size=350, model_type="unigram", **settings
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 512})
    )
    theirs = T5Tokenizer.from_pretrained(tmp_path)
    compare(tmp_path, theirs, 64)
    compare(tmp_path, theirs, 10)
    theirs.save_pretrained(tmp_path / "saved")
    compare(tmp_path / "saved", theirs, 64)
