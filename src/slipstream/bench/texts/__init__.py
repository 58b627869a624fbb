"""Texts that are there on every machine: English prose, and a chat, some 4,300 tokens together.

The prose is in the public domain, each piece uncut from its first to its last word: candle.txt from Michael Faraday,
"The Chemical History of a Candle" (1861), the first lecture; tortoise.txt from Charles Darwin, "The Voyage of the
Beagle" (1839), chapter XVII; picture.txt from Jerome K. Jerome, "Three Men in a Boat" (1889), chapter III. Footnotes,
captions and signs of emphasis are left out. The chat was written for this project. A change of any of them changes
every number measured on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from slipstream.text import Tokenizer

PROSE = ("candle", "tortoise", "picture")
Kind = Literal["prose", "chat"]


@dataclass(frozen=True)
class Passage:
    """A text's tokens, all of one context."""

    kind: Kind
    ids: Sequence[int]


def passages(tokenizer: Tokenizer) -> list[Passage]:
    """The texts as `tokenizer` spells them; the chat in the model's template, or as plain text if it has none."""
    folder = files(__name__)
    prose = [folder.joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in PROSE]
    chat = json.loads(folder.joinpath("chat.json").read_text(encoding="utf-8"))
    if tokenizer.has_chat_template:
        turns = tokenizer.encode_chat(tokenizer.apply_chat_template(chat, add_generation_prompt=False))
    else:
        turns = tokenizer.encode("\n\n".join(f"{turn['role']}: {turn['content']}" for turn in chat))
    return [*(Passage("prose", tokenizer.encode(text)) for text in prose), Passage("chat", turns)]
