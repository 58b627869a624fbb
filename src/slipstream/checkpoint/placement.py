"""Where weights go, on a mesh or not, and in what form: arrays of one dtype, small numbers with scales, or packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import slipstream.kernels.quantized  # noqa: F401  It registers the rules of the leaves made here.
from slipstream.checkpoint.assembly import Assembly, OnDevice, Tally
from slipstream.checkpoint.loading import blocks_of, empty
from slipstream.kernels.blocks import as_blocks
from slipstream.kernels.packed import Packed, Packing, Precision, packing_of
from slipstream.kernels.sharded import Sharded
from slipstream.parallel.fit import fitting
from slipstream.parallel.rules import TENSOR_PARALLEL, Rules
from slipstream.parallel.spread import Spread, spread_of
from slipstream.quant.leaf import Form, form_of
from slipstream.spec.param import Param, map_params
from slipstream.spec.source import FLOATS, Scaled, Source, Stored


@dataclass(frozen=True)
class Placement:
    """`native`: keep weights as the file stores them where the kernels know that form; `precision` is theirs.

    `mesh`: the devices that weights are sharded over by `rules`; None: all of them go to `device`. `partial`: an axis
    that they do not divide stays whole on each of them (`parallel.fit.fitting`); else all must fit. `tally` counts what
    is read for those devices that are this process's.
    """

    device: jax.Device
    dtype: np.dtype
    native: bool
    precision: Precision
    mesh: Mesh | None = None
    rules: Rules = field(default_factory=lambda: TENSOR_PARALLEL)
    partial: bool = False
    tally: Tally = field(default_factory=Tally, compare=False)

    def place(self, param: Param, path: str, value: np.ndarray) -> Any:
        """A plain array on the device."""
        return jax.device_put(value.astype(self._dtype(param), copy=False), self.device)

    def place_blocks(self, param: Param, stored: Sequence[Stored | None]) -> Any:
        """A leaf that keeps the numbers as they are stored; None for what must be an array."""
        if packing := self._packing(param, stored):
            data = empty((packing.bounds[-1],), np.dtype(np.uint8))
            packing.pack([one for one in map(as_blocks, stored) if one is not None], data)
            return Packed.of(packing, data, self._precision(param), self.device)
        if form := self._form(param, stored):
            scaled, spread = [one for one in stored if isinstance(one, Scaled)], self._spread(param)
            if spread is None:
                return form.read(scaled, partial(OnDevice, self.device))
            return Sharded(form.read(scaled, partial(Assembly.of, spread, len(param.stack), tally=self.tally)), spread)
        return None

    def place_parts(self, param: Param, tensors: Iterable[np.ndarray]) -> Any:
        """An array on the mesh, of which each device gets its own part; None where there is no mesh."""
        spread = self._spread(param)
        if spread is None:
            return None
        assembly = Assembly.of(spread, len(param.stack), param.shape, self._dtype(param), tally=self.tally)
        for at, tensor in zip(np.ndindex(param.stack), tensors, strict=True):
            assembly.add(at, tensor)
        return self._wrapped(param, assembly.finish(), spread)

    def abstract(self, plan: Any, source: Source) -> Any:
        """The tree that `load` will make, with shapes in place of data."""

        def leaf(param: Param) -> Any:
            stored = blocks_of(param, source)
            if packing := self._packing(param, stored):
                return packing.abstract(self._precision(param))
            if form := self._form(param, stored):
                spread = self._spread(param)
                return form.abstract() if spread is None else Sharded(spread.abstract(form.abstract()), spread)
            return self.of_shape(param)

        return map_params(leaf, plan)

    def of_shape(self, param: Param) -> Any:
        """The leaf of a parameter that is stored in no form of its own, with a shape in place of data.

        `map_params(placement.of_shape, plan)` needs no checkpoint, and no device that could hold it.
        """
        shape, spread = jax.ShapeDtypeStruct(param.shape, self._dtype(param)), self._spread(param)
        return shape if spread is None else self._wrapped(param, spread.abstract(shape), spread)

    def _spread(self, param: Param) -> Spread | None:
        if self.mesh is None:
            return None
        rules = fitting(param, self.mesh.size, self.rules) if self.partial else self.rules
        return spread_of(param, self.mesh, rules)

    @staticmethod
    def _wrapped(param: Param, leaf: Any, spread: Spread) -> Any:
        """What a product or a look-up knows how to compute; biases and norms are arrays in any case."""
        return Sharded(leaf, spread) if param.contract else leaf

    def _dtype(self, param: Param) -> np.dtype:
        return np.dtype(np.float32) if param.wide else self.dtype

    def _precision(self, param: Param) -> Precision:
        """Logits are always exact: no later layer evens out what is rounded there."""
        return "exact" if any(axis.role == "vocab" for axis in param.dims.axes) else self.precision

    def _packing(self, param: Param, stored: Sequence[Stored | None]) -> Packing | None:
        if not self.native:
            return None
        blocks = [as_blocks(one) for one in stored]
        # Floats are multiplied as they are stored, in float32: what another dtype asks for is done by XLA.
        floats = any(one is not None and one.kind in FLOATS for one in blocks)
        return None if floats and self.dtype != np.float32 else packing_of(param, blocks)

    def _form(self, param: Param, stored: Sequence[Stored | None]) -> Form | None:
        # jax 0.10.2 on a CPU refuses committed arrays of 4-bit numbers as arguments of a function that was compiled
        # ahead of time: it takes their layout for another than the function's.
        return form_of(param, stored, self.dtype, narrow=self.device.platform != "cpu")
