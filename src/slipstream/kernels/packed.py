"""Weights that stay in GGUF's blocks, regrouped for the native CPU kernels, and the products that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from slipstream.kernels.matmul import Activation, gated_product, layer_of, product, products, rows_of
from slipstream.kernels.native.pack import PACKINGS, pack, packed_bytes
from slipstream.spec.param import Param
from slipstream.spec.source import Blocks

Precision = Literal["exact", "fast"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A weight, or a stack of equal ones, as `native.pack` lays it out.

    `data` u8[l, bytes] (l is 1 for a weight without layers). `layer` i32[] says which one this is: a view of one layer
    is the whole stack and a number, since slicing a stack copies it. `out`, `inputs`: letters and sizes of the axes
    that a product keeps and sums over, in the order in which the file stores them. `kind`: GGUF's block type.
    `precision`: how activations are rounded.
    """

    data: Array
    layer: Array
    kind: str = field(metadata={"static": True})
    out: tuple[tuple[str, int], ...] = field(metadata={"static": True})
    inputs: tuple[tuple[str, int], ...] = field(metadata={"static": True})
    precision: Precision = field(metadata={"static": True})

    @property
    def out_size(self) -> int:
        """Rows of the stored matrix."""
        return prod(size for _, size in self.out)

    @property
    def in_size(self) -> int:
        """Columns of the stored matrix."""
        return prod(size for _, size in self.inputs)


@dataclass(frozen=True)
class Packing:
    """How a parameter is packed, known before any data is read. The fields are `Packed`'s; `layers` at least 1."""

    kind: str
    out: tuple[tuple[str, int], ...]
    inputs: tuple[tuple[str, int], ...]
    layers: int

    @property
    def bytes_each(self) -> int:
        """Bytes of one layer."""
        return packed_bytes(self.kind, prod(s for _, s in self.out), prod(s for _, s in self.inputs))

    def abstract(self, precision: Precision) -> Packed:
        """The leaf's shapes, for compiling before there is data."""
        data = jax.ShapeDtypeStruct((self.layers, self.bytes_each), jnp.uint8)
        return Packed(data, jax.ShapeDtypeStruct((), jnp.int32), self.kind, self.out, self.inputs, precision)  # type: ignore[arg-type]

    def fill(self, blocks: Sequence[Blocks], precision: Precision, device: jax.Device) -> Packed:
        """The leaf with the blocks of all layers."""
        data = np.empty((self.layers, self.bytes_each), np.uint8)
        columns = prod(size for _, size in self.inputs)
        for row, one in zip(data, blocks, strict=True):
            row[:] = pack(self.kind, one.read(), columns)
        on_device = jax.device_put(data, device)
        return Packed(on_device, jnp.int32(0), self.kind, self.out, self.inputs, precision)


def packing_of(param: Param, blocks: Sequence[Blocks | None]) -> Packing | None:
    """How to pack a parameter whose tensors are stored as `blocks`; None where it must be dequantized.

    It must be a matrix of a product, stored as [kept axes, summed axes], in one block type that `native.pack` knows.
    """
    kinds = {None if one is None else one.kind.lower() for one in blocks}
    kind = kinds.pop() if len(kinds) == 1 else None
    groups = param.stored_groups
    if kind not in PACKINGS or not param.contract or param.offset or len(groups) != 2:
        return None
    if tuple(axis.role for axis in groups[1]) != param.contract:
        return None
    out, inputs = (tuple((axis.letter, axis.size) for axis in group) for group in groups)
    return Packing(kind, out, inputs, param.layers or 1)


@layer_of.register
def _(leaf: Packed, index: Array | int) -> Packed:
    return replace(leaf, layer=jnp.asarray(index, jnp.int32))


@rows_of.register
def _(table: Packed, ids: Array) -> Array:
    rows = jax.ShapeDtypeStruct((ids.shape[0], table.in_size), jnp.float32)
    call = jax.ffi.ffi_call("slipstream_ffi_rows", rows)
    found: Array = call(
        ids,
        jnp.int32(ids.shape[0]),
        table.data,
        kind=np.int64(PACKINGS[table.kind].code),
        out=np.int64(table.out_size),
        scale=np.float32(1),
    )
    return found


@product.register
def _(w: Packed, eq: str, x: Array, real: Array | None, dtype: DTypeLike) -> Array:
    return _multiply([w], [eq], x, real)[0].astype(dtype)


@products.register(Packed)
def _(ws: Any, eqs: Sequence[str], x: Array, real: Array | None) -> tuple[Array, ...]:
    return tuple(y.astype(x.dtype) for y in _multiply(ws, eqs, x, real))


@gated_product.register(Packed)
def _(gate: Packed, eq: str, x: Array, up: Packed, activation: Activation, real: Array | None) -> Array:
    rows = x.shape[0]
    kept = [_kept(w, eq, x) for w in (gate, up)]
    call = jax.ffi.ffi_call("slipstream_ffi_gated", jax.ShapeDtypeStruct((rows, gate.out_size), jnp.float32))
    y = call(
        _flat(x, gate),
        _absent(),
        gate.layer,
        jnp.int32(rows) if real is None else real,
        gate.data,
        up.data,
        kinds=_codes((gate, up)),
        activation=activation,
        **_rounding(gate),
    )
    return y.reshape(rows, *kept[0]).astype(x.dtype)


def _multiply(ws: Sequence[Packed], eqs: Sequence[str], x: Array, real: Array | None) -> list[Array]:
    """Products of one input with several weights of the same layer and precision, in float32."""
    rows = x.shape[0]
    kept = [_kept(w, eq, x) for w, eq in zip(ws, eqs, strict=True)]
    results = [jax.ShapeDtypeStruct((rows, w.out_size), jnp.float32) for w in ws]
    ys = jax.ffi.ffi_call("slipstream_ffi_gemm", results)(
        _flat(x, ws[0]),
        _absent(),
        _absent(),
        ws[0].layer,
        jnp.int32(rows) if real is None else real,
        *(w.data for w in ws),
        kinds=_codes(ws),
        **_rounding(ws[0]),
    )
    return [y.reshape(rows, *sizes) for y, sizes in zip(ys, kept, strict=True)]


def _kept(w: Packed, eq: str, x: Array) -> tuple[int, ...]:
    """The sizes of the axes that the product keeps of the weight. Raises ValueError for an equation that does not fit.

    x has a row axis and then the summed ones as stored; the result the row axis and then the kept ones.
    """
    operands, result = eq.split("->")
    given, stored = operands.split(",")
    out, inputs = ("".join(letter for letter, _ in axes) for axes in (w.out, w.inputs))
    row = given[0]
    if given != row + inputs or result != row + out or set(stored) != set(out + inputs):
        raise ValueError(f"{eq!r} does not fit a weight that keeps {out} and sums over {inputs}")
    return tuple(size for _, size in w.out)


def _flat(x: Array, w: Packed) -> Array:
    return x.reshape(x.shape[0], w.in_size).astype(jnp.float32)


def _absent() -> Array:
    """An operand that the call does without."""
    return jnp.zeros((0, 0), jnp.float32)


def _codes(ws: Sequence[Packed]) -> np.ndarray:
    return np.array([PACKINGS[w.kind].code for w in ws], np.int64)


def _rounding(w: Packed) -> dict[str, Any]:
    return {"exact": w.precision == "exact", "eps": np.float32(0), "norm_offset": np.float32(0)}
