"""Products against float64, for every kind of weight and every instruction set; and bit equality in any batch."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.kernels.native.products import (
    FLOATS,
    activations,
    bound,
    constant_matrix,
    gated,
    gemm,
    isas,
    matrix,
    native,
    normed,
    pointer,
    rows,
)

from slipstream.kernels.native.pack import PACKINGS

KINDS = tuple(PACKINGS)
SMALL = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert native.slipstream_set_isa(request.param.encode()) == 0
    yield request.param
    native.slipstream_set_isa(None)


@pytest.fixture
def thread_count() -> Iterator[None]:
    yield
    native.slipstream_set_threads(0)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_within_their_bound(isa: str, kind: str, exact: bool) -> None:
    for count, out, inputs in ((1, 48, 512), (2, 16, 256), (3, 40, 256), (4, 7, 768), (5, 33, 256), (29, 100, 512)):
        m, x = matrix(kind, out, inputs), activations(count, count, inputs)
        true = x.astype(np.float64) @ m.values.T
        error = np.abs(gemm(m, x, exact=exact) - true)
        assert (error <= bound(m, x.astype(np.float64), exact=exact)).all(), (count, out, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_of_the_size_that_the_precision_promises(isa: str, kind: str) -> None:
    m, x = matrix(kind, 64, 1024), np.random.default_rng(1).standard_normal((16, 1024)).astype(np.float32)
    true = x.astype(np.float64) @ m.values.T
    relative = {e: np.sqrt(np.mean((gemm(m, x, exact=e) - true) ** 2) / np.mean(true**2)) for e in (True, False)}
    assert relative[True] < 3e-5
    assert relative[False] < (1e-5 if kind in FLOATS else 8e-3)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("inputs", [32, 96, 576])
def test_any_number_of_groups(isa: str, kind: str, inputs: int) -> None:
    m, x = matrix(kind, 24, inputs), activations(0, 14, inputs)
    error = np.abs(gemm(m, x, exact=True) - x.astype(np.float64) @ m.values.T)
    assert (error <= bound(m, x.astype(np.float64), exact=True)).all()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("inputs", [1, 17, 100])
def test_float_weights_take_any_number_of_inputs(isa: str, kind: str, inputs: int) -> None:
    m, x = matrix(kind, 19, inputs), activations(0, 15, inputs)
    norm = np.random.default_rng(0).standard_normal(inputs).astype(np.float32)
    wide = normed(x, norm, 1e-5, 0.0)
    error = np.abs(gemm(m, x, exact=True, norm=norm) - wide @ m.values.T)
    assert (error <= bound(m, wide, exact=True)).all()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_and_residual(isa: str, offset: float) -> None:
    m, x = matrix("q4_1", 48, 576), activations(3, 13, 576)
    rng = np.random.default_rng(0)
    norm, residual = rng.standard_normal(576).astype(np.float32), rng.standard_normal((13, 48)).astype(np.float32)
    wide = normed(x, norm, 1e-5, offset)
    y = gemm(m, x, exact=True, norm=norm, offset=offset, residual=residual)
    assert (np.abs(y - residual - wide @ m.values.T) <= bound(m, wide, exact=True) * 1.1 + 1e-6).all()


@pytest.mark.parametrize("activation", [0, 1], ids=["silu", "gelu_tanh"])
@pytest.mark.parametrize("count", [1, 9, 30])
def test_gated(isa: str, activation: int, count: int) -> None:
    g, u, x = matrix("q4_1", 40, 256, 1), matrix("q8_0", 40, 256, 2), activations(3, count, 256)
    left, right = (x.astype(np.float64) @ m.values.T for m in (g, u))
    tanh = np.tanh(np.sqrt(2 / np.pi) * (left + 0.044715 * left**3))
    with np.errstate(over="ignore"):
        gate = left / (1 + np.exp(-left)) if activation == 0 else left * (1 + tanh) / 2
    error = np.abs(gated(g, u, x, exact=True, activation=activation) - gate * right)
    wide = x.astype(np.float64)
    slope = 1.2 * bound(g, wide, exact=True)  # neither gate is steeper
    allowed = slope * np.abs(right) + (np.abs(gate) + slope) * bound(u, wide, exact=True) + 1e-6 * np.abs(gate * right)
    assert (error <= allowed + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_weights(kind: str) -> None:
    m = matrix(kind, 37, 512)
    ids = np.array([0, 36, 5, 5, -1, 37], np.int32)
    y = rows(m, ids, 1.0)
    np.testing.assert_array_equal(y[:4], m.values[ids[:4]].astype(np.float32))
    assert not y[4:].any()
    np.testing.assert_array_equal(rows(m, ids[:1], 3.0)[0], m.values[0].astype(np.float32) * np.float32(3))


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("q")])
def test_the_largest_numbers_fit_the_sums(isa: str, kind: str, exact: bool) -> None:
    for bits in (0, 0x7F, 0x80, 0xFF):
        m = constant_matrix(kind, bits, 20, 512)
        for sign in (1, -1):
            x = np.full((5, 512), sign * 3.0, np.float32)
            x[1:, ::2] *= -1
            x[2] = np.where(np.arange(512) % 32 == 5, 3.0, sign * 3.0 * 32385 / 32512)  # its low bytes are -127
            error = np.abs(gemm(m, x, exact=exact) - x.astype(np.float64) @ m.values.T)
            assert (error <= bound(m, x.astype(np.float64), exact=exact)).all(), (bits, sign)


@pytest.mark.parametrize("kind", ["q4_1", "q8_0", "q6_k", "f16"])
def test_numbers_that_are_not_finite_stay_so(isa: str, kind: str) -> None:
    m, x = matrix(kind, 16, 256), activations(0, 3, 256)
    x[0, 7], x[1, 100] = np.nan, np.inf
    y = gemm(m, x, exact=True)
    assert not np.isfinite(y[:2]).any()
    assert np.isfinite(y[2]).all()


def test_no_rows(isa: str) -> None:
    assert gemm(matrix("q4_1", 16, 64), np.zeros((0, 64), np.float32), exact=True).shape == (0, 16)


def test_zero_rows_give_zero(isa: str) -> None:
    for kind in KINDS:
        assert not gemm(matrix(kind, 16, 256), np.zeros((2, 256), np.float32), exact=True).any()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_batch(isa: str, kind: str, exact: bool, thread_count: None) -> None:
    m, x = matrix(kind, 48, 512), activations(7, 210, 512)
    norm = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    alone = np.concatenate([gemm(m, x[i : i + 1], exact=exact, norm=norm) for i in range(40)])
    for count in (*range(1, 27), 37, 64, 210):
        together = gemm(m, x[:count], exact=exact, norm=norm)
        np.testing.assert_array_equal(together[:40], alone[: min(count, 40)])
    whole = gemm(m, x, exact=exact, norm=norm)
    for threads in (1, 2, 3):
        native.slipstream_set_threads(threads)
        np.testing.assert_array_equal(gemm(m, x, exact=exact, norm=norm), whole)
        np.testing.assert_array_equal(gemm(m, x[100:117], exact=exact, norm=norm), whole[100:117])


def test_a_gated_row_is_the_same_in_any_batch(isa: str) -> None:
    g, u, x = matrix("q4_1", 48, 256, 1), matrix("q4_1", 48, 256, 2), activations(3, 60, 256)
    whole = gated(g, u, x, exact=True, activation=0)
    for i in range(0, 60, 7):
        np.testing.assert_array_equal(gated(g, u, x[i : i + 1], exact=True, activation=0)[0], whole[i])
    np.testing.assert_array_equal(gated(g, u, x[:13], exact=True, activation=0), whole[:13])


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_result_may_lie_where_the_rows_do(isa: str, count: int) -> None:
    m, x = matrix("q4_1", 1024, 1024), activations(2, count, 1024)
    apart = gemm(m, x, exact=True)
    for _ in range(20):
        rows_and_result = x.copy()
        np.testing.assert_array_equal(gemm(m, rows_and_result, exact=True, y=rows_and_result), apart)


def test_each_of_several_weights(isa: str) -> None:
    m, x = matrix("q8_0", 64, 256), activations(2, 3, 256)
    other = matrix("q8_0", 64, 256, 1)
    both, y = np.concatenate([other.packed, m.packed]), np.empty((3, 64), np.float32)
    size = ctypes.c_int64
    native.slipstream_gemm_each(m.code, size(64), size(256), pointer(both), size(2), pointer(x), size(3), 1, pointer(y))
    np.testing.assert_array_equal(y, gemm(m, x, exact=True))


def test_callers_on_many_threads_do_not_disturb_one_another(isa: str) -> None:
    m, x = matrix("q4_1", 480, 512), activations(7, 64, 512)
    expected = {count: gemm(m, x[:count], exact=True) for count in (1, 5, 64)}

    def call(count: int) -> bool:
        return all(np.array_equal(gemm(m, x[:count], exact=True), expected[count]) for _ in range(20))

    with ThreadPoolExecutor(6) as callers:
        assert all(callers.map(call, (1, 5, 64) * 4))


def test_a_call_of_another_kind_does_not_take_the_rows_of_the_one_before() -> None:
    """In a process of its own: calls were numbered apart for each kind once, and the first ones shared numbers."""
    program = """
import numpy as np
from tests.kernels.native.products import activations, gated, gemm, matrix, native

native.slipstream_set_threads(1)
m = matrix("q4_1", 32, 256)
gemm(m, activations(1, 2, 256), exact=True)
first, second = (gated(m, m, activations(2, 2, 256), exact=True, activation=0) for _ in range(2))
np.testing.assert_array_equal(first, second)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
