"""What one token stands for: text, or bytes that may be part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

Kind = Literal["byte_level", "byte_fallback", "other"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF: Mapping[str, int] = _alphabet()
CHAR_OF: Mapping[int, str] = {byte: char for char, byte in BYTE_OF.items()}


@dataclass(frozen=True)
class Decoding:
    """How tokens join into text.

    `byte_level`: each token is bytes. `byte_fallback`: a token is text, or one raw byte of a character that has no
    token; `space` is what the vocabulary writes for a space, and `strips` says that the whole text loses one leading
    space. `other`: only the tokenizer's own decoder knows.
    """

    kind: Kind
    space: str = "\u2581"
    strips: bool = False


def decoding_of(tokenizer: Tokenizer) -> Decoding:
    """Read the decoder's own description, and recognise the two kinds that language models use."""
    if tokenizer.decoder is None:
        return Decoding("other")
    described = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = described["decoders"] if described["type"] == "Sequence" else [described]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return Decoding("byte_level")
    if [step["type"] for step in steps[:3]] == ["Replace", "ByteFallback", "Fuse"]:
        space = steps[0]["pattern"].get("String")
        stripping = [(step["type"], step.get("content"), step.get("start"), step.get("stop")) for step in steps[3:]]
        if steps[0]["content"] == " " and space and stripping in ([], [("Strip", " ", 1, 0)]):
            return Decoding("byte_fallback", space, bool(stripping))
    return Decoding("other")


def raw_byte(token: str) -> int | None:
    """The byte that a byte-fallback token such as `<0xE4>` stands for; None for other tokens."""
    match = _BYTE.fullmatch(token)
    return int(match[1], 16) if match else None


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token. A token outside the alphabet (an added one) is its own UTF-8."""
    try:
        return bytes(BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode()


def _fallback_bytes(token: str, decoding: Decoding) -> bytes:
    byte = raw_byte(token)
    return token.replace(decoding.space, " ").encode() if byte is None else bytes([byte])


PIECE_BYTES: Mapping[Kind, Callable[[str, Decoding], bytes]] = {
    "byte_level": lambda token, _: byte_level_bytes(token),
    "byte_fallback": _fallback_bytes,
    "other": lambda token, decoding: token.replace(decoding.space, " ").encode(),
}
