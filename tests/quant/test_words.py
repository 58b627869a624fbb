"""Small integers in words: against loops, and there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.quant.words import AWQ_ORDER, pack, unpack
from tests.checkpoint.quantized.files import words


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=st.integers(0, 5), count=st.integers(0, 5), seed=st.integers(0, 999))
def test_packing_equals_a_loop_and_unpacking_undoes_it(bits: int, rows: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count * 32 // bits)).astype(np.uint8)
    packed = pack(numbers, bits)
    np.testing.assert_array_equal(packed, words(numbers, bits))
    assert packed.dtype == np.int32
    np.testing.assert_array_equal(unpack(packed, bits), numbers)


def test_the_order_of_awq() -> None:
    """Eight outputs in one word, written out: the lowest four bits hold output 0, the next output 2."""
    outputs = np.array([0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7], np.uint8)
    assert pack(outputs, 4, AWQ_ORDER).view(np.uint32)[0] == 0x75316420
    np.testing.assert_array_equal(unpack(np.array([0x75316420], np.int32), 4, AWQ_ORDER), outputs)


@pytest.mark.parametrize("bits", [4, 8])
def test_views_that_are_not_contiguous(bits: int) -> None:
    numbers = np.random.default_rng(1).integers(0, 1 << bits, (16, 24)).astype(np.uint8)
    turned = words(numbers, bits).T.copy()
    np.testing.assert_array_equal(unpack(turned.T, bits), numbers)
