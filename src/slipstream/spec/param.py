"""The plan: one tree, shaped like the weights, whose leaves say everything about a weight once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any, Literal, TypeVar


@dataclass(frozen=True)
class Axis:
    """One named axis of a weight: `role` is what placements and quantization speak of, `letter` what layouts do."""

    role: str
    letter: str
    size: int

    def __or__(self, other: Axis | Dims) -> Dims:
        return Dims((self,)) | other


@dataclass(frozen=True)
class Dims:
    """The axes of a weight, outermost first: `D | N | H`."""

    axes: tuple[Axis, ...]

    def __or__(self, other: Axis | Dims) -> Dims:
        return Dims(self.axes + (other.axes if isinstance(other, Dims) else (other,)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, in order."""
        return tuple(axis.size for axis in self.axes)

    @property
    def sizes(self) -> dict[str, int]:
        """Letter -> size, as einops takes them."""
        return {axis.letter: axis.size for axis in self.axes}


@dataclass(frozen=True)
class Part:
    """Which indices of a longer stored axis a weight is, where a checkpoint keeps several weights in one tensor.

    Along the axis `letter` of the weight's layout the checkpoint has `whole` indices; the weight's own are `start`,
    `start + step` and so on, as many as the axis has. Heads 4 and 5 of 8 are Part("k", 4, 8); columns that alternate
    with another weight's are Part("f", 0, 2 * f, step=2).
    """

    letter: str
    start: int
    whole: int
    step: int = 1

    def of(self, size: int) -> slice:
        """The indices, for an axis of `size`. Raises ValueError where the stored axis does not have them all."""
        last = self.start + self.step * (size - 1)
        if self.start < 0 or self.step < 1 or last >= self.whole:
            raise ValueError(f"{size} indices {self} pass the end of the stored axis")
        return slice(self.start, last + 1, self.step)


Init = Literal["normal", "ones", "zeros"]


@dataclass(frozen=True)
class Param:
    """A leaf of a plan.

    `dims`: the axes of the weight as the forward sees it. `names`: its tensor's name in a Hugging Face checkpoint, one
    for each layer when `layers` is set (the weight then has a leading layer axis). `each`: an axis before those of
    `dims` whose every member is a tensor of its own (experts): `names` has them all, a layer's members together.
    `layout`: an einops pattern from the checkpoint's axes to ours (letters are those of `dims`), None where they are
    the same. `contract`: roles that a product sums over (quantization groups along them). `init`: how tests and random
    models fill it. `offset`: added after reading (Gemma's norms are stored as w - 1). `part`: set where the tensor
    holds other weights too. `wide`: it stays float32 in an engine of any type, as what decides between experts must.
    """

    dims: Dims
    names: tuple[str, ...]
    layout: str | None = None
    contract: tuple[str, ...] = ()
    init: Init = "normal"
    layers: int | None = None
    offset: float = 0.0
    part: Part | None = None
    each: Axis | None = None
    wide: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, with the leading axes of layers and of members if it has them."""
        return (*self.stack, *self.dims.shape)

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the leading axes over which tensors of the checkpoint are stacked: layers, then members."""
        layers = () if self.layers is None else (self.layers,)
        return layers if self.each is None else (*layers, self.each.size)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of `shape` by their roles, all but that of the layers."""
        return self.dims.axes if self.each is None else (self.each, *self.dims.axes)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def stored_groups(self) -> tuple[tuple[Axis, ...], ...]:
        """Our axes in the order of the checkpoint's tensor; several of ours may be one of its."""
        if self.layout is None:
            return tuple((axis,) for axis in self.dims.axes)
        axes = {axis.letter: axis for axis in self.dims.axes}
        stored: list[tuple[Axis, ...]] = []
        group: list[Axis] | None = None
        for token in self.layout.split("->")[0].replace("(", " ( ").replace(")", " ) ").split():
            if token == "(":
                group = []
            elif token == ")":
                stored.append(tuple(group or ()))
                group = None
            elif group is None:
                stored.append(() if token == "1" else (axes[token],))
            else:
                group.append(axes[token])
        return tuple(stored)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape that the tensor of one name must have in the checkpoint."""
        return tuple(prod(map(self.stored_size, group)) for group in self.stored_groups)

    def stored_size(self, axis: Axis) -> int:
        """How many indices the checkpoint's tensor has along one of our axes."""
        return self.part.whole if self.part and self.part.letter == axis.letter else axis.size


def param(
    dims: Dims | Axis,
    name: str,
    layout: str | None = None,
    *,
    contract: tuple[str, ...] = (),
    init: Init = "normal",
    offset: float = 0.0,
    part: Part | None = None,
    each: Axis | None = None,
    wide: bool = False,
) -> Param:
    """A `Param` of one tensor, or of a part of one, or of a tensor for each member of `each`.

    `dims` may be a single axis. A member's number stands in `name` for {}.
    """
    names = (name,) if each is None else tuple(name.format(member) for member in range(each.size))
    dims = dims if isinstance(dims, Dims) else Dims((dims,))
    return Param(dims, names, layout, contract, init, None, offset, part, each, wide)


Tree = TypeVar("Tree")


def stacked(layers: int | Sequence[int], plan: Callable[[str], Tree], prefix: str = "model.layers.{}.") -> Tree:
    """The plan of equal layers, so many or those of these numbers, as one tree whose leaves have a leading layer axis.

    `plan(at)` is called with each layer's name prefix; all layers must give the same shapes.
    """
    numbers = range(layers) if isinstance(layers, int) else layers
    plans = [plan(prefix.format(i)) for i in numbers]

    def merge(*leaves: Param) -> Param:
        one = leaves[0]
        if any(replace(leaf, names=one.names) != one for leaf in leaves):
            raise ValueError(f"layers differ and cannot be stacked: {one.names[0]}")
        return replace(one, names=tuple(name for leaf in leaves for name in leaf.names), layers=len(numbers))

    merged: Tree = map_params(merge, *plans)
    return merged


def map_params(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply `function` to the `Param` leaves of equally shaped plans (dataclasses, tuples; None stays None)."""
    first = trees[0]
    if isinstance(first, Param):
        return function(*trees)
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(map_params(function, *members) for members in zip(*trees, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        mapped = {f.name: map_params(function, *(getattr(t, f.name) for t in trees)) for f in fields(first)}
        return type(first)(**mapped)
    raise TypeError(f"a plan holds Params, dataclasses, tuples and None, not {type(first).__name__}")


def params(tree: Any, path: str = "") -> Iterator[tuple[str, Param]]:
    """All leaves of a plan with their dotted paths, in field order. A member of a tuple is named by its number."""
    if isinstance(tree, Param):
        yield path, tree
    elif tree is not None:
        named = enumerate(tree) if isinstance(tree, tuple) else ((f.name, getattr(tree, f.name)) for f in fields(tree))
        for name, member in named:
            yield from params(member, f"{path}.{name}" if path else str(name))
