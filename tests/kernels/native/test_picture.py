"""The native kernels of image models against float64, with each instruction set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.kernels.native.products import isas, native

from slipstream.kernels.convolution import Tile, conv, packed, upsample_conv
from slipstream.kernels.native.picture import attend_native, gelu_native, norm_groups_native

BOUNDS: dict[Tile, float] = {2: 4e-6, 4: 4e-5}
"""Of the largest difference over the largest result: tiles of 4 multiply by up to 8 and divide by up to 24."""

Floats = NDArray[np.float32]


@pytest.fixture(autouse=True, params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use."""
    native.slipstream_set_isa(request.param.encode())
    yield request.param
    native.slipstream_set_isa(None)


def drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, dtype=np.float32)


def difference(found: object, expected: NDArray[np.float64]) -> float:
    array = np.asarray(found, np.float64)
    assert array.shape == expected.shape
    return float(np.abs(array - expected).max() / np.abs(expected).max())


def by_hand(x: Floats, weight: Floats) -> NDArray[np.float64]:
    wide = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    taps = [
        np.einsum("byxi,io->byxo", wide[:, i : i + rows, j : j + columns], weight[i, j])
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps[1:], taps[0])


# Batch, rows, columns, inputs, outputs: less than a tile, blocks that are not full, more tiles than a panel.
SHAPES = [(1, 1, 1, 1, 1), (2, 5, 7, 20, 24), (1, 33, 18, 16, 70), (3, 9, 4, 70, 33)]


@pytest.mark.parametrize("tile", [2, 4])
def test_convolutions(tile: Tile) -> None:
    for b, y, x, i, o in SHAPES:
        picture, weight, bias = drawn(b, y, x, i), drawn(3, 3, i, o), drawn(b, o)
        kept = packed(jnp.asarray(weight), tile)
        assert kept.values.shape == ((tile + 2) ** 2, -(-o // 16), -(-i // 16) * 16, 16)
        found = conv(jnp.asarray(picture), kept, jnp.asarray(bias))
        assert difference(found, by_hand(picture, weight) + bias[:, None, None]) < BOUNDS[tile]
        doubled = np.repeat(np.repeat(picture, 2, axis=1), 2, axis=2)
        found = upsample_conv(jnp.asarray(picture), kept, jnp.asarray(bias[0]))
        assert difference(found, by_hand(doubled, weight) + bias[0]) < BOUNDS[tile]


def test_more_tiles_than_one_chunk() -> None:
    picture, weight = drawn(1, 88, 90, 128), drawn(3, 3, 128, 16)
    found = conv(jnp.asarray(picture), packed(jnp.asarray(weight), 2), None)
    assert difference(found, by_hand(picture, weight)) < BOUNDS[2]


def test_what_passes_a_size_is_cut_off() -> None:
    picture, weight = drawn(1, 4, 3, 5), drawn(3, 3, 5, 6)
    doubled = np.repeat(np.repeat(picture, 2, axis=1), 2, axis=2)[:, :7, :5]
    found = upsample_conv(jnp.asarray(picture), packed(jnp.asarray(weight), 2), None, size=(7, 5))
    assert difference(found, by_hand(doubled, weight)) < BOUNDS[2]


def test_a_weight_in_this_form_has_one_stride() -> None:
    with pytest.raises(ValueError, match="is for stride 1 and SAME, not 2"):
        conv(jnp.asarray(drawn(1, 8, 8, 4)), packed(jnp.asarray(drawn(3, 3, 4, 4)), 2), None, stride=2)


# Batch, queries, keys, heads, size: fewer than a panel, one key, several blocks, and keys that are no whole blocks.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 13, 7, 3, 8), (1, 50, 33, 2, 40), (2, 100, 64, 1, 64), (1, 5, 300, 1, 20)]
)
def test_attention(shape: tuple[int, int, int, int, int]) -> None:
    b, t, c, n, h = shape
    q, k, v = 2 * drawn(b, t, n, h), drawn(b, c, n, h, seed=1), drawn(b, c, n, h, seed=2)
    scores = np.einsum("btnh,bcnh->bntc", q, k, dtype=np.float64) * 0.3
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bntc,bcnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    assert difference(attend_native(*map(jnp.asarray, (q, k, v)), 0.3), expected) < 3e-6


def test_scores_far_apart() -> None:
    q, k, v = 200 * drawn(1, 20, 1, 16), 200 * drawn(1, 40, 1, 16, seed=1), drawn(1, 40, 1, 16, seed=2)
    best = np.einsum("btnh,bcnh->btc", q, k).argmax(-1)[0]
    found = np.asarray(attend_native(*map(jnp.asarray, (q, k, v)), 1.0))
    np.testing.assert_allclose(found[0], v[0, best], atol=1e-6)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("places", "channels", "groups"), [(1, 4, 2), (35, 24, 4), (70, 150, 3), (9, 33, 33)])
