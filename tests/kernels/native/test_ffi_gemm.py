"""The products as XLA calls them: stacks of layers, padding rows, several weights, and calls that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.native.products import Floats, Matrix, activations, gated, gemm, matrix, rows

ABSENT, NO_ROWS = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
LAYERS = 3
NUMBERS = {
    "exact": True,
    **{f"{name}_eps": np.float32(1e-5) for name in ("norm", "after")},
    **{f"{name}_offset": np.float32(0) for name in ("norm", "after")},
}
Stack = tuple[list[Matrix], jax.Array]


def stack(kinds: str | Sequence[str], out: int, inputs: int, seed: int = 0) -> Stack:
    """Layers of one kind or of several, one after the other."""
    kinds = [kinds] * LAYERS if isinstance(kinds, str) else kinds
    layers = [matrix(kind, out, inputs, seed + i) for i, kind in enumerate(kinds)]
    return layers, jnp.asarray(np.concatenate([m.packed for m in layers]))


def places(stacks: Sequence[Stack]) -> dict[str, np.ndarray]:
    """The attributes that say what lies where."""
    starts = [np.cumsum([0, *(m.packed.size for m in layers)])[:-1] for layers, _ in stacks]
    kinds = [m.code for layers, _ in stacks for m in layers]
    return {"kinds": np.array(kinds, np.int64), "starts": np.concatenate(starts).astype(np.int64)}


def call_gemm(
    x: Floats, stacks: Sequence[Stack], *, layer: int = 1, count: int | None = None, **given: Any
) -> list[jax.Array]:
    results = [jax.ShapeDtypeStruct((len(x), layers[0].out), jnp.float32) for layers, _ in stacks]
    call = jax.ffi.ffi_call("slipstream_ffi_gemm", results)

    @jax.jit
    def run(*operands: jax.Array) -> list[jax.Array]:
        made: list[jax.Array] = call(*operands, **(NUMBERS | places(stacks) | given.get("attributes", {})))
        return made

    real = np.int32(len(x) if count is None else count)
    around = given.get("norm", ABSENT), given.get("after", ABSENT), given.get("residual", NO_ROWS)
    return run(x, *around, np.int32(layer), real, *(packed for _, packed in stacks))


def normed(y: Floats, weight: Floats, offset: float = 0.0) -> np.ndarray:
    """The RMS norm of each row in float64."""
    wide = y.astype(np.float64)
    return wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-5) * (weight.astype(np.float64) + offset)


def test_three_weights_of_different_kinds_in_one_call() -> None:
    x = activations(0, 5, 256)
    norm = np.random.default_rng(1).standard_normal(256).astype(np.float32)
    stacks = [stack("q4_1", 48, 256), stack(["q6_k", "q4_k", "q5_0"], 16, 256), stack("f16", 20, 256)]
    for layer in range(LAYERS):
        made = call_gemm(x, stacks, layer=layer, norm=norm)
        for y, (layers, _) in zip(made, stacks, strict=True):
            np.testing.assert_array_equal(y, gemm(layers[layer], x, exact=True, norm=norm))


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("width", [7, 48, 100])
def test_a_norm_after_the_product_comes_before_the_residual(rows: int, width: int) -> None:
    x = activations(0, rows, 256)
    after = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    residual = np.random.default_rng(1).standard_normal((rows, width)).astype(np.float32)
    stacks = [stack("q8_0", width, 256)]
    plain = gemm(stacks[0][0][1], x, exact=True)
    shifted = {"after_offset": np.float32(1)}
    for given, want in (({}, 0.0), ({"residual": residual}, residual.astype(np.float64))):
        (y,) = call_gemm(x, stacks, after=after, attributes=shifted, **given)
        np.testing.assert_allclose(y, want + normed(plain, after, 1.0), rtol=1e-5, atol=1e-5)
        last = {name: value[-1:] for name, value in given.items()}
        (alone,) = call_gemm(x[-1:], stacks, after=after, attributes=shifted, **last)
        np.testing.assert_array_equal(alone[0], y[-1])


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, -1])
def test_padding_rows_are_zero(count: int) -> None:
    x = activations(0, 5, 256)
    x[max(0, min(count, 5)) :] = np.nan
    layers, packed = stack("q8_0", 32, 256)
    after = np.ones(32, np.float32)
    residual = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    (y,) = call_gemm(x, [(layers, packed)], count=count, residual=residual)
    real = max(0, min(count, 5))
    np.testing.assert_array_equal(y[:real], gemm(layers[1], x[:real], exact=True, residual=residual[:real]))
    assert not np.asarray(y[real:]).any()
    (y,) = call_gemm(x, [(layers, packed)], count=count, residual=residual, after=after)
    assert np.isfinite(y).all() and not np.asarray(y[real:]).any()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_whole_feed_forward(activation: str) -> None:
    x, residual = activations(0, 7, 256), activations(1, 7, 256)
    norm, after = (np.random.default_rng(i).standard_normal(256).astype(np.float32) for i in (3, 4))
    stacks = [stack("q4_1", 96, 256), stack(["q4_0", "q5_1", "f32"], 96, 256, 10), stack("q8_0", 256, 96, 20)]
    g, u, d = (layers[2] for layers, _ in stacks)
    call = jax.ffi.ffi_call("slipstream_ffi_mlp", jax.ShapeDtypeStruct((7, 256), jnp.float32))

    def run(around: Sequence[np.ndarray]) -> np.ndarray:
        packed = (data for _, data in stacks)
        attributes = NUMBERS | places(stacks) | {"hidden": 96, "activation": activation}
        return np.asarray(call(x, *around, np.int32(2), np.int32(6), *packed, **attributes))

    number = 0 if activation == "silu" else 1
    hidden = gated(g, u, x[:6], exact=True, activation=number, norm=norm)
    whole = run((norm, ABSENT, residual))
    np.testing.assert_array_equal(whole[:6], gemm(d, hidden, exact=True, residual=residual[:6]))
    assert not whole[6:].any()
    whole = run((norm, after, residual))
    want = residual[:6] + normed(gemm(d, hidden, exact=True), after)
    np.testing.assert_allclose(whole[:6], want, rtol=1e-4, atol=1e-4)


def test_rows() -> None:
    m, ids = matrix("q8_0", 100, 64), np.array([3, 99, 0, 5], np.int32)
    call = jax.ffi.ffi_call("slipstream_ffi_rows", jax.ShapeDtypeStruct((4, 64), jnp.float32))
    made = call(ids, np.int32(3), m.packed, out=100, scale=np.float32(2), **places([([m], jnp.asarray(m.packed))]))
    np.testing.assert_array_equal(made[:3], rows(m, ids[:3], 2.0))
    assert not np.asarray(made[3]).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": 3}, "layer is out of range"),
        ({"layer": -1}, "layer is out of range"),
        ({"norm": np.zeros(128, np.float32)}, "norm must be"),
        ({"after": np.zeros(47, np.float32)}, "after must be"),
        ({"residual": np.zeros((4, 48), np.float32)}, "residual must be"),
        ({"attributes": {"kinds": np.array([1, 99, 1], np.int64)}}, "unknown kind"),
        ({"attributes": {"starts": np.array([0, 1 << 40, 0], np.int64)}}, "bytes do not fit"),
        ({"attributes": {"starts": np.array([0, -64, 0], np.int64)}}, "bytes do not fit"),
        ({"attributes": {"starts": np.zeros(2, np.int64)}}, "as many kinds and starts"),
    ],
)
def test_wrong_calls_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call_gemm(activations(0, 5, 256), [stack("q4_1", 48, 256)], **given))


def test_a_weight_of_another_size_is_refused() -> None:
    layers, packed = stack("q4_1", 48, 256)
    with pytest.raises(jax.errors.JaxRuntimeError, match="bytes do not fit"):
        jax.block_until_ready(call_gemm(activations(0, 5, 256), [(layers, packed[:-64])], layer=2))


def test_a_norm_after_several_products_is_refused() -> None:
    stacks = [stack("q4_1", 48, 256)] * 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="goes with one weight"):
        jax.block_until_ready(call_gemm(activations(0, 5, 256), stacks, after=np.ones(48, np.float32)))
