"""What a Hugging Face folder says beside its weights: config, tokenizer, chat templates, generation defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from slipstream.errors import CheckpointError
from slipstream.spec.source import GenerationDefaults
from slipstream.spec.tokenizer import TokenizerSpec

JSON_LIMIT = 64 << 20
TEMPLATE_LIMIT = 4 << 20

_ROLES = ("bos", "eos", "unk", "pad")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def config_of(folder: Path) -> dict[str, Any]:
    """config.json. Raises CheckpointError if it is not there."""
    config = json_object(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder")
    return config


def tokenizer_of(folder: Path) -> TokenizerSpec | None:
    """The tokenizer, or None where there is no tokenizer.json (see `why_no_tokenizer`)."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    config = tokenizer_config(folder)
    return TokenizerSpec(
        tokenizer_json=file,
        special=special_tokens(folder),
        add_bos=_flag(config.get("add_bos_token")),
        add_eos=_flag(config.get("add_eos_token")),
        chat_templates=_templates(folder, config),
    )


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    return json_object(folder / "tokenizer_config.json") or {}


def special_tokens(folder: Path) -> dict[str, str]:
    """Role (bos, eos, unk, pad) to the token's text."""
    # Older repositories name their special tokens in this second file alone.
    tokens = (json_object(folder / "special_tokens_map.json") or {}) | tokenizer_config(folder)
    special = {role: _token_text(tokens.get(f"{role}_token")) for role in _ROLES}
    return {role: text for role, text in special.items() if text is not None}


def why_no_tokenizer(folder: Path) -> str:
    """A sentence for a folder whose tokenizer is None: what is missing and what to do."""
    if (folder / "tokenizer.model").exists():
        return (
            f"{folder} has tokenizer.model (SentencePiece) but no tokenizer.json, and only the latter is read. "
            "Convert it with transformers, `AutoTokenizer.from_pretrained(...).save_pretrained(...)`, or send token ids"
        )
    return f"{folder} has no tokenizer.json: text cannot be encoded; send token ids"


def generation_of(folder: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """End tokens of generation_config.json (else config.json) and of the tokenizer; sampling values of the former."""
    generation = json_object(folder / "generation_config.json") or {}
    text = config.get("text_config")
    nested = text if isinstance(text, Mapping) else {}
    stated = (generation.get("eos_token_id"), config.get("eos_token_id"), nested.get("eos_token_id"))
    endings = next((ids for ids in map(_ids, stated) if ids), [])
    sampling = {name: generation[name] for name in _SAMPLING if _is_number(generation.get(name))}
    if generation.get("do_sample") is False:
        # Transformers would then decode greedily, whatever else the file says.
        sampling = {"temperature": 0.0}
    return GenerationDefaults(tuple(dict.fromkeys(endings + _tokenizer_endings(folder))), sampling)


def _tokenizer_endings(folder: Path) -> list[int]:
    """The id of the tokenizer's eos_token: chat models often end a turn with it, and config.json names another."""
    config = tokenizer_config(folder)
    text, added = _token_text(config.get("eos_token")), config.get("added_tokens_decoder")
    if text is None or not isinstance(added, dict):
        return []
    return [int(index) for index, token in added.items() if index.isdecimal() and _token_text(token) == text]


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """All chat templates by name. A file of its own wins over one inside tokenizer_config.json, as in transformers."""
    found: dict[str, str] = {}
    for value in (config.get("chat_template"), (json_object(folder / "chat_template.json") or {}).get("chat_template")):
        found |= _named_templates(value)
    extra = folder / "additional_chat_templates"
    named = [(file.stem, file) for file in sorted(extra.glob("*.jinja"))]
    for name, file in [("default", folder / "chat_template.jinja"), *named]:
        if file.is_file():
            found[name] = text_of(file, TEMPLATE_LIMIT)
    return found


def _named_templates(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        return {name: text for name, text in value.items() if isinstance(text, str)}
    entries: Iterable[Any] = value if isinstance(value, list) else ()
    return {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    }


def _token_text(value: Any) -> str | None:
    """A special token is a text, or an object whose `content` is the text."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [index for index in values if isinstance(index, int) and not isinstance(index, bool) and index >= 0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def json_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file. Raises CheckpointError for anything else in its place."""
    if not path.is_file():
        return None
    try:
        content = json.loads(text_of(path, JSON_LIMIT))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def text_of(path: Path, limit: int = JSON_LIMIT) -> str:
    """A file's text. Raises CheckpointError for one of more bytes, or that cannot be read."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size:,} bytes; at most {limit:,} are read")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
