"""From a plan and a source to the tree of weights that the plan describes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
from einops import rearrange

from slipstream.checkpoint.progress import Progress, silent
from slipstream.errors import CheckpointError
from slipstream.spec.param import Axis, Param, map_params, params
from slipstream.spec.source import FLOATS, Blocks, Scaled, ScaledData, Source, Stored

# Tensors that a checkpoint may hold and no plan reads: they are computed from the config, or repeat the embedding of
# a model whose head is tied to it.
ALLOWED_UNUSED = ("*.rotary_emb.inv_freq", "rope_freqs.weight", "rope_factors_*.weight", "lm_head.weight")

Place = Callable[[Param, str, np.ndarray], Any]
PlaceBlocks = Callable[[Param, Sequence[Stored | None]], Any]
PlaceParts = Callable[[Param, Iterable[np.ndarray]], Any]


def check(plan: Any, source: Source, *, allowed_unused: Collection[str] = ()) -> None:
    """Compare the names and shapes that the plan asks for with those that the source has; no data is read.

    `allowed_unused`: patterns (as of fnmatch) of tensors that may stay unread, beside ALLOWED_UNUSED.
    Raises one CheckpointError that lists every missing, unused and misshapen tensor.
    """
    wanted = {name: param.stored_shape for _, param in params(plan) for name in param.names}
    present = set(source.names())
    patterns = (*ALLOWED_UNUSED, *allowed_unused)
    missing = sorted(wanted.keys() - present, key=_natural)
    unused = sorted(
        (name for name in present - wanted.keys() if not any(fnmatchcase(name, pattern) for pattern in patterns)),
        key=_natural,
    )
    shapes = {name: source.shape(name) for name in wanted if name in present}
    misshapen = [
        f"{name}: {shape} in the checkpoint, {wanted[name]} by the config"
        for name, shape in shapes.items()
        if shape != wanted[name]
    ]
    problems = [
        *_listing("missing", missing),
        *_listing("not read by the model", unused),
        *_listing("of another shape", misshapen),
    ]
    if problems:
        raise CheckpointError("The checkpoint does not fit its model:\n" + "\n".join(problems))


def load(
    plan: Any,
    source: Source,
    place: Place,
    *,
    place_blocks: PlaceBlocks = lambda param, blocks: None,
    place_parts: PlaceParts = lambda param, tensors: None,
    progress: Progress = silent,
    allowed_unused: Collection[str] = (),
) -> Any:
    """The plan's tree with each Param replaced by `place(param, path, array)`.

    `path` is the leaf's dotted path in the tree. `array` has `param.shape`, in the axes' order of the forward, and the
    source's float dtype (float32 where the Param has an offset, or its layers are stored in different ones). It may be
    a read-only view of the file where nothing had to be rearranged; otherwise it starts at a multiple of 64 bytes and
    nobody else holds it. Leaves are read one after the other: the host holds one at a time besides what `place` keeps.

    `place_blocks(param, blocks)` is asked first: with the tensors as they are stored (None for one that the source
    computes from what is stored) it may make the leaf itself, or decline with None. `place_parts(param, tensors)` is
    asked next: the tensors come one after the other, in the order of `param.names`, in our axes and as views of the
    file where they can be, so that it may read less than all of each.

    Raises CheckpointError, before anything is read, unless names and shapes fit (see `check`).
    """
    check(plan, source, allowed_unused=allowed_unused)
    paths = iter(list(params(plan)))
    total = sum(param.size for _, param in params(plan))
    done = 0
    progress("load weights", 0, total)

    def leaf(param: Param) -> Any:
        nonlocal done
        path, _ = next(paths)  # map_params visits the leaves in the order of params
        placed = place_blocks(param, blocks_of(param, source))
        if placed is None:
            placed = place_parts(param, (_arranged(param, source.read(name)) for name in param.names))
        if placed is None:
            placed = place(param, path, read(param, source))
        done += param.size
        progress("load weights", done, total)
        return placed

    return map_params(leaf, plan)


def blocks_of(param: Param, source: Source) -> list[Stored | None]:
    """The tensors of one leaf as they are stored, not read yet; None where the source has no blocks of it alone."""
    return [_part_of_stored(param, source.blocks(name)) for name in param.names]


def read(param: Param, source: Source) -> np.ndarray:
    """One leaf as the forward wants it: tensors stacked, axes rearranged, offset added. See `load` for the dtype."""
    if not param.stack:
        one = _arranged(param, source.read(param.names[0]))
        return _aligned(one) if param.layout or param.offset or param.part else one
    whole: np.ndarray | None = None
    for place, name in enumerate(param.names):
        one = _arranged(param, source.read(name))
        if whole is None:
            whole = empty((len(param.names), *param.dims.shape), one.dtype)
        elif whole.dtype != one.dtype:
            # A GGUF may quantize some layers of a kind and not others: float32 holds all of them.
            whole = _copied(whole, np.dtype(np.float32))
        whole[place] = one
    if whole is None:
        return np.empty(param.shape, np.float32)
    return whole.reshape(param.shape)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that starts at a multiple of 64 bytes: XLA:CPU adopts such memory without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _part_of_stored(param: Param, stored: Stored | None) -> Stored | None:
    """What is the parameter's own. Along the last axis of `Blocks` only floats have parts: others share a block."""
    groups = param.stored_groups
    if stored is None or param.part is None:
        return stored
    if isinstance(stored, Scaled):
        return _part_of_scaled(param, stored)
    if param.part.letter not in (axis.letter for axis in groups[-1]):
        return Blocks(stored.kind, _own_shape(param), lambda: _part(param, stored.read(), groups[:-1]))
    if stored.kind not in FLOATS:
        return None

    def read() -> np.ndarray:
        numbers = stored.read()
        own = _part(param, numbers.view(f"u{numbers.shape[-1] // stored.shape[-1]}"), groups)
        return np.ascontiguousarray(own).view(np.uint8)

    return Blocks(stored.kind, _own_shape(param), read)


