"""Rounding of weights: to the nearest number, with scales that miss by less than the plain ones do."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.quant.rounding import SCHEMES, Scheme, quantize
from slipstream.quant.scaled import LARGEST, dequantize

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def error(weight: np.ndarray, scheme: Scheme, scale_type: np.dtype = BFLOAT16) -> float:
    data = quantize(weight, scheme, scale_type)
    block = (1, scheme.group or weight.shape[1])
    return float(np.mean((dequantize(data, block) - weight) ** 2))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(SCHEMES)), out=st.integers(1, 5), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_numbers_are_the_nearest(name: str, out: int, groups: int, seed: int) -> None:
    """No other number is nearer, for the scale as it is stored; nothing misses by more than cutting off explains."""
    scheme = SCHEMES[name]
    weight = np.random.default_rng(seed).standard_normal((out, groups * 128)).astype(np.float32)
    weight[0, :3] = 0
    data = quantize(weight, scheme, BFLOAT16)
    count = weight.shape[1] // (scheme.group or weight.shape[1])
    assert data.scales.shape == (out, count) and data.scales.dtype == BFLOAT16 and data.zeros is None
    scaled = weight.reshape(out, count, -1) / data.scales.astype(np.float32)[..., None]
    numbers = data.numbers.astype(np.float32).reshape(scaled.shape)
    low, high = -LARGEST[scheme.number] - (scheme.number == "int4"), LARGEST[scheme.number]
    assert numbers.min() >= low and numbers.max() <= high
    off = np.abs(numbers - scaled.clip(low, high))
    step = 0.5 if scheme.number != "fp8_e4m3" else np.maximum(np.abs(scaled) / 16, 2**-10)
    assert (off <= step * 1.001).all()


@pytest.mark.parametrize("name", ["int4-g128", "int4-g32"])
def test_looking_for_a_scale_pays(name: str) -> None:
    """Against the largest weight at 7.5: at least 10% less squared error."""
    rng = np.random.default_rng(1)
    for heavy in (False, True):
        weight = rng.standard_t(4, (64, 512)) if heavy else rng.standard_normal((64, 512))
        groups = weight.astype(np.float32).reshape(64, -1, SCHEMES[name].group or 512)
        scales = (np.abs(groups).max(-1, keepdims=True) / 7.5).astype(BFLOAT16).astype(np.float32)
        plain = np.mean((np.rint(groups / scales).clip(-8, 7) * scales - groups) ** 2)
        assert error(groups.reshape(64, 512), SCHEMES[name]) < 0.9 * plain


def test_more_bits_and_smaller_groups_miss_less() -> None:
    weight = np.random.default_rng(2).standard_normal((64, 512)).astype(np.float32)
    errors = [error(weight, SCHEMES[name]) for name in ("int8", "fp8", "int4-g32", "int4-g64", "int4-g128")]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4 and errors[-1] < 2e-2


def test_rows_of_zeros_and_what_is_refused() -> None:
    zero = quantize(np.zeros((2, 128), np.float32), SCHEMES["int4-g128"], BFLOAT16)
    assert not zero.numbers.any() and np.isfinite(zero.scales.astype(np.float32)).all() and zero.scales.all()
    with pytest.raises(ValueError, match="200 inputs are no whole groups of 128"):
        quantize(np.zeros((2, 200), np.float32), SCHEMES["int4-g128"], BFLOAT16)
    with pytest.raises(ValueError, match="not finite"):
        quantize(np.full((2, 128), np.nan, np.float32), SCHEMES["int8"], BFLOAT16)
