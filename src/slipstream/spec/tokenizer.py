"""The data that a tokenizer is built from, as a checkpoint holds it. No code here: `text/` builds from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class GgufVocab:
    """GGUF's tokenizer metadata. `model` is `tokenizer.ggml.model` (gpt2: BPE, llama: SPM), `pre` names the split rule.

    `types` are GGUF's token types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    """

    model: str
    pre: str | None
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] | None = None
    add_space_prefix: bool | None = None


@dataclass(frozen=True)
class ClipVocab:
    """CLIP's vocab.json and merges.txt: ids of tokens, and pairs of tokens in the order in which they are joined."""

    ids: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class UnigramVocab:
    """A SentencePiece model of T5's kind: its pieces with their scores, in the order of ids; the id of unknown text.

    `charsmap` is the compiled table by which text is normalised first, as SentencePiece stores it; None for none.
    """

    pieces: tuple[tuple[str, float], ...]
    unknown: int
    charsmap: bytes | None


@dataclass(frozen=True)
class TokenizerSpec:
    """What a tokenizer is built from: exactly one of `tokenizer_json`, `vocab`, `clip` and `unigram` is set.

    `special` maps role (bos, eos, unk, pad) to the token's text.
    `chat_templates` maps a name ("default", "tool_use", ...) to its Jinja source; empty for a base model.
    `add_bos` / `add_eos`: None leaves it to tokenizer.json's own post-processor.
    `max_length`: tokens that a text encoder of an image model takes, with special ones; None where nothing says it.
    """

    tokenizer_json: Path | None = None
    vocab: GgufVocab | None = None
    clip: ClipVocab | None = None
    unigram: UnigramVocab | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
