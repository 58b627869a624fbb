"""How one weight, or a cache's heads, lie on a mesh: what rules make of named axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slipstream.errors import ConfigError
from slipstream.parallel.rules import GATHERED, TOKENS, Rules, assigned
from slipstream.spec.param import Param

MeshAxes = tuple[str, ...]


@dataclass(frozen=True)
class Spread:
    """The axes of a weight, without that of its layers, on a mesh.

    `axes`: for each axis those of the mesh, () where it is whole on every device. `sizes`: theirs, as the model has
    them; `padded` is the shape on the devices. `tokens`: the mesh's axes that activations' tokens lie on between
    products. `gathered`: results of products are wanted whole on every device.
    """

    mesh: Mesh
    axes: tuple[MeshAxes, ...]
    sizes: tuple[int, ...]
    tokens: MeshAxes = ()
    gathered: bool = False

    @property
    def sharded(self) -> bool:
        """Whether any axis is on more than one device."""
        return any(self.ways(axes) > 1 for axes in self.axes)

    @property
    def padded(self) -> tuple[int, ...]:
        """The sizes, each filled up to what divides."""
        return tuple(
            -(-size // self.ways(axes)) * self.ways(axes) for size, axes in zip(self.sizes, self.axes, strict=True)
        )

    def ways(self, axes: MeshAxes) -> int:
        """Into how many parts axes of the mesh cut."""
        return prod(self.mesh.shape[axis] for axis in axes)

    def spec(self, shape: Sequence[int]) -> PartitionSpec:
        """For an array of `shape` with these axes, after those of layers if there are any.

        Arrays beside the values have the same axes, shorter: scales of blocks. Where one number serves a whole axis it
        is on every device.
        """
        layers = len(shape) - len(self.axes)
        own = (axes if size > 1 else () for size, axes in zip(shape[layers:], self.axes, strict=True))
        return spec_of(*((),) * layers, *own)

    def specs(self, leaf: Any) -> Any:
        """The same for each array of a leaf."""
        return jax.tree.map(lambda array: self.spec(array.shape), leaf)

    def sharding(self, shape: Sequence[int]) -> NamedSharding:
        """`spec` on the mesh."""
        return NamedSharding(self.mesh, self.spec(shape))

    def filled(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape on the devices of an array that the model has with `shape`, filled up to what divides.

        Raises ConfigError for numbers of blocks that do not.
        """
        layers = len(shape) - len(self.axes)
        sizes = []
        for count, size, padded, axes in zip(shape[layers:], self.sizes, self.padded, self.axes, strict=True):
            if count not in (1, size) and (count % self.ways(axes) or padded != size):
                raise ConfigError(
                    f"a weight of size {size} has {count} quantized blocks, which {self.ways(axes)} devices cannot "
                    "share evenly: lower --tp"
                )
            sizes.append(padded if count == size else count)
        return (*shape[:layers], *sizes)

    def abstract(self, leaf: Any) -> Any:
        """A leaf of shapes, of the model's sizes, as it is on the devices."""

        def one(array: Any) -> jax.ShapeDtypeStruct:
            shape = self.filled(array.shape)
            return jax.ShapeDtypeStruct(shape, array.dtype, sharding=self.sharding(shape))

        return jax.tree.map(one, leaf)

    def constrain(self, x: Array, *axes: MeshAxes) -> Array:
        """`x` laid out so, an entry for each of its axes."""
        laid_out: Array = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec_of(*axes)))
        return laid_out


@dataclass(frozen=True)
class Heads:
    """Where attention's heads lie: axes of the mesh for those of queries, and of keys and values."""

    mesh: Mesh
    queries: MeshAxes
    kv: MeshAxes

    @property
    def kv_ways(self) -> int:
        """Into how many parts the key/value heads are cut."""
        return prod(self.mesh.shape[axis] for axis in self.kv)


def spec_of(*axes: MeshAxes) -> PartitionSpec:
    """The PartitionSpec with these mesh axes."""
    return PartitionSpec(*(names or None for names in axes))


def spread_of(param: Param, mesh: Mesh, rules: Rules) -> Spread:
    """How a parameter lies on a mesh. Its sizes must fit (see `fit.check_fit`)."""
    roles = [axis.role for axis in param.axes]
    # Only a product or a table knows what to do with indices that the model has not, and a bias of what was gathered is
    # added to all of it.
    left = GATHERED if not param.contract else frozenset()
    taken = {role: axes for role, axes in assigned(roles, rules).items() if role not in left}
    return Spread(
        mesh,
        tuple(taken.get(role, ()) for role in roles),
        tuple(axis.size for axis in param.axes),
        rules.get(TOKENS, ()),
        not GATHERED.isdisjoint(roles),
    )


def heads_of(mesh: Mesh, rules: Rules) -> Heads:
    """How attention lies on a mesh."""
    return Heads(mesh, rules.get("heads", ()), rules.get("kv_heads", ()))


def whole(mesh: Mesh) -> NamedSharding:
    """Everything on every device."""
    return NamedSharding(mesh, PartitionSpec())