def test_group_norm(places: int, channels: int, groups: int, silu: bool) -> None:
    x, weight, bias = drawn(2, places, channels) * 3 + 5, drawn(channels, seed=1), drawn(channels, seed=2)
    wide = x.astype(np.float64).reshape(2, places, groups, -1)
    mean, variance = (f(wide, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((wide - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * weight + bias
    expected = expected / (1 + np.exp(-expected)) if silu else expected
    found = norm_groups_native(*map(jnp.asarray, (x, weight, bias)), 1e-5, groups, silu)
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(tanh: bool, gated: bool) -> None:
    x, bias = 4 * drawn(2, 3, 37), drawn(37, seed=1)
    x[0, 0, :3] = (-1e4, 1e4, 0)
    other, other_bias = drawn(2, 3, 37, seed=2), drawn(37, seed=3)
    value = (x + bias).astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
    shares = 1 + (np.tanh(inner) if tanh else np.vectorize(math.erf)(value / math.sqrt(2)))
    expected = 0.5 * value * shares * (other + other_bias if gated else 1.0)
    more = (jnp.asarray(other), jnp.asarray(other_bias)) if gated else (None, None)
    found = gelu_native(jnp.asarray(x), jnp.asarray(bias), *more, tanh)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6, atol=2e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    def call(name: str, result: tuple[int, ...], *given: tuple[int, ...], **settings: object) -> object:
        handler = jax.ffi.ffi_call(f"slipstream_ffi_{name}", jax.ShapeDtypeStruct(result, jnp.float32))
        return jax.block_until_ready(handler(*(jnp.zeros(shape, jnp.float32) for shape in given), **settings))

    one = (1, 1, 2, 1)
    for words, act in (
        (
            "must be 2 or 4",
            lambda: call("convolution", one, one, (25, 1, 16, 16), (1, 1), tile=np.int64(3), doubled=False),
        ),
        (
            "weights must be",
            lambda: call("convolution", one, one, (16, 1, 8, 16), (1, 1), tile=np.int64(2), doubled=False),
        ),
        (
            "result must be a",
            lambda: call("convolution", one, one, (16, 1, 16, 16), (1, 1), tile=np.int64(2), doubled=True),
        ),
        (
            "bias must be",
            lambda: call("convolution", one, one, (16, 1, 16, 16), (2, 1), tile=np.int64(2), doubled=False),
        ),
        ("same batch", lambda: call("batched_attention", one, one, (1, 1, 1, 1), (1, 1, 1, 1), scale=np.float32(1))),
        ("like keys", lambda: call("batched_attention", one, one, one, (1, 2, 2, 1), scale=np.float32(1))),
        ("be keys", lambda: call("batched_attention", one, one, (1, 0, 2, 1), (1, 0, 2, 1), scale=np.float32(1))),
        (
            "divide",
            lambda: call(
                "group_norm", (1, 1, 4), (1, 1, 4), (4,), (4,), groups=np.int64(3), eps=np.float32(0), silu=True
            ),
        ),
        ("multiplied", lambda: call("gelu", (1, 4), (1, 4), (4,), (2, 4), (4,), tanh=True)),
    ):
        with pytest.raises(Exception, match=words):
            act()