def _part_of_scaled(param: Param, stored: Scaled) -> Scaled:
    """The parameter's own numbers, with a scale for each index of the axis unless one serves all of them."""
    assert param.part is not None
    letter, groups, shape = param.part.letter, param.stored_groups, _own_shape(param)
    at = next(i for i, group in enumerate(groups) if letter in (axis.letter for axis in group))
    whole = stored.block[at] >= stored.shape[at]
    indices = _part(param, np.arange(stored.shape[at]), groups[at : at + 1]) // stored.block[at]
    block = (*stored.block[:at], shape[at] if whole else 1, *stored.block[at + 1 :])

    def read() -> ScaledData:
        numbers, scales, zeros = stored.read()
        own = _part(param, numbers, groups)
        if whole:
            return ScaledData(own, scales, zeros)
        return ScaledData(own, scales.take(indices, at), None if zeros is None else zeros.take(indices, at))

    return replace(stored, shape=shape, block=block, read=read)


def _own_shape(param: Param) -> tuple[int, ...]:
    """The shape that the parameter's own part of a tensor has in the checkpoint's axes."""
    return tuple(prod(axis.size for axis in group) for group in param.stored_groups)


def _part(param: Param, stored: np.ndarray, groups: Sequence[Sequence[Axis]]) -> np.ndarray:
    """What is the parameter's own of a stored tensor whose first axes are `groups`; a view wherever numpy can give one.

    So of a mapped file nothing else is read.
    """
    if param.part is None:
        return stored
    rest = stored.shape[len(groups) :]
    axes = [axis for group in groups for axis in group]
    split = stored.reshape(*map(param.stored_size, axes), *rest)
    taken = split[tuple(param.part.of(axis.size) if axis.letter == param.part.letter else slice(None) for axis in axes)]
    return taken.reshape(*(prod(axis.size for axis in group) for group in groups), *rest)


def _arranged(param: Param, stored: np.ndarray) -> np.ndarray:
    stored = _part(param, stored, param.stored_groups)
    values = stored.astype(np.float32) + np.float32(param.offset) if param.offset else stored
    if param.layout is None:
        return values
    sizes: Mapping[str, int] = {letter: size for letter, size in param.dims.sizes.items() if letter in param.layout}
    arranged: np.ndarray = rearrange(values, param.layout, **sizes)
    return arranged


def _aligned(array: np.ndarray) -> np.ndarray:
    return _copied(array, array.dtype)


def _copied(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    copy = empty(array.shape, dtype)
    copy[...] = array
    return copy


def _listing(what: str, names: Iterable[str], *, most: int = 12) -> list[str]:
    names = list(names)
    if not names:
        return []
    count = f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'} {what}:"
    shown = [f"    {name if name.isprintable() else repr(name)}" for name in names[:most]]
    more = [f"    ... and {len(names) - most} more"] if len(names) > most else []
    return ["  " + count, *shown, *more]


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A sort key that puts layer 2 before layer 10."""
    parts = name.split(".")
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)
