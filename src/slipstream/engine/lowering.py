"""What an engine compiles: its functions with their arguments' shapes and shardings. Nothing here needs data.

So a step can be lowered for devices that are not there: a mesh of a topology's devices, `Placement.of_shape` for the
weights, and `Lowering.step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from slipstream.api.sampling import TokenSampling
from slipstream.engine import layouts
from slipstream.engine.memory import KVShape
from slipstream.engine.shapes import Shape
from slipstream.engine.slots import Slots, slot_row
from slipstream.engine.step import DONATED, State, admit, flat_sizes, make_step
from slipstream.kernels.native.memory import untouched_zeros
from slipstream.kernels.ragged import Kernels
from slipstream.models.registry import Family
from slipstream.parallel.spread import whole


class Lowered(NamedTuple):
    """`function()` makes the jitted function, `arguments` are the shapes that it takes; `facts` name it in a cache."""

    kind: str
    function: Callable[[], Any]
    arguments: tuple[Any, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Lowering:
    """A model with its limits, and the mesh that it runs on (None: the default device).

    `config` is the family's, `max_len` the longest sequence. `kv.heads` must be on `mesh`.
    `interpreted`: Pallas interprets the kernels. `own_layouts`: weights are kept as the compiler would have them
    (`engine.layouts`), which needs a mesh.
    """

    family: Family
    config: Any
    kv: KVShape
    max_seqs: int
    max_len: int
    kernels: Kernels
    mesh: Mesh | None = None
    interpreted: bool = False
    own_layouts: bool = False

    @property
    def pages_per_row(self) -> int:
        """Columns of a page table."""
        return -(-self.max_len // self.kv.page_size)

    def step(self, shape: Shape, pages: int, weights: Any) -> Lowered:
        """The step of a shape, for weights (arrays, or their shapes) and a cache of so many pages."""
        state = self.state(pages)
        size = sum(flat_sizes(shape.rows, self.pages_per_row))
        flat = self.everywhere(jax.ShapeDtypeStruct((size,), np.int32))

        def function() -> Any:
            out = self._out(lambda everywhere, state: (state.cache, everywhere, everywhere))
            step = make_step(self.family, self.config, shape, self.kernels, interpreted=self.interpreted)
            # What is read of a compiled step goes by the numbers of its arguments.
            return jax.jit(step, donate_argnums=DONATED, keep_unused=self.own_layouts, **out)

        arguments = (weights, state.cache, state.history, state.wishes, flat)
        described, orders = [shape.tokens, shape.rows], layouts.names(weights)
        return self.lowered("step", function, arguments, shape=described, layouts=orders)

    def admit(self) -> Lowered:
        """The function that fills a slot."""
        state, row = self.state(1), slot_row([], 0, TokenSampling(), self.max_len)
        arguments = (state.history, state.wishes, *self.everywhere((np.int32(0), row)))

        def function() -> Any:
            return jax.jit(admit, donate_argnums=(0, 1), **self._out(lambda everywhere, _: everywhere))

        return self.lowered("admit", function, arguments)

    def empty(self, pages: int) -> Lowered:
        """The function that makes an empty state."""

        def function() -> Any:
            return jax.jit(lambda: self._empty(pages), **self._out(lambda _, state: state))

        return self.lowered("empty", function, (), pages=pages)

    def state(self, pages: int) -> Any:
        """The shapes of a `State`."""
        state = self._shapes(pages)
        return state if self.mesh is None else _placed(state, self._shardings(self.mesh, state))

    def _empty(self, pages: int) -> State:
        if self.kernels == "cpu":
            cache = untouched_zeros(jax.eval_shape(lambda: self.kv.cache(pages, self.kernels)))
        else:
            cache = self.kv.cache(pages, self.kernels)
        return State(cache, *Slots.empty(self.max_seqs + 1, self.max_len).apart())  # the last slot: that of empty rows

    def everywhere(self, tree: Any) -> Any:
        """Shapes of what is whole on every device; as it is without a mesh."""
        if self.mesh is None:
            return tree
        everywhere = whole(self.mesh)
        return _placed(tree, jax.tree.map(lambda _: everywhere, tree))

    def _out(self, results: Callable[[NamedSharding, State], Any]) -> dict[str, Any]:
        """jit's argument for where results are: without a mesh, wherever they come to be.

        `results(everywhere, state)` has the results' structure, made of the shardings of what is whole on every device
        and of a state.
        """
        if self.mesh is None:
            return {}
        return {"out_shardings": results(whole(self.mesh), self._shardings(self.mesh, self._shapes(1)))}

    def _shapes(self, pages: int) -> State:
        shapes: State = jax.eval_shape(lambda: self._empty(pages))
        return shapes

    @staticmethod
    def _shardings(mesh: Mesh, state: State) -> Any:
        everywhere = whole(mesh)
        cache = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state.cache.specs())
        return State(cache, everywhere, jax.tree.map(lambda _: everywhere, state.wishes))  # type: ignore[arg-type]

    def lowered(
        self, kind: str, function: Callable[[], Any], arguments: tuple[Any, ...], **facts: int | list[int] | list[str]
    ) -> Lowered:
        """A function of this model, named by these facts and by what holds for all of them."""
        own = {"family": self.family.name, "config": repr(self.config), "kv": repr(self.kv)}
        own |= {"kernels": self.kernels, "interpreted": str(self.interpreted)}
        limits = {"seqs": self.max_seqs, "length": self.max_len, "mesh": repr(self.mesh)}
        return Lowered(kind, function, arguments, {**own, **limits, **facts})


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where), tree, shardings
    )
