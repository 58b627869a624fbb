"""Where weights go and in what form: plain arrays of one dtype, or packed for the native CPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from slipstream.checkpoint.loading import blocks_of, empty
from slipstream.kernels.packed import Packed, Packing, Precision, packing_of
from slipstream.spec.param import Param, map_params
from slipstream.spec.source import FLOATS, Blocks, Source


@dataclass(frozen=True)
class Placement:
    """`native`: keep weights as the file stores them where the kernels know that form; `precision` is theirs."""

    device: jax.Device
    dtype: np.dtype
    native: bool
    precision: Precision

    def place(self, param: Param, path: str, value: np.ndarray) -> Any:
        """A plain array on the device."""
        return jax.device_put(value.astype(self._dtype(param), copy=False), self.device)

    def place_blocks(self, param: Param, blocks: Sequence[Blocks | None]) -> Any:
        """A packed leaf; None for what must be an array."""
        packing = self._packing(param, blocks)
        if packing is None:
            return None
        data = empty((packing.bounds[-1],), np.dtype(np.uint8))
        packing.pack([one for one in blocks if one is not None], data)
        return Packed.of(packing, data, self._precision(param), self.device)

    def abstract(self, plan: Any, source: Source) -> Any:
        """The tree that `load` will make, with shapes in place of data."""

        def leaf(param: Param) -> Any:
            packing = self._packing(param, blocks_of(param, source))
            if packing is None:
                return jax.ShapeDtypeStruct(param.shape, self._dtype(param))
            return packing.abstract(self._precision(param))

        return map_params(leaf, plan)

    def _dtype(self, param: Param) -> np.dtype:
        return np.dtype(np.float32) if param.wide else self.dtype

    def _precision(self, param: Param) -> Precision:
        """Logits are always exact: no later layer evens out what is rounded there."""
        return "exact" if any(axis.role == "vocab" for axis in param.dims.axes) else self.precision

    def _packing(self, param: Param, blocks: Sequence[Blocks | None]) -> Packing | None:
        # Floats are multiplied as they are stored, in float32: what another dtype asks for is done by XLA.
        floats = any(one is not None and one.kind in FLOATS for one in blocks)
        if not self.native or (floats and self.dtype != np.float32):
            return None
        return packing_of(param, blocks)
