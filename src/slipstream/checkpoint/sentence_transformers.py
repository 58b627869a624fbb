"""The files that sentence-transformers puts beside a model: which states make a text's vector, and what follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.source import Pooling, PoolingKind
from slipstream.spec.tokenizer import TokenizerSpec

_LIMIT = 1 << 20
_MODULES = ("Transformer", "Pooling", "Normalize")
_KINDS: Mapping[str, PoolingKind] = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
_NAMES: Mapping[str, PoolingKind] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def pooling_of(folder: Path) -> Pooling | None:
    """What modules.json and the folders that it names say; None where there is no such file.

    Raises CheckpointError for files that cannot be read, UnsupportedModel for modules that are not computed.
    """
    modules = _json(folder / "modules.json")
    if modules is None:
        return None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / 'modules.json'} is not a list of modules")
    found = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    unknown = [name for name in found if name not in _MODULES]
    if unknown or "Pooling" not in found:
        what = f"has a module of type {unknown[0]}" if unknown else "has no module of type Pooling"
        raise UnsupportedModel(f"{folder / 'modules.json'} {what}; Slipstream computes {', '.join(_MODULES)}")
    if Path(found["Pooling"]).is_absolute() or ".." in Path(found["Pooling"]).parts:
        raise CheckpointError(f"{folder / 'modules.json'} names a folder outside its own: {found['Pooling']}")
    kind = _kind(folder / found["Pooling"] / "config.json")
    return Pooling(kind, normalize="Normalize" in found, max_tokens=_max_tokens(folder))


def tokenizer_for(spec: TokenizerSpec | None, pooling: Pooling | None) -> TokenizerSpec | None:
    """The tokenizer as sentence-transformers uses it.

    A text's last token is what some models pool (Qwen3-Embedding), and their tokenizer.json adds it. A flag that asks
    for no such token in front or behind leaves that to the file, as Qwen's tokenizers do in transformers.
    """
    if spec is None or pooling is None:
        return spec
    return replace(spec, add_bos=spec.add_bos or None, add_eos=spec.add_eos or None)


def _kind(path: Path) -> PoolingKind:
    """From the flags pooling_mode_*, or from the newer pooling_mode."""
    config = _object(path)
    if config is None:
        raise CheckpointError(f"{path} is missing: it says which states make a text's vector")
    name = config.get("pooling_mode")
    if name is None:
        chosen = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True]
        chosen = [key for key in chosen if key != "include_prompt"]
        names, table = chosen, _KINDS
    else:
        names, table = [str(name)], _NAMES
    if config.get("include_prompt") is False:
        raise UnsupportedModel(f"{path} leaves prompts out of the vector (include_prompt), which is not computed")
    if len(names) != 1 or names[0] not in table:
        raise UnsupportedModel(f"{path} asks for pooling by {', '.join(names) or 'nothing'}; it must be one of "
                               f"{', '.join(table)}")  # fmt: skip
    return table[names[0]]


def _max_tokens(folder: Path) -> int | None:
    for path in sorted(folder.glob("sentence_*_config.json")):
        value = (_object(path) or {}).get("max_seq_length")
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _object(path: Path) -> dict[str, Any] | None:
    content = _json(path)
    if content is not None and not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _json(path: Path) -> Any:
    """The file's content, None where there is none. Raises CheckpointError for what is not JSON, or too long."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _LIMIT:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; at most {_LIMIT:,} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
