"""Packing loses nothing: what comes back equals what the gguf package reads, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from tests.kernels.native.random_blocks import random_blocks

from slipstream.kernels.native.pack import PACKINGS, pack, packed_bytes, unpack


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize(("out", "inputs"), [(16, 256), (48, 512), (1, 256), (37, 768)])
def test_nothing_is_lost(kind: str, out: int, inputs: int) -> None:
    blocks = random_blocks(np.random.default_rng(out), kind, out, inputs)
    packed = pack(kind, blocks, inputs)
    assert packed.shape == (packed_bytes(kind, out, inputs),)
    expected = dequantize(blocks, GGMLQuantizationType[kind.upper()])
    # Equal as numbers: a zero may change its sign where 0 * d - 0 * m is summed in another order.
    np.testing.assert_array_equal(unpack(kind, packed, out, inputs), expected)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_an_odd_number_of_blocks(kind: str) -> None:
    blocks = random_blocks(np.random.default_rng(0), kind, 20, 96)
    expected = dequantize(blocks, GGMLQuantizationType[kind.upper()])
    np.testing.assert_array_equal(unpack(kind, pack(kind, blocks, 96), 20, 96), expected)


@pytest.mark.parametrize("kind", PACKINGS)
def test_sizes_are_those_of_the_format(kind: str) -> None:
    if kind in ("f32", "f16", "bf16"):
        return
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]] == (PACKINGS[kind].numbers, PACKINGS[kind].size)


@pytest.mark.parametrize("kind", PACKINGS)
def test_packed_weights_are_hardly_larger(kind: str) -> None:
    blocks = 1024 * 2048 // PACKINGS[kind].numbers * PACKINGS[kind].size
    assert packed_bytes(kind, 1024, 2048) <= 1.03 * blocks


def test_rows_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="q4_1"):
        pack("q4_1", np.zeros((16, 20), np.uint8), 64)
