"""LoRAs beside the weights, not in them: what of their matrices each weight of the model's plan takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slipstream.checkpoint.lora import Delta
from slipstream.errors import CheckpointError
from slipstream.kernels.low_rank import LowRank
from slipstream.spec.param import Axis, Param, map_params, params

Changes = Mapping[str, Sequence[Delta]]
"""What an adapter adds to tensors, by the names that a plan has for them."""

_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Columns(NamedTuple):
    """All adapters' columns of one weight: float32 [(l,) *inputs, k] and [(l,) k, *outputs], and whose each is."""

    down: np.ndarray
    up: np.ndarray
    of: tuple[int, ...]


def parse_named(text: str) -> tuple[str, Path]:
    """NAME=PATH. Raises CheckpointError for another form, or a file that is not there."""
    name, equals, path = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise CheckpointError(f"{text}: write a LoRA as NAME=PATH, such as ink=ink.safetensors")
    found = Path(path).expanduser()
    if not found.is_file():
        raise CheckpointError(f"there is no LoRA file {found}")
    return name, found


def parse_all(texts: Sequence[str]) -> dict[str, Path]:
    """`parse_named` of each. Raises CheckpointError also for a name that is there twice."""
    found: dict[str, Path] = {}
    for name, path in map(parse_named, texts):
        if name in found:
            raise CheckpointError(f"two LoRAs are called {name}: {found[name]} and {path}")
        found[name] = path
    return found


def with_adapters(plan: Any, weights: Any, adapters: Mapping[str, Changes], place: Callable[[np.ndarray], Any]) -> Any:
    """The weights, those that an adapter changes as `LowRank`.

    `adapters`: by name, all that the model has, in their order. `place`: to the device.
    Raises CheckpointError where one changes what is neither a product nor a convolution.
    """
    if not any(adapters.values()):
        return weights
    found = list(params(plan))
    paths = iter(path for path, _ in found)
    can = {name for path, param in found if _is_product(param, path) for name in param.names}
    for adapter, changes in adapters.items():
        if wrong := sorted(changes.keys() - can):
            raise CheckpointError(
                f"the LoRA {adapter} changes {wrong[0]}, which is neither a product nor a convolution: such a one can "
                "only be merged into the weights"
            )

    def leaf(param: Param, weight: Any) -> Any:
        path = next(paths)  # map_params visits the leaves in the order of params
        columns = columns_of(param, list(enumerate(adapters.values()))) if _is_product(param, path) else None
        return weight if columns is None else LowRank(weight, place(columns.down), place(columns.up), columns.of)

    return map_params(leaf, plan, weights)


def columns_of(param: Param, adapters: Sequence[tuple[int, Changes]]) -> Columns | None:
    """What adapters, each with its number, add to one weight; None where none does.

    An adapter has as many columns as its largest rank in any layer.
    """
    whole, *rest = param.stored_groups
    inputs = [axis for group in rest for axis in group]
    downs, ups, of = [], [], []
    for number, changes in adapters:
        pairs = [_matrices(changes.get(name, ())) for name in param.names]
        rank = max(0 if pair is None else len(pair[1]) for pair in pairs)
        if rank:
            downs.append(np.stack([_cut(param, None if one is None else one[1], rank, inputs) for one in pairs]))
            ups.append(np.stack([_cut(param, None if one is None else one[0].T, rank, whole) for one in pairs]))
            of += [number] * rank
    if not of:
        return None
    down, up = np.moveaxis(np.concatenate(downs, 1), 1, -1), np.concatenate(ups, 1)
    return Columns(down, up, tuple(of)) if param.layers is not None else Columns(down[0], up[0], tuple(of))


def _is_product(param: Param, path: str) -> bool:
    """Whether the leaf is the weight of a `Linear` that multiplies: neither a norm's nor a table of rows."""
    return path.rpartition(".")[2] == "weight" and bool(param.contract) and param.each is None


def _matrices(deltas: Sequence[Delta]) -> tuple[np.ndarray, np.ndarray] | None:
    """up [o, r] and down [r, i] of all deltas of a tensor, side by side; None of none."""
    pairs = [delta.matrices() for delta in deltas]
    return (np.concatenate([up for up, _ in pairs], 1), np.concatenate([down for _, down in pairs])) if pairs else None


def _cut(param: Param, rows: np.ndarray | None, rank: int, stored: Sequence[Axis]) -> np.ndarray:
    """Rows [r, i] over axes of the stored tensor as float32 [rank, *axes], ours in our order; zeros where r < rank."""
    axes = [axis for axis in param.dims.axes if axis in stored]
    found = np.zeros((rank, *(axis.size for axis in axes)), np.float32)
    if rows is None:
        return found
    split = rows.reshape(len(rows), *map(param.stored_size, stored))
    if param.part is not None:
        own = [param.part.of(axis.size) if axis.letter == param.part.letter else slice(None) for axis in stored]
        split = split[:, *own]
    found[: len(rows)] = np.transpose(split, (0, *(1 + stored.index(axis) for axis in axes)))
    return found
