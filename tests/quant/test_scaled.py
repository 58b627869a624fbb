"""Scales of blocks: of axes that are made of several, of parts of a tensor, of every shape."""

from __future__ import annotations

from functools import partial
from math import prod

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.checkpoint.assembly import OnDevice
from slipstream.checkpoint.loading import blocks_of, read
from slipstream.quant.leaf import form_of
from slipstream.quant.scaled import regrouped, split_block, spread, values_of
from slipstream.spec.param import Axis, Dims, Param, Part
from slipstream.spec.source import Scaled, ScaledData, Stored


@settings(max_examples=200, deadline=None)
@given(block=st.integers(1, 200), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_each_small_block_lies_in_one_stored_block(block: int, sizes: list[int]) -> None:
    total = prod(sizes)
    scales = np.arange(1, -(-total // block) + 1)
    expected = scales[np.arange(total) // block]
    blocks = split_block(block, sizes)
    assert all(size % each == 0 for size, each in zip(sizes, blocks, strict=True))
    small = regrouped(scales, [block], [sizes]).reshape([s // b for s, b in zip(sizes, blocks, strict=True)])
    np.testing.assert_array_equal(spread(small, blocks, sizes).reshape(-1), expected)


def test_blocks_that_fit_are_not_cut() -> None:
    assert split_block(128, (4, 64)) == (2, 64)
    assert split_block(128, (8, 128)) == (1, 128)
    assert split_block(128, (16, 192)) == (1, 64)
    assert split_block(10_000, (16, 192)) == (16, 192)


class OneTensor:
    """A source of one scaled tensor."""

    def __init__(self, shape: tuple[int, ...], block: tuple[int, ...], *, zeros: bool = False) -> None:
        rng = np.random.default_rng(0)
        counts = tuple(-(-size // each) for size, each in zip(shape, block, strict=True))
        data = ScaledData(
            rng.integers(-8, 8, shape).astype(np.int8),
            rng.uniform(1, 2, counts).astype(np.float32),
            rng.integers(-8, 8, counts).astype(np.int8) if zeros else None,
        )
        self.scaled = Scaled("int4", shape, block, np.dtype(np.float32), zeros, None, lambda: data)

    def names(self) -> list[str]:
        return ["w"]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.scaled.shape

    def read(self, name: str) -> np.ndarray:
        return values_of(self.scaled)

    def blocks(self, name: str) -> Stored | None:
        return self.scaled


D, F, N, H = Axis("embed", "d", 256), Axis("mlp", "f", 48), Axis("heads", "n", 6), Axis("head", "h", 64)
E = Axis("experts", "e", 3)
CASES = [
    (Param(Dims((D, F)), ("w",), "f d -> d f", ("embed",)), (1, 64)),
    (Param(Dims((D, F)), ("w",), "f d -> d f", ("embed",), part=Part("f", 7, 96)), (32, 128)),
    (Param(Dims((D, F)), ("w",), "f d -> d f", ("embed",), part=Part("f", 1, 96, step=2)), (96, 128)),
    (Param(Dims((D, N, H)), ("w",), "(n h) d -> d n h", ("embed",)), (128, 128)),
    (Param(Dims((D, N, H)), ("w",), "(n h) d -> d n h", ("embed",), part=Part("n", 2, 10)), (128, 128)),
    (Param(Dims((N, H, D)), ("w",), "d (n h) -> n h d", ("heads", "head")), (1, 128)),
    (Param(Dims((N, H, D)), ("w",), "d (n h) -> n h d", ("heads", "head")), (256, 6 * 64)),
    (Param(Dims((E, D, F)), ("w",), None, ("embed",)), (1, 32, 1)),
    (Param(Dims((E, D, F)), ("w",), None, ("embed",), part=Part("f", 1, 96, step=2)), (1, 32, 1)),
]


def test_leaves_and_plain_arrays_hold_the_same_values() -> None:
    """The leaf of any parameter, dequantized, is what loading without it gives."""
    for param, block in CASES:
        for zeros in (False, True):
            source = OneTensor(param.stored_shape, block, zeros=zeros)
            stored = blocks_of(param, source)
            form = form_of(param, stored, np.dtype(np.float32))
            assert form is not None
            leaf = form.read([one for one in stored if isinstance(one, Scaled)], partial(OnDevice, jax.devices()[0]))
            abstract = form.abstract()
            assert leaf.values.shape == param.shape == abstract.values.shape
            assert leaf.scales.shape == abstract.scales.shape
            assert (leaf.zeros is not None) == zeros
            each = [size // count for size, count in zip(param.shape, leaf.scales.shape, strict=True)]
            apart = np.asarray(leaf.values).astype(np.float32)
            if leaf.zeros is not None:
                apart -= spread(np.asarray(leaf.zeros).astype(np.float32), each, param.shape)
            values = apart * spread(np.asarray(leaf.scales), each, param.shape)
            np.testing.assert_array_equal(values, read(param, source), err_msg=str(param))


def test_scales_are_not_repeated_where_blocks_fit() -> None:
    wq = CASES[3][0]
    form = form_of(wq, [OneTensor(wq.stored_shape, (128, 128)).scaled], np.dtype(np.float32))
    assert form is not None and form.scale_shape == (2, 3, 1)


def test_what_is_no_product_or_mixed_is_a_plain_array() -> None:
    param = CASES[0][0]
    one = OneTensor(param.stored_shape, (1, 64)).scaled
    two = OneTensor(param.stored_shape, (1, 128)).scaled
    stack = Param(param.dims, ("a", "b"), param.layout, param.contract, layers=2)
    float32 = np.dtype(np.float32)
    assert form_of(stack, [one, one], float32) is not None
    assert form_of(stack, [one, two], float32) is None
    assert form_of(stack, [one, None], float32) is None
    assert form_of(Param(param.dims, ("w",), param.layout), [one], float32) is None
