"""The files of an image model in diffusers' layout: which belong together, and which a download needs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from slipstream.errors import CheckpointError

INDEX_NAME = "model_index.json"
DEFAULTS = "_slipstream"
"""The key in it for what a request gets that does not say."""

PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "unet", "vae")
"""Folders that pipelines ask for. Others hold older versions, other frameworks' forms, safety checkers."""

_STEMS = "diffusion_pytorch_model|model"
"""What diffusers and transformers call files of weights."""
_WEIGHTS = re.compile(rf"(?:{_STEMS})(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")
_INDEX = re.compile(rf"(?:{_STEMS})\.safetensors\.index(?:\.(\w+))?\.json")
_BESIDE = (".json", ".txt", ".model")


@dataclass
class Weights:
    """One set of a part's weights: all its files, and among them the index if there is one."""

    files: list[str] = field(default_factory=list)
    index: str | None = None


def sets_of(names: Iterable[str]) -> dict[str | None, Weights]:
    """The sets of weights among a folder's file names, by variant: None for files without one."""
    found: dict[str | None, Weights] = {}
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name):
            found.setdefault(match[1] or match[2], Weights()).files.append(name)
        elif match := _INDEX.fullmatch(name):
            one = found.setdefault(match[1], Weights())
            one.files.append(name)
            one.index = name
    return found


def choose_set(sets: dict[str | None, Weights], variant: str | None, where: str) -> Weights:
    """The set of a variant; for None the one without a name, or else the only one. Raises CheckpointError."""
    if variant is None and None not in sets and len(sets) == 1:
        (variant,) = sets
    if variant in sets:
        return sets[variant]
    named = ", ".join(sorted(name for name in sets if name is not None))
    if variant is None:
        raise CheckpointError(f"{where} has weights in several variants ({named}): choose one")
    there = [named] * bool(named) + ["weights without a name"] * (None in sets)
    raise CheckpointError(f"{where} has no weights of the variant {variant}; it has {' and '.join(there)}")


def choose_files(files: Collection[str], variant: str | None, repo: str) -> list[str]:
    """The files of a repository that a download needs. Raises CheckpointError for a variant that a part has not."""
    inside: dict[str, list[str]] = {part: [] for part in PARTS}
    for file in sorted(files):
        folder, _, name = file.rpartition("/")
        if folder in inside:
            inside[folder].append(name)
    chosen = [INDEX_NAME]
    for part, names in inside.items():
        sets = sets_of(names)
        weights = choose_set(sets, variant, f"{repo}/{part}").files if sets else []
        beside = [name for name in names if name.endswith(_BESIDE) and not name.endswith(".bin.index.json")]
        indices = {one.index for one in sets.values()}
        kept = [name for name in beside if name not in indices and not name.startswith("flax_")]
        chosen += [str(PurePosixPath(part, name)) for name in (*kept, *weights)]
    return chosen
