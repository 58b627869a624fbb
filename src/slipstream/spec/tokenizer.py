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
class TokenizerSpec:
    """Exactly one of `tokenizer_json` and `vocab` is set. `special` maps role (bos, eos, unk, pad) to the token's text.

    `chat_templates` maps a name ("default", "tool_use", ...) to its Jinja source; empty for a base model.
    `add_bos` / `add_eos`: None leaves it to tokenizer.json's own post-processor.
    """

    tokenizer_json: Path | None = None
    vocab: GgufVocab | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
