"""Texts as rows of ids of one length, as an image model's text encoder takes them. No JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import TokenizerSpec
from slipstream.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class PaddedTokenizer:
    """`length`: tokens of a row, with special ones. `pad`: the id that fills rows up."""

    tokenizer: Tokenizer
    length: int
    pad: int

    @classmethod
    def of(cls, spec: TokenizerSpec, length: int | None = None) -> PaddedTokenizer:
        """The tokenizer of a checkpoint, for rows of `length`: None, as long as the checkpoint says.

        Raises CheckpointError for a tokenizer that cannot be read, or does not say what it fills rows up with.
        """
        tokenizer, length = load_tokenizer(spec), length or spec.max_length
        pad = tokenizer.token_id(spec.special.get("pad", ""))
        if pad is None or length is None:
            what = (
                "which token fills up its rows (pad_token)" if pad is None else "how long they are (model_max_length)"
            )
            raise CheckpointError(f"an image model's tokenizer_config.json must say {what}")
        return cls(tokenizer, length, pad)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [b, length]. Of a longer text the end is cut off, and the tokens that end a text stay.

        Raises RequestError for text that is not valid Unicode.
        """
        found = np.full((len(texts), self.length), self.pad, np.int32)
        for row, text in zip(found, texts, strict=True):
            ids = self.tokenizer.encode_cut(text, most=self.length)
            row[: len(ids)] = ids
        return found

    def count(self, text: str) -> int:
        """Tokens of a text, with special ones: over `length` its end is cut off."""
        return len(self.tokenizer.encode(text))
