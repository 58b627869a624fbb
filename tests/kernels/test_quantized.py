"""Products with quantized leaves on XLA, against the dequantized weight in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from slipstream.kernels.matmul import Around, dot, dots, gated_mlp, is_leaf, layer_of, rows_of
from slipstream.kernels.norm import Norm
from slipstream.kernels.quantized import rounded
from slipstream.quant.leaf import Quantized
from slipstream.quant.scaled import NUMBERS, spread
from slipstream.spec.source import Number, Rounding

RNG = np.random.default_rng(3)
RANGES: dict[Number, tuple[int, int]] = {"int4": (-8, 8), "int8": (-127, 128)}


def leaf(
    number: Number, shape: tuple[int, ...], counts: tuple[int, ...], *, zeros: bool = False,
    rounding: Rounding | None = None, dtype: Any = np.float32,
) -> tuple[Quantized, np.ndarray]:  # fmt: skip
    """A random leaf with `counts` scales along each axis, and its values in float64."""
    if number in RANGES:
        numbers = RNG.integers(*RANGES[number], shape).astype(np.int8).astype(NUMBERS[number])
    else:
        numbers = RNG.normal(0, 2, shape).astype(NUMBERS[number])
    scales = RNG.uniform(0.5, 2, counts).astype(np.float32)
    points = RNG.integers(-8, 8, counts).astype(np.int8) if zeros else None
    block = [size // count for size, count in zip(shape, counts, strict=True)]
    values = numbers.astype(np.float64)
    if points is not None:
        values -= spread(points.astype(np.float64), block, shape)
    values *= spread(scales.astype(np.float64), block, shape)
    on_device = [None if a is None else jnp.asarray(a) for a in (numbers, scales, points)]
    return Quantized(*on_device, rounding, np.dtype(dtype)), values  # type: ignore[arg-type]


EQUATIONS = [
    ("td,df->tf", (64, 24), [(1, 1), (1, 24), (2, 24), (2, 3), (64, 1)]),
    ("td,dnh->tnh", (64, 6, 8), [(1, 1, 1), (1, 6, 8), (1, 3, 1), (2, 6, 8), (2, 3, 1)]),
    ("tnh,nhd->td", (4, 16, 24), [(1, 1, 24), (2, 1, 24), (4, 2, 24), (1, 1, 1)]),
    ("rd,vd->rv", (40, 64), [(40, 1), (40, 4), (1, 1)]),
    ("etd,edf->etf", (3, 64, 24), [(3, 1, 24), (1, 1, 1), (3, 2, 24)]),
    ("td,edf->tef", (3, 64, 24), [(3, 1, 24), (3, 2, 24)]),
]


@pytest.mark.parametrize(("eq", "shape", "counts"), [(e, s, c) for e, s, many in EQUATIONS for c in many])
def test_a_product_equals_the_dequantized_one(eq: str, shape: tuple[int, ...], counts: tuple[int, ...]) -> None:
    """float32 within 1e-5 of the largest result, bfloat16 within 1%."""
    sizes = dict(zip(eq.split(",")[1].split("->")[0], shape, strict=True)) | {"t": 5, "r": 5}
    x = RNG.normal(size=[sizes[letter] for letter in eq.split(",")[0]]).astype(np.float32)
    for number, zeros in (("int8", False), ("int4", True), ("fp8_e4m3", False), ("fp4_e2m1", False)):
        w, values = leaf(number, shape, counts, zeros=zeros)
        want = np.einsum(eq, x.astype(np.float64), values)
        got = dot(eq, jnp.asarray(x), w)
        assert got.dtype == jnp.float32
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    rough = dot(eq, jnp.asarray(x, jnp.bfloat16), w)
    assert rough.dtype == jnp.bfloat16
    assert np.abs(rough.astype(jnp.float32) - want).max() < 1e-2 * np.abs(want).max()


@pytest.mark.parametrize(("number", "to"), [("int8", "int8"), ("int4", "int8"), ("fp8_e4m3", "fp8_e4m3")])
def test_inputs_in_8_bits(number: Number, to: Rounding) -> None:
    """Equal to the product of what the inputs are rounded to: a scale for each token, the largest number the end."""
    for eq, shape, counts in (("td,dnh->tnh", (64, 6, 8), (1, 6, 8)), ("tnh,nhd->td", (4, 16, 24), (1, 1, 24))):
        w, values = leaf(number, shape, counts, rounding=to)
        x = RNG.normal(size=(5, 64)).astype(np.float32)
        x[3] = 0
        steps = np.abs(x).max(1, keepdims=True) / {"int8": 127, "fp8_e4m3": 448}[to]
        steps[3] = 1
        scaled = x / steps
        numbers = scaled.round() if to == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        given = (numbers.astype(np.float64) * steps).reshape(5, *shape[: eq.index(",") - 1])
        want = np.einsum(eq, given, values)
        got = np.asarray(dot(eq, jnp.asarray(x).reshape(given.shape), w))
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
        assert not got[3].any()
        assert 1e-3 < np.abs(np.einsum(eq, x.reshape(given.shape), values) - want).max() / np.abs(want).max() < 0.1


def test_inputs_are_rounded_only_where_a_sum_has_one_scale() -> None:
    w, values = leaf("int8", (64, 24), (2, 24), rounding="int8")
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    want = x @ values
    assert np.abs(dot("td,df->tf", jnp.asarray(x), w) - want).max() < 1e-5 * np.abs(want).max()


def test_rounding_of_halves_and_ends() -> None:
    numbers, steps = rounded(jnp.asarray([[254.0, 1.0, 3.0, -254.0, -1.0]]), "int8", [1])
    assert np.asarray(numbers).tolist() == [[127, 0, 2, -127, 0]]
    assert float(steps[0, 0]) == 2


def test_one_layer_of_a_stack() -> None:
    w, values = leaf("int4", (3, 64, 24), (3, 2, 24), zeros=True)
    assert is_leaf(w)
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    run = jax.jit(lambda x, w, i: dot("td,df->tf", x, layer_of(w, i)))
    for layer in range(3):
        want = x @ values[layer]
        assert np.abs(run(x, w, layer) - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("counts", [(40, 1), (40, 4), (5, 4), (1, 1)])
def test_rows_of_a_table(counts: tuple[int, int]) -> None:
    table, values = leaf("int8", (40, 64), counts, zeros=True, dtype=ml_dtypes.bfloat16)
    ids = jnp.asarray([0, 39, 7, 7], jnp.int32)
    rows = rows_of(table, ids)
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_allclose(rows.astype(jnp.float32), values[np.asarray(ids)], rtol=2**-8)


def test_what_stands_around_a_product() -> None:
    """Norm before, norm after, residual; several weights of one input; a whole feed-forward."""
    weight, x = jnp.asarray(RNG.uniform(0.5, 1.5, 64), jnp.float32), jnp.asarray(RNG.normal(size=(5, 64)), jnp.float32)
    around = Around(Norm(weight, 1e-5), add=x)
    gate, opened = leaf("int8", (64, 24), (1, 24))
    up, other = leaf("int8", (64, 24), (1, 24))
    down, back = leaf("int4", (24, 64), (2, 64))
    plain = [jnp.asarray(values, jnp.float32) for values in (opened, other, back)]
    scale = np.float32(1 / 2000)  # results of such weights are large: keep the activation's argument small

    def close(got: jax.Array, want: jax.Array) -> bool:
        return float(jnp.abs(got - want).max()) < 1e-4 * float(jnp.abs(want).max())

    before = Around(Norm(weight * scale, 1e-5))
    for got, want in zip(dots(("td,df->tf",) * 2, x, (gate, up), before),
                         dots(("td,df->tf",) * 2, x, plain[:2], before), strict=True):  # fmt: skip
        assert close(got, want)
    small = Around(Norm(weight * scale, 1e-5), add=x)
    assert close(gated_mlp(x, gate, up, down, "silu", small), gated_mlp(x, *plain, "silu", small))
    square, values = leaf("int4", (64, 64), (1, 64))
    assert close(dot("td,df->tf", x, square, around), dot("td,df->tf", x, jnp.asarray(values, jnp.float32), around))
