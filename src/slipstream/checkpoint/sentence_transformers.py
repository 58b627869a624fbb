"""The files that sentence-transformers puts beside a model: which states make a text's vector, and what follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.source import Answers, Dense, Pooling, PoolingKind
from slipstream.spec.tokenizer import TokenizerSpec

_LIMIT = 1 << 20
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_SCORING = ("Transformer", "LogitScore")
"""What follows what: of models that make vectors, of which the last two may be left out, and of those that score
pairs."""
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
    found = [(str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
    for name, path in found:
        if name not in _MODULES + _SCORING:
            known = ", ".join(dict.fromkeys(_MODULES + _SCORING))
            raise UnsupportedModel(
                f"{folder / 'modules.json'} has a module of type {name}; Slipstream computes {known}"
            )
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise CheckpointError(f"{folder / 'modules.json'} names a folder outside its own: {path}")
    names = [name for name, _ in found]
    paths = dict(found)
    if tuple(names) == _SCORING:
        return Pooling(
            "last", normalize=False, max_tokens=_max_tokens(folder), answers=_answers(folder, paths["LogitScore"])
        )
    if names.count("Pooling") != 1 or names != sorted(names, key=_MODULES.index):
        raise UnsupportedModel(
            f"{folder / 'modules.json'} lists {', '.join(names)}; Slipstream computes "
            f"{', '.join(_MODULES)} in this order, or {', '.join(_SCORING)}"
        )
    return Pooling(
        _kind(folder / paths["Pooling"] / "config.json"),
        normalize="Normalize" in names,
        max_tokens=_max_tokens(folder),
        dense=tuple(_dense(folder, path) for name, path in found if name == "Dense"),
    )


def dense_files(folder: Path, pooling: Pooling) -> dict[str, Path]:
    """The file of each of the pooling's Dense modules, by its name. Raises CheckpointError where one is absent."""
    files = {dense.name: folder / dense.name / "model.safetensors" for dense in pooling.dense}
    for file in files.values():
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: it holds the weights of a Dense module (pickles are not read)")
    return files


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


def _dense(folder: Path, path: str) -> Dense:
    """A product after the pooling. Raises CheckpointError for sizes that are none."""
    config = _object(folder / path / "config.json") or {}
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if not isinstance(inputs, int) or not isinstance(outputs, int) or min(inputs, outputs) < 1:
        raise CheckpointError(f"{folder / path / 'config.json'} lacks in_features and out_features")
    # Without the key sentence-transformers takes tanh.
    activation = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    return Dense(path, inputs, outputs, config.get("bias") is not False, activation)


def _answers(folder: Path, path: str) -> Answers:
    """The tokens that a LogitScore module compares, and the instruction that stands in the prompt."""
    config = _object(folder / path / "config.json") or {}
    yes, no = config.get("true_token_id"), config.get("false_token_id")
    if not isinstance(yes, int) or not (no is None or isinstance(no, int)):
        raise CheckpointError(f"{folder / path / 'config.json'} lacks true_token_id, the token that says yes")
    said = _object(folder / "config_sentence_transformers.json") or {}
    prompts = said.get("prompts")
    instruction = prompts.get(said.get("default_prompt_name")) if isinstance(prompts, dict) else None
    return Answers(yes, no, instruction if isinstance(instruction, str) and instruction else None)


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
