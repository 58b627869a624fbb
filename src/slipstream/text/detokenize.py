"""Token ids to text as they arrive: whole characters only, stop strings found across tokens, constant work a token."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from slipstream.text.pieces import Kind, byte_level_bytes, raw_byte
from slipstream.text.stops import StopStrings
from slipstream.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
# A character has at most four bytes, so no more tokens than that can wait for its end.
_LONGEST_CHARACTER = 4
_WINDOW = 6


@dataclass(frozen=True)
class TextDelta:
    """What a push adds to the text.

    `stop`: the stop string that ended the text; the text ends before it, or after it with `include_stop`.
    `tokens_used`: how many of the pushed tokens belong to the reply, counting the one that completed the stop string.
    """

    text: str
    stop: str | None = None
    tokens_used: int = 0


class Detokenizer:
    """The text of one reply, from its tokens.

    Joined deltas are `tokenizer.decode` of all tokens, in their place after the prompt: a space that a SentencePiece
    decoder strips from the beginning of a text is kept where the prompt comes before. Bytes that can form no character
    become U+FFFD; a character whose bytes are spread over tokens comes out with its last. Ids without a token (a
    model's padded vocabulary has such) add no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        skip_special: bool = True,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """`min_tokens`: stop strings are looked for after this many tokens only."""
        self._stream = _STREAMS[tokenizer.decoding.kind](tokenizer, prompt_ids, skip_special)
        self._stops = StopStrings(stop) if stop else None
        self._include_stop = include_stop
        self._unstoppable = min_tokens
        self._state = 0
        self._held = ""
        self._parts: list[str] = []
        self._stop: str | None = None

    @property
    def text(self) -> str:
        """All text given out so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stop

    def push(self, ids: Sequence[int]) -> TextDelta:
        """Take the next tokens. After a stop string was found, more tokens change nothing."""
        if self._stop is not None:
            return TextDelta("", self._stop)
        out: list[str] = []
        for used, token in enumerate(ids, 1):
            stopped = self._take(self._stream.feed(token), out)
            self._unstoppable -= 1
            if stopped:
                return self._give(out, used)
        return self._give(out, len(ids))

    def finish(self) -> TextDelta:
        """No more tokens come: give out what was held back. Half a character becomes U+FFFD."""
        if self._stop is not None:
            return TextDelta("", self._stop)
        out: list[str] = []
        self._take(self._stream.flush(), out)
        out.append(self._held)
        self._held, self._state = "", 0
        return self._give(out, 0)

    def _take(self, text: str, out: list[str]) -> bool:
        """Move text to `out`, less what may be the beginning of a stop string. True at a stop string."""
        if self._stops is None or self._unstoppable > 0:
            out.append(text)
            return False
        self._state, read, self._stop = self._stops.scan(self._state, text)
        waiting = self._held + text[:read]
        if self._stop is not None:
            out.append(waiting if self._include_stop else waiting[: len(waiting) - len(self._stop)])
            self._held = ""
            return True
        ready = len(waiting) - self._stops.held(self._state)
        out.append(waiting[:ready])
        self._held = waiting[ready:]
        return False

    def _give(self, out: list[str], used: int) -> TextDelta:
        text = "".join(out)
        if text:
            self._parts.append(text)
        return TextDelta(text, self._stop, used)


class Stream(Protocol):
    """Text from tokens, one at a time. `feed` gives what is certain; `flush` the rest."""

    def feed(self, token: int) -> str:
        """Take one token."""

    def flush(self) -> str:
        """No more tokens come."""


class ByteLevelStream:
    """Tokens are bytes; the text is their UTF-8."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # A prompt of token ids may end within a character, which the reply then completes.
        for token in prompt_ids[-_LONGEST_CHARACTER:]:
            self.feed(token)

    def feed(self, token: int) -> str:
        """The characters that this token completes."""
        piece = None if token in self._skipped else self._tokenizer.piece(token)
        return self._decoder.decode(byte_level_bytes(piece)) if piece else ""

    def flush(self) -> str:
        """U+FFFD for a character left unfinished."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class ByteFallbackStream:
    """Tokens are text, or single bytes of characters that have no token."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._bytes = bytearray()
        self._strip = tokenizer.decoding.strips and not any(self._piece(token) for token in prompt_ids)
        for token in prompt_ids[-_LONGEST_CHARACTER:]:
            self._read(token)

    def _piece(self, token: int) -> str:
        return "" if token in self._skipped else self._tokenizer.piece(token) or ""

    def feed(self, token: int) -> str:
        """The characters that this token completes."""
        return self._stripped(self._read(token))

    def flush(self) -> str:
        """U+FFFD for each byte of a character left unfinished."""
        text = REPLACEMENT * len(self._bytes)
        self._bytes.clear()
        return text

    def _read(self, token: int) -> str:
        piece = self._piece(token)
        if not piece:
            return ""
        byte = raw_byte(piece)
        if byte is None:
            return self.flush() + piece.replace(self._tokenizer.decoding.space, " ")
        self._bytes.append(byte)
        return self._whole_characters()

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        self._strip = False
        return text.removeprefix(" ")

    def _whole_characters(self) -> str:
        """Take the characters that are complete; a byte that fits none becomes U+FFFD, as in the library's decoder."""
        out: list[str] = []
        while self._bytes:
            try:
                out.append(self._bytes.decode())
                self._bytes.clear()
            except UnicodeDecodeError as error:
                out.append(self._bytes[: error.start].decode())
                unfinished = error.end == len(self._bytes) and error.reason == "unexpected end of data"
                if unfinished:
                    del self._bytes[: error.start]
                    break
                out.append(REPLACEMENT * (error.end - error.start))
                del self._bytes[: error.end]
        return "".join(out)


class WindowStream:
    """Any other decoder: decode a short window with and without the newest tokens, and give out the difference."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._known = [token for token in prompt_ids[-_WINDOW:] if tokenizer.piece(token) is not None]
        self._new: list[int] = []

    def feed(self, token: int) -> str:
        """New text, unless it ends within a character."""
        if self._tokenizer.piece(token) is None:
            return ""
        self._new.append(token)
        text = self._difference()
        if not text or (text.endswith(REPLACEMENT) and len(self._new) < _LONGEST_CHARACTER):
            # Tokens without text of their own (skipped ones) stay in the window until text comes after them.
            self._new = self._new[-2 * _WINDOW :]
            return ""
        self._known, self._new = (self._known + self._new)[-_WINDOW:], []
        return text

    def flush(self) -> str:
        """What the newest tokens give as they are."""
        text = self._difference()
        self._known, self._new = (self._known + self._new)[-_WINDOW:], []
        return text

    def _difference(self) -> str:
        known = self._tokenizer.decode(self._known, skip_special=self._skip)
        return self._tokenizer.decode(self._known + self._new, skip_special=self._skip)[len(known) :]


_STREAMS: Mapping[Kind, Callable[[Tokenizer, Sequence[int], bool], Stream]] = {
    "byte_level": ByteLevelStream,
    "byte_fallback": ByteFallbackStream,
    "other": WindowStream,
}
