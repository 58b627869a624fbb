"""The products as XLA calls them: stacks of layers, padding rows, several weights, and calls that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.native.products import Floats, Matrix, activations, gated, gemm, matrix, rows

NONE = np.zeros((0, 0), np.float32)
LAYERS = 3


def stack(kind: str, out: int, inputs: int, seed: int = 0) -> tuple[list[Matrix], jax.Array]:
    layers = [matrix(kind, out, inputs, seed + i) for i in range(LAYERS)]
    return layers, jnp.asarray(np.stack([m.packed for m in layers]))


def call_gemm(
    x: Floats, weights: Sequence[tuple[Matrix, jax.Array]], *, layer: int = 1, count: int | None = None, **given: Any
) -> list[jax.Array]:
    attributes = {"exact": True, "eps": np.float32(1e-5), "norm_offset": np.float32(0)} | given.pop("attributes", {})
    kinds = np.array([m.code for m, _ in weights], np.int64)
    results = [jax.ShapeDtypeStruct((len(x), m.out), jnp.float32) for m, _ in weights]
    call = jax.ffi.ffi_call("slipstream_ffi_gemm", results)

    @jax.jit
    def run(*operands: jax.Array) -> list[jax.Array]:
        made: list[jax.Array] = call(*operands, kinds=kinds, **attributes)
        return made

    real = np.int32(len(x) if count is None else count)
    norm, residual = given.get("norm", NONE), given.get("residual", NONE)
    return run(x, norm, residual, np.int32(layer), real, *(packed for _, packed in weights))


def test_three_weights_of_different_kinds_in_one_call() -> None:
    x = activations(0, 5, 256)
    norm = np.random.default_rng(1).standard_normal((LAYERS, 256)).astype(np.float32)
    stacks = [stack("q4_1", 48, 256), stack("q6_k", 16, 256), stack("f16", 20, 256)]
    for layer in range(LAYERS):
        made = call_gemm(x, [(layers[0], packed) for layers, packed in stacks], layer=layer, norm=norm)
        for y, (layers, _) in zip(made, stacks, strict=True):
            np.testing.assert_array_equal(y, gemm(layers[layer], x, exact=True, norm=norm[layer]))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, -1])
def test_padding_rows_are_zero(count: int) -> None:
    x = activations(0, 5, 256)
    x[max(0, min(count, 5)) :] = np.nan
    layers, packed = stack("q8_0", 32, 256)
    residual = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    (y,) = call_gemm(x, [(layers[0], packed)], count=count, residual=residual)
    real = max(0, min(count, 5))
    np.testing.assert_array_equal(y[:real], gemm(layers[1], x[:real], exact=True, residual=residual[:real]))
    assert not np.asarray(y[real:]).any()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_and_the_whole_layer(activation: str) -> None:
    x, residual = activations(0, 7, 256), activations(1, 7, 256)
    (g, gates), (u, ups), (d, downs) = stack("q4_1", 96, 256), stack("q4_0", 96, 256, 10), stack("q8_0", 256, 96, 20)
    common = {"activation": activation, "exact": True, "eps": np.float32(1e-5), "norm_offset": np.float32(0)}
    kinds = np.array([m[0].code for m in (g, u, d)], np.int64)
    scalars = (np.int32(2), np.int32(6))
    hidden = jax.ffi.ffi_call("slipstream_ffi_gated", jax.ShapeDtypeStruct((7, 96), jnp.float32))(
        x, NONE, *scalars, gates, ups, kinds=kinds[:2], **common
    )
    number = 0 if activation == "silu" else 1
    np.testing.assert_array_equal(hidden[:6], gated(g[2], u[2], x[:6], exact=True, activation=number))
    assert not np.asarray(hidden[6:]).any()
    whole = jax.ffi.ffi_call("slipstream_ffi_mlp", jax.ShapeDtypeStruct((7, 256), jnp.float32))(
        x, NONE, residual, *scalars, gates, ups, downs, kinds=kinds, hidden=96, **common
    )
    expected = gemm(d[2], np.asarray(hidden[:6]), exact=True, residual=residual[:6])
    np.testing.assert_array_equal(whole[:6], expected)
    assert not np.asarray(whole[6:]).any()


def test_rows() -> None:
    m, ids = matrix("q8_0", 100, 64), np.array([3, 99, 0, 5], np.int32)
    made = jax.ffi.ffi_call("slipstream_ffi_rows", jax.ShapeDtypeStruct((4, 64), jnp.float32))(
        ids, np.int32(3), m.packed[None], kind=m.code, out=100, scale=np.float32(2)
    )
    np.testing.assert_array_equal(made[:3], rows(m, ids[:3], 2.0))
    assert not np.asarray(made[3]).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": 3}, "layer is out of range"),
        ({"layer": -1}, "layer is out of range"),
        ({"norm": np.zeros((3, 128), np.float32)}, "norm must be"),
        ({"norm": np.zeros((1, 256), np.float32)}, "out of range of the norm"),
        ({"residual": np.zeros((4, 48), np.float32)}, "residual must be"),
    ],
)
def test_wrong_calls_are_refused(given: dict[str, Any], message: str) -> None:
    layers, packed = stack("q4_1", 48, 256)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call_gemm(activations(0, 5, 256), [(layers[0], packed)], **given))


def test_a_weight_of_another_size_is_refused() -> None:
    layers, packed = stack("q4_1", 48, 256)
    with pytest.raises(jax.errors.JaxRuntimeError, match="bytes do not fit"):
        jax.block_until_ready(call_gemm(activations(0, 5, 256), [(layers[0], packed[:, :-64])]))
