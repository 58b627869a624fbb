"""How much text one token can stand for: what tells that a text is too long without encoding it."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from slipstream.text.pieces import Kind

# Canonical composition makes one character of four at most (U+1F82 and its like: a letter and three marks).
_COMPOSED = 4


def most_characters(backend: Tokenizer, kind: Kind) -> int | None:
    """Most characters of a text that become one token; None where the tokenizer sets no bound.

    There is one where every token spells out its text: byte-level and byte-fallback vocabularies have no token for
    "unknown", which may swallow any length. Special tokens that take the white space beside them, and normalizers
    that may shorten a text without end, lift it.
    """
    if kind == "other" or any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return None
    shrinking = 1
    for step in _normalizers(backend):
        match step:
            case {"type": "NFC"}:
                shrinking *= _COMPOSED
            case {"type": "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(old) <= len(new):
                pass
            case _:
                return None
    return shrinking * max(map(len, backend.get_vocab()), default=1)


def _normalizers(backend: Tokenizer) -> list[dict[str, Any]]:
    if backend.normalizer is None:
        return []
    described = json.loads(backend.normalizer.__getstate__())
    return list(described["normalizers"]) if described["type"] == "Sequence" else [described]
