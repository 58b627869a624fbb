"""Weights in the order of axes that a compiled step works with: in another one it would begin with copying them.

A TPU's compiler lays out a parameter so that it takes little memory: of [50272, 2880] the first axis comes last, as 128
does not divide 2880. Where the step wants it otherwise, it copies the whole weight each time. So a step is compiled,
and what it copies tells which order it would rather have. Tiles are not ours to choose: XLA refuses all but its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental.layout import Format, Layout

_PARAMETER = re.compile(r"%(\S+) = (\w+\[[\d,]*\])\{([^}]*)\} parameter\((\d+)\)")
# An asynchronous copy says what it is in its name or its type; its last result is the copy.
_COPY = re.compile(r"= (.+?) (?:copy|copy-start|call-start|async-start)\(%([^\s,)]+)")
_ARRAY = re.compile(r"(\w+\[[\d,]*\])\{([^}]*)\}")


def copied(text: str) -> dict[str, str]:
    """Parameters of an optimized HLO module that it copies into another order of axes: number -> the copy's type.

    Such as bf16[50272,2880]{1,0}, the last axis first.
    """
    entry = text[text.index("\nENTRY ") :]
    held = {found[1]: (found[2], found[3].split(":")[0], found[4]) for found in _PARAMETER.finditer(entry)}
    wanted: dict[str, str] = {}
    for line in entry.splitlines():
        found = _COPY.search(line)
        if found is None or found[2] not in held or not ("copy" in line or "data-format" in line):
            continue
        shape, order, number = held[found[2]]
        for other, layout in _ARRAY.findall(found[1]):
            if other == shape and layout.split(":")[0] != order:
                wanted[number] = f"{shape}{{{layout.split(':')[0]}}}"
    return wanted


def read_copied(compiled: jax.stages.Compiled) -> dict[str, str]:
    """The same of a compiled function."""
    return copied(compiled.as_text() or "\nENTRY ")


def asked(weights: Any, wanted: Mapping[str, str]) -> Any:
    """Shapes of weights, the first parameters of a step, in the orders that it copies them into.

    Raises ValueError where a parameter is another one than the weight of its number.
    """
    leaves, tree = jax.tree.flatten(weights)
    for number, text in wanted.items():
        place = int(number)
        if place < len(leaves):
            leaves[place] = _in_layout(leaves[place], text)
    return jax.tree.unflatten(tree, leaves)


def names(weights: Any) -> list[str]:
    """The orders of shapes of weights, for a name in a cache; empty where none is set."""
    leaves = jax.tree.leaves(weights)
    layouts = [leaf.format.layout if isinstance(leaf, jax.ShapeDtypeStruct) else None for leaf in leaves]
    return [] if all(layout is None for layout in layouts) else list(map(str, layouts))


def laid_out(weights: Any, wanted: Any) -> Any:
    """Weights in the orders of the shapes `wanted`. An array that is copied is given up, one after the other.

    So what is needed beside the weights is the memory of the largest.
    """

    def one(array: Any, want: Any) -> jax.Array:
        layout = want.format.layout
        if layout is None or layout.major_to_minor == array.format.layout.major_to_minor:
            return array
        moved: jax.Array = jax.block_until_ready(jax.device_put(array, want.format))
        array.delete()
        return moved

    return jax.tree.map(one, weights, wanted)


def _in_layout(leaf: Any, text: str) -> jax.ShapeDtypeStruct:
    [(shape, order)] = _ARRAY.findall(text)
    sizes = tuple(map(int, filter(None, shape[shape.index("[") + 1 : -1].split(","))))
    own = leaf.sharding.shard_shape(leaf.shape)
    if sizes != own:
        raise ValueError(f"a step's parameter has the shape {sizes}, and the weight of its number {own}")
    layout = Layout(tuple(int(axis) for axis in reversed(order.split(","))))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=Format(layout, leaf.sharding))
