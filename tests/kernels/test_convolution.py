"""Convolutions in other forms against XLA's own, over random shapes; group norms against numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.kernels.convolution import (
    SAME,
    Tile,
    Winograd,
    conv,
    convolve,
    convolve_phases,
    convolve_winograd,
    summed,
    tile_for,
    transformed,
    upsample_conv,
)
from slipstream.kernels.norm import group_norm

BOUNDS: dict[Tile, float] = {2: 4e-6, 4: 4e-5}
"""Of the largest difference over the largest result: tiles of 4 multiply by up to 8 and divide by up to 24."""

PHASES_BOUND = 2e-6


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape, dtype=np.float32))


def compiled(function: Callable[..., jax.Array], *given: Any, **static: Any) -> jax.Array:
    """What is called once is compiled in little time, not to be fast."""
    return jax.jit(partial(function, **static), compiler_options={"xla_backend_optimization_level": 0})(*given)


def difference(found: jax.Array, expected: jax.Array) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected)))


def shapes(count: int) -> list[tuple[int, int, int, int, int]]:
    """Batch, rows, columns, inputs, outputs: odd ones too, and pictures smaller than a tile."""
    random = np.random.default_rng(5)
    drawn = random.integers((1, 1, 1, 1, 1), (4, 40, 40, 70, 70), (count, 5))
    return [(b, y, x, i, o) for b, y, x, i, o in drawn.tolist()]


def by_hand(x: np.ndarray, weight: np.ndarray, stride: int, pad: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    wide = np.pad(x.astype(np.float64), ((0, 0), *pad, (0, 0)))
    rows, columns = (size - 2 for size in wide.shape[1:3])
    taps = [
        np.einsum("byxi,io->byxo", wide[:, i : i + rows : stride, j : j + columns : stride], weight[i, j])
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps[1:], taps[0])


@pytest.mark.parametrize(("stride", "pad"), [(1, SAME), (2, SAME), (2, ((0, 1), (0, 1)))])
def test_the_reference(stride: int, pad: tuple[tuple[int, int], tuple[int, int]]) -> None:
    x, weight, bias = drawn(2, 7, 10, 5), drawn(3, 3, 5, 6), drawn(6)
    found = conv(x, weight, bias, stride=stride, pad=pad)
    expected = by_hand(np.asarray(x), np.asarray(weight), stride, pad) + np.asarray(bias)
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-5)


def in_tiles(x: jax.Array, weight: jax.Array, tile: Tile) -> jax.Array:
    return convolve_winograd(x, transformed(weight, tile))


def in_phases(x: jax.Array, weight: jax.Array) -> jax.Array:
    return convolve_phases(x, summed(weight))


@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_equals_the_reference(tile: Tile) -> None:
    worst = 0.0
    for b, y, x, i, o in shapes(5):
        picture, weight = drawn(b, y, x, i), drawn(3, 3, i, o)
        expected = compiled(convolve, picture, weight, stride=1, pad=SAME)
        worst = max(worst, difference(compiled(in_tiles, picture, weight, tile=tile), expected))
    assert worst < BOUNDS[tile]


def test_phases_equal_the_doubled_picture() -> None:
    worst = 0.0
    for b, y, x, i, o in shapes(5):
        picture, weight = drawn(b, y, x, i), drawn(3, 3, i, o)
        expected = compiled(upsample_conv, picture, weight, None)
        assert expected.shape == (b, 2 * y, 2 * x, o)
        worst = max(worst, difference(compiled(in_phases, picture, weight), expected))
    assert worst < PHASES_BOUND


def test_what_passes_a_size_is_cut_off_before_the_convolution() -> None:
    x, weight, bias = drawn(1, 4, 3, 5), drawn(3, 3, 5, 6), drawn(6)
    doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :7, :5]
    for kernels in ("reference", "cpu"):
        found = compiled(upsample_conv, x, weight, bias, size=(7, 5), kernels=kernels)
        assert difference(found, compiled(conv, doubled, weight, bias)) == 0


def test_forms_by_size() -> None:
    wide, narrow = (3, 3, 64, 64), (3, 3, 4, 320)
    assert [tile_for((size, 64), wide) for size in (8, 15, 16, 31, 32, 128)] == [None, None, 2, 2, 4, 4]
    assert tile_for((64, 64), narrow) is None
    assert tile_for((64, 64), (1, 1, 640, 640)) is None


def test_a_kept_form_serves_every_size_of_picture() -> None:
    weight, bias = drawn(3, 3, 64, 64), drawn(64)
    kept: Winograd = jax.jit(transformed, static_argnums=1)(weight, 4)
    for size in ((32, 32), (5, 9)):
        x = drawn(2, *size, 64)
        expected = compiled(conv, x, weight, bias)
        assert difference(compiled(conv, x, kept, bias), expected) < BOUNDS[4]
        assert difference(compiled(conv, x, weight, bias, kernels="cpu"), expected) < BOUNDS[4]
    assert isinstance(kept, Winograd)
    with pytest.raises(ValueError, match="is for stride 1 and SAME, not 2"):
        conv(drawn(1, 8, 8, 64), kept, bias, stride=2)


def test_half_floats_keep_their_type() -> None:
    x, weight = drawn(1, 34, 32, 64).astype(jnp.bfloat16), drawn(3, 3, 64, 64).astype(jnp.bfloat16)
    expected = compiled(convolve, x.astype(jnp.float32), weight.astype(jnp.float32), stride=1, pad=SAME)
    for kernels in ("reference", "cpu"):
        found = compiled(conv, x, weight, None, kernels=kernels)
        assert found.dtype == jnp.bfloat16
        assert difference(found.astype(jnp.float32), expected) < 0.02


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_group_norm(groups: int) -> None:
    x, weight, bias = drawn(2, 5, 3, 12) * 3 + 7, drawn(12, seed=1), drawn(12, seed=2)
    found = np.asarray(group_norm(x, weight, bias, 1e-5, groups))
    wide = np.asarray(x, np.float64).reshape(2, 15, groups, -1)
    mean, variance = (f(wide, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((wide - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * np.asarray(weight) + np.asarray(bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)
