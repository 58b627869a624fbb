"""spiece.model: what of a SentencePiece file makes a tokenizer of T5's kind.

The file is one protocol buffer (https://protobuf.dev/programming-guides/encoding), whose fields are those of
sentencepiece_model.proto in github.com/google/sentencepiece. Of its normalizer only the compiled table is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import UnigramVocab

LIMIT = 64 << 20

# Numbers of fields: of the whole file, of a piece, of the trainer's settings, of the normalizer's.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE = 3
_CHARSMAP = 2

_UNKNOWN = 2  # of a piece's type
_UNIGRAM = 1  # of the trainer's model type


def vocab_of(path: Path) -> UnigramVocab:
    """The pieces of a file. Raises CheckpointError for a damaged one, and for models that are not Unigram."""
    try:
        if path.stat().st_size > LIMIT:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; at most {LIMIT:,} are read")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    pieces: list[tuple[str, float]] = []
    unknown: int | None = None
    charsmap: bytes | None = None
    try:
        for number, value in _fields(data):
            if number == _PIECE:
                piece = dict(_fields(_bytes(value)))
                if piece.get(_TYPE) == _UNKNOWN:
                    unknown = len(pieces)
                pieces.append(
                    (_bytes(piece[_TEXT]).decode(), struct.unpack("<f", _bytes(piece.get(_SCORE, bytes(4))))[0])
                )
            elif number == _TRAINER:
                kind = dict(_fields(_bytes(value))).get(_MODEL_TYPE, _UNIGRAM)
                if kind != _UNIGRAM:
                    raise CheckpointError(f"{path} is a SentencePiece model of type {kind!r}; Unigram, type 1, is read")
            elif number == _NORMALIZER:
                charsmap = _bytes(dict(_fields(_bytes(value))).get(_CHARSMAP, b"")) or None
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model, or is cut off ({error})") from error
    if unknown is None:
        raise CheckpointError(f"{path} has no piece for unknown text: it is not a SentencePiece model")
    return UnigramVocab(tuple(pieces), unknown, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message. Raises ValueError or IndexError for what is not one."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(data):
            raise ValueError(f"a field ends at byte {at + size:,} of {len(data):,}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError("a number of more than ten bytes")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value
