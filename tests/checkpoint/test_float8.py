"""Flux files in 8-bit floats: with scales and without, as scaled numbers of whole matrices and of parts of them."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint import check, load
from slipstream.checkpoint.float8 import opened
from slipstream.checkpoint.image_single import open_image_file
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError
from slipstream.models.image.registry import model_of
from slipstream.quant.leaf import Quantized, dequantize
from slipstream.quant.scaled import values_of
from slipstream.spec.source import Scaled
from tests.checkpoint.test_flux_file import CONFIG, Tensors, original, tensors_of
from tests.models.image.harness import random_source

SMALL = np.dtype(ml_dtypes.float8_e4m3fn)


@pytest.fixture(scope="module")
def plain() -> Tensors:
    """A file's tensors in float32."""
    return original(tensors_of(random_source("FluxTransformer2DModel", CONFIG)))


def rounded(tensors: Tensors, ends: tuple[str, str] | None) -> tuple[Tensors, Tensors]:
    """The same in 8 bits, and its values. `ends`: of the names of weights' and inputs' scales; None: all are cast."""
    stored: Tensors = {} if ends is None else {"scaled_fp8": np.zeros(0, SMALL)}
    values: Tensors = {}
    for name, tensor in tensors.items():
        if ends is None:
            stored[name] = tensor.astype(SMALL)
            values[name] = stored[name].astype(np.float32)
        elif name.endswith(".weight") and tensor.ndim == 2 and not name.startswith("img_in"):
            scale = np.float32(np.abs(tensor).max() / 448)
            stored[name] = (tensor / scale).astype(SMALL)
            stored[name.removesuffix(".weight") + ends[0]] = np.asarray(scale)
            stored[name.removesuffix(".weight") + ends[1]] = np.ones((), np.float32)
            values[name] = stored[name].astype(np.float32) * scale
        else:
            stored[name] = values[name] = tensor
    return stored, values


@pytest.mark.parametrize("ends", [None, (".scale_weight", ".scale_input"), (".weight_scale", ".input_scale")])
def test_a_file_in_8_bits(plain: Tensors, ends: tuple[str, str] | None, tmp_path: Path) -> None:
    stored, values = rounded(plain, ends)
    save_file(stored, tmp_path / "small.safetensors")
    save_file(values, tmp_path / "wide.safetensors")
    part = open_image_file(tmp_path / "small.safetensors")["transformer"]
    wide = open_image_file(tmp_path / "wide.safetensors")["transformer"].source
    model = model_of(part)
    check(model.plan, part.source)
    for name in wide.names():
        np.testing.assert_array_equal(part.source.read(name), wide.read(name), err_msg=name)
        block = part.source.blocks(name)
        if isinstance(block, Scaled):
            np.testing.assert_array_equal(values_of(block), wide.read(name), err_msg=name)
    assert isinstance(part.source.blocks("transformer_blocks.0.attn.to_k.weight"), Scaled)
    place = Placement(jax.devices()[0], np.dtype(np.float32), False, "exact")
    weights = load(model.plan, part.source, place.place, place_blocks=place.place_blocks)
    expected = load(model.plan, wide, place.place)
    for leaf, whole in (
        (weights.double.image.q.weight, expected.double.image.q.weight),
        (weights.single.down.weight, expected.single.down.weight),
    ):
        assert isinstance(leaf, Quantized) and leaf.values.dtype == SMALL and leaf.rounding is None
        np.testing.assert_array_equal(dequantize(leaf, np.dtype(np.float32)), whole)
    np.testing.assert_array_equal(weights.modulation.weight, expected.modulation.weight)


def test_scales_of_outputs(tmp_path: Path) -> None:
    numbers, scales = np.arange(8).reshape(2, 4).astype(SMALL), np.array([2.0, 0.5], np.float32)
    save_file({"a.weight": numbers, "a.weight_scale": scales, "a.bias": numbers[0]}, tmp_path / "f.safetensors")
    source = opened(SafetensorsSource([tmp_path / "f.safetensors"]))
    assert set(source.names()) == {"a.weight", "a.bias"}
    np.testing.assert_array_equal(source.read("a.weight"), numbers.astype(np.float32) * scales[:, None])
    assert source.read("a.bias").dtype == np.float32 and source.blocks("a.bias") is None


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a.weight": np.zeros((2, 4), SMALL), "b.scale_weight": np.ones(())}, "no float8_e4m3 weight 'b.weight'"),
        ({"a.weight": np.zeros((2, 4), SMALL), "a.scale_weight": np.ones(3, np.float32)}, r"has shape \(3, 1\)"),
        ({"a.weight": np.zeros((2, 4), SMALL), "a.scale_weight": np.ones((), np.int8)}, "has dtype int8"),
    ],
)
def test_scales_that_do_not_fit(tensors: Tensors, words: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(CheckpointError, match=words):
        opened(SafetensorsSource([tmp_path / "f.safetensors"]))


def test_other_files_are_as_they_were(tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros((2, 4), np.float32)}, tmp_path / "f.safetensors")
    source = SafetensorsSource([tmp_path / "f.safetensors"])
    assert opened(source) is source
