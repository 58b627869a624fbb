"""Files of tokenizers that an image model may have: which are read, and damaged ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from slipstream.checkpoint.image_tokenizer import tokenizer_of
from slipstream.checkpoint.sentencepiece_file import vocab_of
from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import UnigramVocab

PIECES = (("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("\u2581ab", -1.5, 1))


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + varint(value >> 7)


def model(kind: int = 1, charsmap: bytes = b"map" * 100) -> bytes:
    pieces = [field(1, field(1, text) + field(2, score) + field(3, kind)) for text, score, kind in PIECES]
    return b"".join(
        (*pieces, field(2, field(3, kind) + field(4, 300)), field(3, field(1, "nfkc") + field(2, charsmap)))
    )


def test_a_sentencepiece_file(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(model() + b"\x39" + bytes(8))  # and a field of eight bytes that is not read
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "<pad>"}, "eos_token": "</s>"})
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    spec = tokenizer_of(tmp_path)
    assert spec.unigram == UnigramVocab(tuple((text, score) for text, score, _ in PIECES), 2, b"map" * 100)
    assert (spec.special, spec.max_length) == ({"eos": "</s>", "pad": "<pad>"}, 512)
    (tmp_path / "spiece.model").write_bytes(model(charsmap=b""))
    assert vocab_of(tmp_path / "spiece.model").charsmap is None


def test_damaged_sentencepiece_files(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    for data in (
        model()[:-1],
        b"\x0a",
        b"\x0b",
        b"\xff" * 30,
        field(1, 3),
        field(1, field(2, 1.0)),
        b"\x08" + b"\xff" * 11,
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a SentencePiece model, or is cut off"):
            vocab_of(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="has no piece for unknown text"):
        vocab_of(path)
    path.write_bytes(model(kind=2))
    with pytest.raises(CheckpointError, match="SentencePiece model of type 2; Unigram"):
        vocab_of(path)


def test_the_newest_form_is_read(tmp_path: Path) -> None:
    """tokenizer.json where there is one; a length that means none is none."""
    with pytest.raises(CheckpointError, match=r"tokenizer\.json; vocab\.json and merges\.txt; spiece\.model"):
        tokenizer_of(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(CheckpointError, match="holds no tokenizer that is read"):
        tokenizer_of(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    spec = tokenizer_of(tmp_path)
    assert spec.clip is not None and spec.clip.merges == (("a", "b"), ("ab", "c")) and spec.max_length is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    (tmp_path / "tokenizer.json").write_text("{}")
    spec = tokenizer_of(tmp_path)
    assert (spec.tokenizer_json, spec.max_length) == (tmp_path / "tokenizer.json", None)


def test_damaged_files_of_clip(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": "b"}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json is not a mapping from tokens to ids"):
        tokenizer_of(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(CheckpointError, match=r"merges\.txt has a line that is not two tokens: 'a b c'"):
        tokenizer_of(tmp_path)
