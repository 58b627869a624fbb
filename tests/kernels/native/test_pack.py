"""Packing loses nothing: what comes back equals what the gguf package reads, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from tests.kernels.native.random_blocks import dequantized, random_blocks

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
    if kind in ("f32", "f16", "bf16") or kind.startswith("int"):
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


def test_integers_that_do_not_fit_are_refused() -> None:
    values, scales = np.full((2, 64), 8, np.int8), np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        scaled_blocks("int4_64", values, scales)
    with pytest.raises(ValueError, match="do not fit"):
        scaled_blocks("int8_32", values, scales)
