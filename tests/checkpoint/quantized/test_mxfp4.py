"""MXFP4: every number by the format's table, and the experts' parts of it as leaves."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.assembly import OnDevice
from slipstream.checkpoint.loading import blocks_of, read
from slipstream.errors import CheckpointError
from slipstream.quant.leaf import form_of
from slipstream.spec.param import Axis, Dims, Param, Part
from slipstream.spec.source import Scaled, Source

EXPERTS, OUT, INPUTS = 3, 10, 64
TABLE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
NAME = "model.layers.0.mlp.experts.gate_up_proj"
CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def written(folder: Path, **changes: np.ndarray) -> tuple[Source, np.ndarray]:
    """A source of one weight, and its values [experts, inputs, out]."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (EXPERTS, OUT, INPUTS // 32, 16)).astype(np.uint8)
    scales = rng.integers(118, 131, (EXPERTS, OUT, INPUTS // 32)).astype(np.uint8)
    save_file({f"{NAME}_blocks": blocks, f"{NAME}_scales": scales, **changes}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": CONFIG}))
    values = np.empty((EXPERTS, INPUTS, OUT), np.float32)
    for e, out, at in np.ndindex(EXPERTS, OUT, INPUTS):
        byte = int(blocks[e, out, at // 32, at % 32 // 2])
        number = TABLE[byte >> 4 if at % 2 else byte & 15]
        values[e, at, out] = number * 2.0 ** (int(scales[e, out, at // 32]) - 127)
    return open_checkpoint(folder).source, values


def test_values_are_bit_exact(tmp_path: Path) -> None:
    source, values = written(tmp_path)
    assert set(source.names()) == {NAME}
    assert source.shape(NAME) == values.shape
    np.testing.assert_array_equal(source.read(NAME), values)


def test_gates_and_ups_that_alternate_become_leaves(tmp_path: Path) -> None:
    source, values = written(tmp_path)
    E, D, F = Axis("expert", "e", EXPERTS), Axis("embed", "d", INPUTS), Axis("mlp", "f", OUT // 2)
    for start in (0, 1):
        param = Param(Dims((E, D, F)), (NAME,), contract=("embed",), part=Part("f", start, OUT, step=2))
        stored = blocks_of(param, source)
        form = form_of(param, stored, np.dtype(ml_dtypes.bfloat16))
        assert form is not None and form.number == "fp4_e2m1" and form.scale_shape == (EXPERTS, 2, OUT // 2)
        leaf = form.read([one for one in stored if isinstance(one, Scaled)], partial(OnDevice, jax.devices()[0]))
        scales = np.repeat(np.asarray(leaf.scales).astype(np.float32), 32, axis=1)
        np.testing.assert_array_equal(np.asarray(leaf.values).astype(np.float32) * scales, values[..., start::2])
        np.testing.assert_array_equal(read(param, source), values[..., start::2])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gate_up_proj_scales.*shape"):
        source, _ = written(tmp_path, **{f"{NAME}_scales": np.zeros((EXPERTS, OUT, 1), np.uint8)})
        source.shape(NAME)
    blocks = {"model.layers.3.self_attn.o_proj_blocks": np.zeros((4, 2, 16), np.uint8)}
    with pytest.raises(CheckpointError, match=r"layers\.3\.self_attn\.o_proj is not quantized"):
        written(tmp_path, **blocks, **{"model.layers.3.self_attn.o_proj_scales": np.zeros((4, 2), np.uint8)})
