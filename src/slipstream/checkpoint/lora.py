"""LoRA: small matrices that change an image model's large ones, added to them as they are read.

W + scale * (alpha / rank) * up @ down, for each of several files with a scale of its own (Hu et al., arXiv:2106.09685).
Nothing of a model has to know: its tensors are what they would be had it been trained so. DoRA, LoHa and LoKr are
refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from slipstream.checkpoint import flux_names
from slipstream.checkpoint.lora_names import DENOISER, FIRST, SECOND, Place, place, plain, split
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError
from slipstream.spec.image import ImageCheckpoint
from slipstream.spec.source import Blocks, Source, Stored

PARTS: Mapping[str, tuple[str, ...]] = {
    DENOISER: ("transformer", "unet"),
    FIRST: ("text_encoder",),
    SECOND: ("text_encoder_2",),
}
"""The parts of a checkpoint that a LoRA's part may be."""

METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings, alpha among them."""


@dataclass(frozen=True)
class Lora:
    """A file, and how much of it: 1 is as it was trained, 0 nothing, less than 0 its opposite."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Delta:
    """What is added to one tensor: `factor` * up[rows] @ down."""

    source: Source
    down: str
    up: str
    factor: float
    rows: tuple[int, int] | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.source.shape(self.down)[0]

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """`factor` * up [out, rank] and down [rank, in], float32; inputs of a convolution: of all its points."""
        up = self.source.read(self.up).astype(np.float32)
        down = self.source.read(self.down).astype(np.float32)
        if self.rows is not None:
            up = up[slice(*self.rows)]
        return np.float32(self.factor) * up.reshape(len(up), -1), down.reshape(len(down), -1)

    def added_to(self, weight: np.ndarray) -> np.ndarray:
        """float32, of the weight's shape: a matrix, or a convolution's kernel [out, in, h, w]."""
        up, down = self.matrices()
        total: np.ndarray = weight + (up @ down).reshape(weight.shape)
        return total


