"""The tokenizers of an image model's text encoders: tokenizer.json, or the files that were there before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from slipstream.checkpoint import folder as hf
from slipstream.checkpoint import sentencepiece_file
from slipstream.errors import CheckpointError
from slipstream.spec.tokenizer import ClipVocab, TokenizerSpec

LONGEST = 1 << 20
"""A `model_max_length` over this says that there is no limit."""


def tokenizer_of(folder: Path) -> TokenizerSpec:
    """The tokenizer in a folder: tokenizer.json, CLIP's vocab.json and merges.txt, or T5's spiece.model.

    Raises CheckpointError where there is none of these, or one that is damaged.
    """
    for names, read in _READERS.items():
        if all((folder / name).is_file() for name in names):
            length = hf.tokenizer_config(folder).get("model_max_length")
            whole = isinstance(length, int) and 0 < length <= LONGEST
            return replace(read(folder), max_length=length if whole else None)
    known = "; ".join(" and ".join(names) for names in _READERS)
    raise CheckpointError(f"{folder} holds no tokenizer that is read: {known}")


def _json(folder: Path) -> TokenizerSpec:
    spec = hf.tokenizer_of(folder)
    assert spec is not None
    return spec


def _clip(folder: Path) -> TokenizerSpec:
    ids, file = hf.json_object(folder / "vocab.json") or {}, folder / "merges.txt"
    if not all(type(index) is int and index >= 0 for index in ids.values()):
        raise CheckpointError(f"{folder / 'vocab.json'} is not a mapping from tokens to ids")
    # The first line names the format's version.
    pairs = [line.split(" ") for line in hf.text_of(file).split("\n")[1:] if line]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise CheckpointError(f"{file} has a line that is not two tokens: {' '.join(wrong)[:80]!r}")
    merges = tuple((left, right) for left, right in pairs)
    return TokenizerSpec(clip=ClipVocab(ids, merges), special=hf.special_tokens(folder))


def _unigram(folder: Path) -> TokenizerSpec:
    return TokenizerSpec(
        unigram=sentencepiece_file.vocab_of(folder / "spiece.model"), special=hf.special_tokens(folder)
    )


_READERS: Mapping[tuple[str, ...], Callable[[Path], TokenizerSpec]] = {
    ("tokenizer.json",): _json,
    ("vocab.json", "merges.txt"): _clip,
    ("spiece.model",): _unigram,
}
