"""Weights as their file stores them, in blocks or floats, regrouped for the native CPU kernels, and their products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from slipstream.kernels.matmul import Activation, Around, gated_product, layer_of, products, rows_of
from slipstream.kernels.native.pack import PACKINGS, pack, packed_bytes
from slipstream.kernels.norm import Norm
from slipstream.spec.param import Param
from slipstream.spec.source import Blocks

Precision = Literal["exact", "fast"]
Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Packing:
    """How a weight, or a stack of them, is packed; known before any data is read.

    `kinds`: GGUF's block type of each matrix: one a layer, or one for each expert of each layer. `out`, `inputs`:
    letters and sizes of the axes that a product keeps and sums over, in the order in which the file stores them.
    `strides`: for each leading axis (layers, experts), how many matrices on its next member begins.
    """

    kinds: tuple[str, ...]
    out: Axes
    inputs: Axes
    strides: tuple[int, ...] = (1,)

    @property
    def out_size(self) -> int:
        """Rows of the stored matrix."""
        return prod(size for _, size in self.out)

    @property
    def in_size(self) -> int:
        """Columns of the stored matrix."""
        return prod(size for _, size in self.inputs)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each layer's bytes start, and at last where they all end."""
        sizes = (packed_bytes(kind, self.out_size, self.in_size) for kind in self.kinds)
        return tuple(accumulate(sizes, initial=0))

    def abstract(self, precision: Precision) -> Packed:
        """The leaf's shapes, for compiling before there is data."""
        data = jax.ShapeDtypeStruct((self.bounds[-1],), jnp.uint8)
        return Packed(data, None, self, precision, self.strides)  # type: ignore[arg-type]

    def pack(self, blocks: Sequence[Blocks], data: np.ndarray) -> None:
        """Pack the blocks of all matrices into `data`, uint8 [bounds[-1]]."""
        for start, one in zip(self.bounds, blocks, strict=False):
            packed = pack(one.kind.lower(), one.read().reshape(self.out_size, -1), self.in_size)
            data[start : start + packed.size] = packed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A weight, or a stack of them, as `native.pack` lays it out.

    `data` u8[bytes]: one matrix after the other. `layer` i32[] says which one this is: a view of one layer is the whole
    stack and a number, since slicing a stack copies it. None: the first; a step is then not handed a number for each
    weight. `precision`: how activations are rounded. `strides`: those of the packing whose axes no index was taken of
    yet.
    """

    data: Array
    layer: Array | None
    packing: Packing = field(metadata={"static": True})
    precision: Precision = field(metadata={"static": True})
    strides: tuple[int, ...] = field(metadata={"static": True}, default=(1,))

    @classmethod
    def of(cls, packing: Packing, data: np.ndarray, precision: Precision, device: jax.Device) -> Packed:
        """The leaf on a device, of the bytes that `Packing.pack` made."""
        return cls(jax.device_put(data, device), None, packing, precision, packing.strides)


def packing_of(param: Param, blocks: Sequence[Blocks | None]) -> Packing | None:
    """How to pack a parameter whose tensors are stored as `blocks`; None where it must be dequantized.

    It must be a matrix of a product, stored as [kept axes, summed axes], in block types that `native.pack` knows.
    Layers may differ in type: files mix them by what each layer can bear.
    """
    kinds = tuple(one.kind.lower() for one in blocks if one is not None)
    groups = param.stored_groups
    if len(kinds) < len(blocks) or not PACKINGS.keys() >= set(kinds):
        return None
    if not param.contract or param.offset or len(groups) != 2:
        return None
    if tuple(axis.role for axis in groups[1]) != param.contract:
        return None
    out, inputs = (tuple((axis.letter, axis.size) for axis in group) for group in groups)
    strides = tuple(prod(param.stack[axis + 1 :]) for axis in range(len(param.stack)))
    return Packing(kinds, out, inputs, strides or (1,))


def any_packed(weights: Any) -> bool:
    """Whether a tree of weights, or of their shapes, has a packed leaf."""
    leaves = jax.tree.leaves(weights, is_leaf=lambda leaf: isinstance(leaf, Packed))
    return any(isinstance(leaf, Packed) for leaf in leaves)


@layer_of.register
def _(leaf: Packed, index: Array | int) -> Packed:
    stride, *others = leaf.strides
    at = jnp.asarray(index, jnp.int32)
    at = at if stride == 1 else at * stride
    return replace(leaf, layer=at if leaf.layer is None else leaf.layer + at, strides=tuple(others))


@rows_of.register
def _(table: Packed, ids: Array) -> Array:
    rows = jax.ShapeDtypeStruct((ids.shape[0], table.packing.in_size), jnp.float32)
    call = jax.ffi.ffi_call("slipstream_ffi_rows", rows)
    count, out = jnp.int32(ids.shape[0]), np.int64(table.packing.out_size)
    found: Array = call(ids, count, table.data, out=out, scale=np.float32(1), **_where([table]))
    return found


@products.register(Packed)
def _(ws: Sequence[Packed], eqs: Sequence[str], x: Array, around: Around, dtype: DTypeLike) -> tuple[Array, ...]:
    kept = [_kept(w.packing, eq) for w, eq in zip(ws, eqs, strict=True)]
    results = [jax.ShapeDtypeStruct((x.shape[0], w.packing.out_size), jnp.float32) for w in ws]
    ys = jax.ffi.ffi_call("slipstream_ffi_gemm", results)(
        *_operands(x, ws, around), **_where(ws), **_how(ws[0].precision, around)
    )
    return tuple(y.reshape(x.shape[0], *sizes).astype(dtype) for y, sizes in zip(ys, kept, strict=True))


@gated_product.register(Packed)
def _(gate: Packed, x: Array, up: Packed, down: Packed, activation: Activation, around: Around) -> Array:
    ws = (gate, up, down)
    result = jax.ShapeDtypeStruct((x.shape[0], down.packing.out_size), jnp.float32)
    y: Array = jax.ffi.ffi_call("slipstream_ffi_mlp", result)(
        *_operands(x, ws, around),
        hidden=np.int64(gate.packing.out_size),
        activation=activation,
        **_where(ws),
        **_how(gate.precision, around),
    )
    return y.astype(x.dtype)


def _kept(packing: Packing, eq: str) -> tuple[int, ...]:
    """The sizes of the axes that the product keeps of the weight. Raises ValueError for an equation that does not fit.

    x has a row axis and then the summed ones as stored; the result the row axis and then the kept ones.
    """
    operands, result = eq.split("->")
    given, stored = operands.split(",")
    out, inputs = ("".join(letter for letter, _ in axes) for axes in (packing.out, packing.inputs))
    row = given[0]
    if given != row + inputs or result != row + out or set(stored) != set(out + inputs):
        raise ValueError(f"{eq!r} does not fit a weight that keeps {out} and sums over {inputs}")
    return tuple(size for _, size in packing.out)


def _operands(x: Array, ws: Sequence[Packed], around: Around) -> list[Array]:
    """What the handlers of products take: see ffi_gemm.cc. All weights are of the same layer."""
    rows = x.shape[0]
    return [
        x.reshape(rows, ws[0].packing.in_size).astype(jnp.float32),
        _weight(around.norm),
        _weight(around.after),
        jnp.zeros((0, 0), jnp.float32) if around.add is None else around.add.astype(jnp.float32),
        jnp.int32(0) if ws[0].layer is None else ws[0].layer,
        jnp.int32(rows) if around.real is None else around.real,
        *(w.data for w in ws),
    ]


def _weight(norm: Norm | None) -> Array:
    """A norm's weight, as the operand of a call that may do without."""
    return jnp.zeros(0, jnp.float32) if norm is None else norm.weight.astype(jnp.float32)


def _where(ws: Sequence[Packed]) -> dict[str, np.ndarray]:
    """The kind of each layer of each weight, and where its bytes start: i64[weights * layers]."""
    return {
        "kinds": np.array([PACKINGS[kind].code for w in ws for kind in w.packing.kinds], np.int64),
        "starts": np.array([start for w in ws for start in w.packing.bounds[:-1]], np.int64),
    }


def _how(precision: Precision, around: Around) -> dict[str, Any]:
    """The numbers that go with `_operands`."""
    norms = {"norm": around.norm, "after": around.after}
    eps = {f"{name}_eps": np.float32(norm.eps if norm else 0) for name, norm in norms.items()}
    offsets = {f"{name}_offset": np.float32(norm.offset if norm else 0) for name, norm in norms.items()}
    return {"exact": precision == "exact", **eps, **offsets}