@dataclass(frozen=True)
class Adapted:
    """A Source whose tensors have their deltas added, in float32."""

    source: Source
    deltas: Mapping[str, Sequence[Delta]]

    def names(self) -> Collection[str]:
        """The source's."""
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The source's."""
        return self.source.shape(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor with what is added to it."""
        weight = self.source.read(name)
        for delta in self.deltas.get(name, ()):
            weight = delta.added_to(weight.astype(np.float32, copy=False))
        return weight

    def blocks(self, name: str) -> Stored | None:
        """The tensor as it is stored; with what is added to it as floats, which are computed when they are read."""
        if name not in self.deltas:
            return self.source.blocks(name)
        return Blocks("F32", self.shape(name), lambda: np.ascontiguousarray(self.read(name), np.float32).view(np.uint8))


def with_loras(checkpoint: ImageCheckpoint, loras: Sequence[Lora]) -> ImageCheckpoint:
    """The checkpoint with the files' changes, which add up.

    Raises CheckpointError for a file that is damaged, of a kind that is not read, or made for another model.
    """
    deltas: dict[str, dict[str, list[Delta]]] = {}
    for lora in loras:
        for part, changes in deltas_of(lora, checkpoint).items():
            for name, change in changes:
                deltas.setdefault(part, {}).setdefault(name, []).append(change)
    parts = {
        name: replace(part, source=Adapted(part.source, deltas[name])) if name in deltas else part
        for name, part in checkpoint.parts.items()
    }
    return replace(checkpoint, parts=parts)


def parse(text: str) -> Lora:
    """PATH or PATH=SCALE. Raises CheckpointError for a file that is not there, or a scale that is no number."""
    path, equals, scale = text.rpartition("=")
    given = Path(path if equals else text).expanduser()
    try:
        found = Lora(given, float(scale) if equals else 1.0)
    except ValueError:
        raise CheckpointError(f"{text}: write a LoRA as PATH or PATH=SCALE, such as ink.safetensors=0.8") from None
    if not given.is_file():
        raise CheckpointError(f"there is no LoRA file {given}")
    return found


def deltas_of(lora: Lora, checkpoint: ImageCheckpoint) -> dict[str, list[tuple[str, Delta]]]:
    """Of each part of the checkpoint, the tensors that the file changes. Raises CheckpointError."""
    source = SafetensorsSource([lora.path])
    there = {part: next((n for n in names if n in checkpoint.parts), None) for part, names in PARTS.items()}
    tensors = {
        part: {plain(name): name for name in checkpoint.parts[at].source.names()}
        for part, at in there.items()
        if at is not None
    }
    modules = {
        part: {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
        for part, names in tensors.items()
    }
    alphas = _alphas(lora.path)
    found: dict[str, list[tuple[str, Delta]]] = {}
    strange: list[str] = []
    for name, kinds in _grouped(source, lora.path).items():
        where = place(name, modules)
        at = None if where is None else there.get(where.part)
        if where is None or at is None:
            strange.append(name)
            continue
        rank = source.shape(kinds["down"])[0]
        alpha = float(source.read(kinds["alpha"]).reshape(())) if "alpha" in kinds else alphas.get(where.part, rank)
        delta = Delta(source, kinds["down"], kinds["up"], lora.scale * alpha / rank)
        target = checkpoint.parts[at].source
        for tensor, change in _placed(where, delta, target):
            stored = tensors[where.part].get(tensor)
            if stored is None or not _fits(change, target.shape(stored)):
                strange.append(name)
                break
            found.setdefault(at, []).append((stored, change))
    if strange:
        raise CheckpointError(
            f"{lora.path} was made for another model: {len(strange)} of its matrices belong nowhere in a "
            f"{checkpoint.pipeline}, such as {strange[0]!r}"
        )
    return found


def _grouped(source: Source, path: Path) -> dict[str, dict[str, str]]:
    """Of each thing that is changed: the names of its tensors by their kinds."""
    groups: dict[str, dict[str, str]] = {}
    for name in source.names():
        parts = split(name)
        if parts is None:
            raise CheckpointError(
                f"{path} holds {name!r}: LoRAs of pairs of matrices are read, no other kind of change"
            )
        groups.setdefault(parts[0], {})[parts[1]] = name
    halves = [name for name, kinds in groups.items() if not {"down", "up"} <= kinds.keys()]
    if halves or not groups:
        raise CheckpointError(f"{path} is no whole LoRA: {halves[0] if halves else 'it'} lacks a matrix")
    return groups


def _placed(where: Place, delta: Delta, target: Source) -> list[tuple[str, Delta]]:
    """The tensors that a delta changes: several where the file's model keeps them in one."""
    if not where.native:
        return [(f"{where.module}.weight", delta)]
    rows = delta.source.shape(delta.up)[0]
    width = target.shape("x_embedder.weight")[0] if "x_embedder.weight" in target.names() else rows
    return [
        (tensor, replace(delta, rows=run))
        for tensor, run in flux_names.rows_of(f"{where.module}.weight", rows=rows, width=width)
    ]


def _fits(delta: Delta, shape: tuple[int, ...]) -> bool:
    up, down = delta.source.shape(delta.up), delta.source.shape(delta.down)
    rows = up[0] if delta.rows is None else delta.rows[1] - delta.rows[0]
    inner = int(np.prod(up[1:])) == down[0]
    return bool(shape) and inner and rows == shape[0] and int(np.prod(down[1:])) == int(np.prod(shape[1:]))


def _alphas(path: Path) -> dict[str, float]:
    """peft's alpha of each part, where the file's header says it. Raises CheckpointError for what is not computed."""
    with safe_open(path, "numpy") as file:
        text = (file.metadata() or {}).get(METADATA)
    try:
        settings: Any = json.loads(text) if text else {}
    except ValueError as error:
        raise CheckpointError(f"{path}: {METADATA} is no JSON: {error}") from None
    found: dict[str, float] = {}
    for part, names in PARTS.items():
        for name in names:
            for wrong in ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern"):
                if settings.get(f"{name}.{wrong}"):
                    raise CheckpointError(f"{path} was trained with peft's {wrong}, which is not read")
            alpha = settings.get(f"{name}.lora_alpha")
            if isinstance(alpha, int | float):
                found[part] = float(alpha)
    return found
