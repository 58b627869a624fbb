"""The tokenizer and the generation defaults that a GGUF file's metadata hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from slipstream.checkpoint.gguf_file import GgufFile
from slipstream.checkpoint.gguf_metadata import shortest
from slipstream.errors import CheckpointError
from slipstream.spec.source import GenerationDefaults
from slipstream.spec.tokenizer import GgufVocab, TokenizerSpec

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_CONTROL, _USER_DEFINED = 3, 4
_NONE = 0xFFFFFFFF  # how some converters write "there is no such token"

_SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
_ENDINGS = ("eos_token_id", "eot_token_id", "eom_token_id")

# Tokens that end a reply in the chat formats that are in use. A file often names only one of them as its end, so each
# one counts that its own chat template writes.
_END_OF_TURN = frozenset(
    {
        "<|im_end|>",
        "<end_of_turn>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end_of_turn|>",
        "<EOT>",
        "<|return|>",
        "<|call|>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "</s>",
    }
)

# Split rules whose tokenizers put the begin token first although the file does not say so, as llama.cpp loads them.
_BPE_WITH_BOS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken"})

# Suggested sampling values, under the names that sampling parameters have here.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def tokenizer_of(file: GgufFile) -> TokenizerSpec | None:
    """The tokenizer, or None for a file without one. Raises CheckpointError for one that contradicts itself."""
    vocab = _vocab(file)
    if vocab is None:
        return None
    ids = {role: _token_id(file, key, len(vocab.tokens)) for role, key in _SPECIAL.items()}
    special = {role: vocab.tokens[index] for role, index in ids.items() if index is not None}
    usually = vocab.model == "llama" or (vocab.model == "gpt2" and vocab.pre in _BPE_WITH_BOS)
    add_bos, add_eos = _flag(file, "add_bos_token"), _flag(file, "add_eos_token")
    return TokenizerSpec(
        vocab=vocab,
        special=special,
        add_bos="bos" in special and (usually if add_bos is None else add_bos),
        add_eos="eos" in special and bool(add_eos),
        chat_templates=_templates(file),
    )


def generation_of(file: GgufFile, tokenizer: TokenizerSpec | None) -> GenerationDefaults:
    """The tokens that end a reply and suggested sampling values."""
    if tokenizer is None or tokenizer.vocab is None:
        return GenerationDefaults()
    vocab = tokenizer.vocab
    stated = (_token_id(file, key, len(vocab.tokens)) for key in _ENDINGS)
    endings = [index for index in stated if index is not None]
    template = "".join(tokenizer.chat_templates.values())
    written = {text for text in _END_OF_TURN if text in template}
    if written:
        endings += [
            index
            for index, text in enumerate(vocab.tokens)
            if text in written and vocab.types[index] in (_CONTROL, _USER_DEFINED)
        ]
    return GenerationDefaults(tuple(dict.fromkeys(endings)), _sampling(file))


def _vocab(file: GgufFile) -> GgufVocab | None:
    metadata: Mapping[str, Any] = file.metadata
    model = metadata.get(_KEY + "model")
    if model in (None, "none", "no_vocab"):
        return None
    pre = metadata.get(_KEY + "pre")
    tokens = metadata.get(_KEY + "tokens")
    merges = metadata.get(_KEY + "merges")
    if not isinstance(model, str) or not isinstance(tokens, tuple) or not tokens:
        raise CheckpointError(f"{file.path}: {_KEY}tokens is missing or no list of texts: the tokenizer is damaged")
    if not isinstance(pre, str | None) or not isinstance(merges, tuple | None):
        raise CheckpointError(f"{file.path}: {_KEY}pre or {_KEY}merges has the wrong type: the tokenizer is damaged")
    types = _numbers(file, "token_type", len(tokens))
    scores = _numbers(file, "scores", len(tokens))
    return GgufVocab(
        model=model,
        pre=pre,
        tokens=tokens,
        types=tuple(types.astype(np.int64).tolist()) if types is not None else (1,) * len(tokens),
        scores=tuple(scores.astype(np.float64).tolist()) if scores is not None else None,
        merges=merges,
        add_space_prefix=_flag(file, "add_space_prefix"),
    )


def _numbers(file: GgufFile, key: str, count: int) -> np.ndarray | None:
    values = file.metadata.get(_KEY + key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or len(values) != count or not np.isfinite(values).all():
        raise CheckpointError(f"{file.path}: {_KEY}{key} does not hold {count} numbers, one for each token")
    return values


def _token_id(file: GgufFile, key: str, count: int) -> int | None:
    value = file.metadata.get(_KEY + key)
    if value is None or (isinstance(value, int) and value in (_NONE, -1)):
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise CheckpointError(f"{file.path}: {_KEY}{key} is {value!r}; the vocabulary has {count} tokens")
    return value


def _flag(file: GgufFile, key: str) -> bool | None:
    value = file.metadata.get(_KEY + key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{file.path}: {_KEY}{key} is {value!r}, not a boolean")
    return value


def _templates(file: GgufFile) -> dict[str, str]:
    found = {}
    for key, value in file.metadata.items():
        if isinstance(value, str) and (key == _TEMPLATE or key.startswith(_TEMPLATE + ".")):
            found[key[len(_TEMPLATE) + 1 :] or "default"] = value
    return found


def _sampling(file: GgufFile) -> dict[str, float]:
    values = {name: file.metadata.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
    return {
        name: shortest(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
