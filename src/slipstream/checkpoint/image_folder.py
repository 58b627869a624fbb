"""Folders in diffusers' layout: model_index.json, and a folder for each of the models that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipstream.checkpoint import float8
from slipstream.checkpoint import folder as hf
from slipstream.checkpoint.image_files import DEFAULTS, INDEX_NAME, choose_set, sets_of
from slipstream.checkpoint.image_tokenizer import tokenizer_of
from slipstream.checkpoint.safetensors_source import SafetensorsSource, open_index
from slipstream.errors import CheckpointError
from slipstream.spec.image import Component, ImageCheckpoint
from slipstream.spec.source import Source
from slipstream.spec.tokenizer import TokenizerSpec

NOT_RUN = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
"""Parts that no pipeline here asks for: a filter of what was made, and the encoder of image prompts with its files."""


def is_image_folder(path: Path) -> bool:
    """Whether this is a folder in diffusers' layout."""
    return (path / INDEX_NAME).is_file()


def open_image_folder(path: Path, *, variant: str | None = None, outline: bool = False) -> ImageCheckpoint:
    """Open a folder. Headers of weights are read, tokenizers' files that have no fast form, nothing more.

    `variant`: which of several sets of weights, as "fp16" in model.fp16.safetensors. None: the one without a name, or
    else the only one. `outline`: config files alone; parts have no tensors then, and there are no tokenizers.

    Raises CheckpointError if files are missing, damaged or pickled, or if there is no such variant.
    """
    index = hf.json_object(path / INDEX_NAME)
    if index is None:
        raise CheckpointError(f"{path} has no {INDEX_NAME}: it is not a folder of an image model")
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise CheckpointError(f"{path / INDEX_NAME} names no pipeline (_class_name)")
    parts: dict[str, Component] = {}
    tokenizers: dict[str, TokenizerSpec] = {}
    scheduler: Mapping[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_") or name in NOT_RUN or value is None:
            continue
        if not isinstance(value, list):
            settings[name] = value
            continue
        kind = _class_of(path, name, value)
        if kind is None:
            continue
        inside = path / name
        if kind.endswith("Scheduler"):
            scheduler = {"_class_name": kind} | (hf.json_object(inside / "scheduler_config.json") or {})
        elif "Tokenizer" not in kind:
            source = SafetensorsSource([]) if outline else _weights(inside, variant)
            parts[name] = Component(kind, hf.config_of(inside), source)
        elif not outline:
            tokenizers[name] = tokenizer_of(inside)
    defaults = index.get(DEFAULTS, {})
    if not isinstance(defaults, dict):
        raise CheckpointError(f"{path / INDEX_NAME}: {DEFAULTS} must be an object, got {str(defaults)[:80]}")
    return ImageCheckpoint(path, pipeline, parts, tokenizers, scheduler, settings, defaults)


def _class_of(path: Path, name: str, value: list[Any]) -> str | None:
    """The class of a part, None for one that is left out. Raises CheckpointError for what is no part of this folder."""
    if value == [None, None]:
        return None
    if len(value) != 2 or not all(isinstance(one, str) for one in value) or not re.fullmatch(r"\w+", name):
        raise CheckpointError(
            f"{path / INDEX_NAME}: {name[:80]!r} must be a library and a class, got {str(value)[:80]}"
        )
    return str(value[1])


def _weights(folder: Path, variant: str | None) -> Source:
    """The tensors of one part."""
    sets = sets_of(file.name for file in folder.iterdir())
    if sets:
        chosen = choose_set(sets, variant, str(folder))
        if chosen.index is not None:
            return float8.opened(open_index(folder / chosen.index))
        return float8.opened(SafetensorsSource([folder / name for name in chosen.files]))
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder} holds weights as pickle only ({pickles[0]}): reading it would run the code inside, so it is not "
            "read. Convert it to safetensors."
        )
    raise CheckpointError(f"{folder} holds no safetensors")
