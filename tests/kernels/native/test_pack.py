"""Packing loses nothing: what comes back equals what the gguf package reads, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ml_dtypes import float8_e4m3fn
from tests.kernels.native.random_blocks import OWN, dequantized, random_blocks

from slipstream.kernels.native.pack import PACKINGS, pack, packed_bytes, scaled_blocks, unpack


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize(("out", "inputs"), [(16, 256), (48, 512), (1, 256), (37, 768)])
def test_nothing_is_lost(kind: str, out: int, inputs: int) -> None:
    blocks = random_blocks(np.random.default_rng(out), kind, out, inputs)
    packed = pack(kind, blocks, inputs)
    assert packed.shape == (packed_bytes(kind, out, inputs),)
    expected = dequantized(kind, blocks)
    # Equal as numbers: a zero may change its sign where 0 * d - 0 * m is summed in another order.
    np.testing.assert_array_equal(unpack(kind, packed, out, inputs), expected)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_an_odd_number_of_blocks(kind: str) -> None:
    blocks = random_blocks(np.random.default_rng(0), kind, 20, 96)
    expected = dequantized(kind, blocks)
    np.testing.assert_array_equal(unpack(kind, pack(kind, blocks, 96), 20, 96), expected)


@pytest.mark.parametrize("kind", PACKINGS)
def test_sizes_are_those_of_the_format(kind: str) -> None:
    if kind in ("f32", "f16", "bf16") or kind.startswith(OWN):
        return
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]] == (PACKINGS[kind].numbers, PACKINGS[kind].size)


@pytest.mark.parametrize("kind", PACKINGS)
def test_packed_weights_are_hardly_larger(kind: str) -> None:
    blocks = 1024 * 2048 // PACKINGS[kind].numbers * PACKINGS[kind].size
    assert packed_bytes(kind, 1024, 2048) <= 1.03 * blocks


def test_rows_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="q4_1"):
        pack("q4_1", np.zeros((16, 20), np.uint8), 64)


@pytest.mark.parametrize("kind", ["int8_32", "int8_64", "int8_128", "int4_32", "int4_64", "int4_128"])
def test_integers_keep_their_scales(kind: str) -> None:
    rng, shared = np.random.default_rng(0), PACKINGS[kind].numbers
    limit = 8 if kind.startswith("int4") else 128
    values = rng.integers(-limit, limit, (37, 384), np.int8)
    scales = rng.standard_normal((37, 384 // shared)).astype(np.float32)
    packed = pack(kind, scaled_blocks(kind, values, scales), 384)
    np.testing.assert_array_equal(unpack(kind, packed, 37, 384), values * np.repeat(scales, shared, axis=1))


@pytest.mark.parametrize("kind", ["int8z_32", "int8z_64", "int8z_128"])
def test_zero_points_of_16_bit_scales_are_exact(kind: str) -> None:
    """Scale times number and what the zero point takes off are exact in float32, and so is their sum rounded once."""
    rng, shared = np.random.default_rng(0), PACKINGS[kind].numbers
    values = rng.integers(-128, 128, (37, 384), np.int8)
    scales = rng.standard_normal((37, 384 // shared)).astype(np.float16).astype(np.float32)
    zeros = rng.integers(-128, 128, scales.shape).astype(np.float32)
    packed = pack(kind, scaled_blocks(kind, values, scales, -scales * zeros), 384)
    expected = (values - np.repeat(zeros, shared, axis=1)) * np.repeat(scales, shared, axis=1)
    np.testing.assert_array_equal(unpack(kind, packed, 37, 384), expected)


@pytest.mark.parametrize("kind", ["f8_32", "f8_64", "f8_128"])
def test_every_float8_is_read(kind: str) -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    values = np.resize(codes, (16, 256)).view(float8_e4m3fn)
    scales = np.full((16, 256 // PACKINGS[kind].numbers), 0.37, np.float32)
    packed = pack(kind, scaled_blocks(kind, values, scales), 256)
    np.testing.assert_array_equal(unpack(kind, packed, 16, 256), values.astype(np.float32) * np.float32(0.37))


def test_integers_that_do_not_fit_are_refused() -> None:
    values, scales = np.full((2, 64), 8, np.int8), np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        scaled_blocks("int4_64", values, scales)
    with pytest.raises(ValueError, match="do not fit"):
        scaled_blocks("int8_32", values, scales)
    for kind, offsets in (("int8z_64", None), ("int8_64", scales)):
        with pytest.raises(ValueError, match="do not fit"):
            scaled_blocks(kind, values, scales, offsets)
