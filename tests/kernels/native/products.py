"""The library's products called with NumPy arrays, and the same computed in float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.kernels.native.random_blocks import dequantized, random_blocks

from slipstream.kernels.native.library import library
from slipstream.kernels.native.pack import PACKINGS, pack

native = library()
assert native is not None, "build the native library first (see CONTRIBUTING.md)"
native.slipstream_isa.restype = ctypes.c_char_p
native.slipstream_packed_bytes.restype = ctypes.c_int64

Floats = NDArray[np.float32]
FLOATS = ("f32", "f16", "bf16", "f8_32", "f8_64", "f8_128")
"""Kinds whose products are float32's, with activations that are not rounded."""
# Rounding of sums in float32, as a share of the sum of the absolute terms.
ROUNDING = 3e-6


@dataclass(frozen=True)
class Matrix:
    kind: str
    out: int
    inputs: int
    packed: NDArray[np.uint8]
    values: NDArray[np.float64]

    @property
    def code(self) -> int:
        return PACKINGS[self.kind].code


@cache
def matrix(kind: str, out: int, inputs: int, seed: int = 0) -> Matrix:
    return _of(kind, random_blocks(np.random.default_rng(seed), kind, out, inputs), inputs)


def constant_matrix(kind: str, bits: int, out: int, inputs: int) -> Matrix:
    """Every byte of every block is `bits`, but the scales in half precision, which are random."""
    return _of(kind, random_blocks(np.random.default_rng(0), kind, out, inputs, bits), inputs)


def _of(kind: str, blocks: NDArray[np.uint8], inputs: int) -> Matrix:
    out = len(blocks)
    values = dequantized(kind, blocks).astype(np.float64).reshape(out, inputs)
    return Matrix(kind, out, inputs, pack(kind, blocks, inputs), values)


def isas() -> list[str]:
    """The instruction sets that this machine can run."""
    names = [name for name in ("portable", "avx2", "avx512") if native.slipstream_set_isa(name.encode()) == 0]
    native.slipstream_set_isa(None)
    return names


def pointer(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def gemm(
    m: Matrix,
    x: Floats,
    *,
    exact: bool,
    norm: Floats | None = None,
    eps: float = 1e-5,
    offset: float = 0.0,
    residual: Floats | None = None,
    y: Floats | None = None,
) -> Floats:
    y = np.full((len(x), m.out), np.nan, np.float32) if y is None else y
    status = native.slipstream_gemm(
        m.code,
        ctypes.c_int64(m.out),
        ctypes.c_int64(m.inputs),
        pointer(m.packed),
        pointer(x),
        ctypes.c_int64(len(x)),
        int(exact),
        pointer(norm),
        ctypes.c_float(eps),
        ctypes.c_float(offset),
        pointer(residual),
        pointer(y),
    )
    assert status == 0
    return y


def gated(
    g: Matrix,
    u: Matrix,
    x: Floats,
    *,
    exact: bool,
    activation: int,
    norm: Floats | None = None,
    eps: float = 1e-5,
    y: Floats | None = None,
) -> Floats:
    y = np.full((len(x), g.out), np.nan, np.float32) if y is None else y
    status = native.slipstream_gated(
        g.code,
        u.code,
        ctypes.c_int64(g.out),
        ctypes.c_int64(g.inputs),
        pointer(g.packed),
        pointer(u.packed),
        pointer(x),
        ctypes.c_int64(len(x)),
        int(exact),
        None if norm is None else pointer(norm),
        ctypes.c_float(eps),
        ctypes.c_float(0),
        activation,
        pointer(y),
    )
    assert status == 0
    return y


def rows(m: Matrix, ids: NDArray[np.int32], scale: float, y: Floats | None = None) -> Floats:
    y = np.full((len(ids), m.inputs), np.nan, np.float32) if y is None else y
    status = native.slipstream_rows(
        m.code,
        ctypes.c_int64(m.out),
        ctypes.c_int64(m.inputs),
        pointer(m.packed),
        pointer(ids),
        ctypes.c_int64(len(ids)),
        ctypes.c_float(scale),
        pointer(y),
    )
    assert status == 0
    return y


def normed(x: Floats, norm: Floats, eps: float, offset: float) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + eps) * (norm.astype(np.float64) + offset)


def bound(m: Matrix, x: NDArray[np.float64], *, exact: bool) -> NDArray[np.float64]:
    """How far a product may be from the true one: the steps of the activations' numbers, and float32's rounding.

    A fast number is half a step off at most. An exact one is as well, or 1.5 steps where its low byte would be -128.
    """
    rounding = ROUNDING * np.abs(x) @ np.abs(m.values).T
    if m.kind in FLOATS:
        return rounding * 3  # inputs are added one by one
    step = np.abs(x).reshape(len(x), -1, 32).max(-1) / (32512 if exact else 127) * (1.5 if exact else 0.5) * 1.001
    weights = np.abs(m.values).reshape(m.out, -1, 32).sum(-1)
    return step @ weights.T + rounding


def activations(seed: int, count: int, inputs: int) -> Floats:
    """Rows like a model's: normal numbers, a few far larger ones, a group of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, inputs)).astype(np.float32)
    x[rng.random(x.shape) < 0.002] *= 200
    if inputs > 64:
        x[:, 32:64] = 0
    return x
