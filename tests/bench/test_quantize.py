"""`slipstream quantize`: what is written is read back as what was rounded, and the report says how far it is."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from slipstream.bench.divergence import measure_copy
from slipstream.bench.quantize import QuantizeOptions, run
from slipstream.checkpoint import open_checkpoint, save_checkpoint
from slipstream.checkpoint.quantized.writing import write_quantized
from slipstream.checkpoint.stream import Described, Piece, write_pieces
from slipstream.errors import CheckpointError, ConfigError
from slipstream.models.registry import family
from slipstream.quant.rounding import SCHEMES, quantize
from slipstream.quant.scaled import dequantize
from slipstream.spec.source import Checkpoint, Scaled
from tests.checkpoint.quantized.files import CONFIG
from tests.models.harness import random_source

SMALL = {**CONFIG, "torch_dtype": "float32"}


def original(folder: Path, config: Mapping[str, Any] = SMALL) -> Checkpoint:
    return open_checkpoint(save_checkpoint(random_source(config), folder / "original", config))


def plan_of(config: Mapping[str, Any]) -> Any:
    row = family(config)
    return row.plan(row.from_hf({k: v for k, v in config.items() if k != "quantization_config"}))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rounding", [False, True])
def test_what_is_written_is_read_back(name: str, rounding: bool, tmp_path: Path) -> None:
    source, scheme = original(tmp_path), SCHEMES[name]
    if rounding and scheme.number == "int4":
        with pytest.raises(ConfigError, match="--scheme int8 or fp8"):
            write_quantized(source, plan_of(SMALL), scheme, rounding, tmp_path / "out")
        return
    written = write_quantized(source, plan_of(SMALL), scheme, rounding, tmp_path / "out")
    copy = open_checkpoint(tmp_path / "out")
    assert set(copy.source.names()) == set(source.source.names())
    quantized = 0
    for tensor in source.source.names():
        values, stored = source.source.read(tensor), copy.source.blocks(tensor)
        if not isinstance(stored, Scaled):
            np.testing.assert_array_equal(copy.source.read(tensor), values)
            assert "layers" not in tensor or values.ndim == 1
            continue
        quantized += 1
        data = quantize(values, scheme, np.dtype(np.float32))
        np.testing.assert_array_equal(copy.source.read(tensor), dequantize(data, (1, scheme.group or values.shape[1])))
        assert stored.rounding == ({"int8": "int8", "fp8": "fp8_e4m3"}[name] if rounding else None)
    assert quantized == written.quantized == 14
    assert written.bytes <= (tmp_path / "out" / "model.safetensors").stat().st_size < written.bytes + 10_000
    assert abs(written.bits - {"int8": 8, "fp8": 8}.get(name, 4) - 32 / (scheme.group or 256)) < 0.1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head", "model.embed_tokens"]


def test_scales_and_what_is_not_quantized_have_the_config_s_type(tmp_path: Path) -> None:
    config = {key: value for key, value in SMALL.items() if key != "torch_dtype"}
    write_quantized(original(tmp_path, config), plan_of(config), SCHEMES["int8"], False, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16", "int32", "int64"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_command_writes_and_compares(tmp_path: Path) -> None:
    source, printed = original(tmp_path), io.StringIO()
    run(source, tmp_path / "out", QuantizeOptions(scheme="int4-g64"), console=Console(file=printed, width=200))
    assert "14 matrices" in printed.getvalue() and "no tokenizer" in printed.getvalue()
    texts = [np.random.default_rng(i).integers(0, 128, 40).tolist() for i in range(2)]
    found = measure_copy(source, open_checkpoint(tmp_path / "out"), texts, step_tokens=32)
    assert found.kl.shape == (78,)
    assert 1e-4 < found.kl.mean() < 0.2 and 0.5 < found.agrees.mean() <= 1


def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path: Path) -> None:
    config = {**SMALL, "intermediate_size": 192}
    source, out = original(tmp_path, config), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"down_proj\.weight has 192 inputs.*use int4-g64"):
        write_quantized(source, plan_of(config), SCHEMES["int4-g128"], False, out)
    with pytest.raises(ConfigError, match="dtype 'float64'"):
        wide = replace(source, config={**config, "torch_dtype": "float64"})
        write_quantized(wide, plan_of(config), SCHEMES["int8"], False, out)
    assert not out.exists()
    with pytest.raises(ConfigError, match="is not empty"):
        write_quantized(source, plan_of(config), SCHEMES["int8"], False, source.path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    source = random_source(SMALL)
    tensors = {name: np.array(source.read(name)) for name in source.names()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf

    class Broken:
        names, shape, blocks = source.names, source.shape, source.blocks

        def read(self, name: str) -> np.ndarray:
            return tensors[name]

    checkpoint = replace(original(tmp_path), source=Broken())
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: some weights are not finite"):
        write_quantized(checkpoint, plan_of(SMALL), SCHEMES["int8"], False, tmp_path / "out")


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full((10, 10), i, np.float32) for i in range(5)}
    pieces = [
        Piece((Described(name, array.dtype, array.shape),), lambda array=array: [array])
        for name, array in arrays.items()
    ]
    reports: list[tuple[str, int, int | None]] = []
    total = write_pieces(
        pieces, tmp_path, stage="write", progress=lambda *report: reports.append(report), shard_bytes=900
    )
    assert total == 2000 and reports[-1] == ("write", 2000, 2000)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    (tmp_path / "config.json").write_text("{}")
    source = open_checkpoint(tmp_path).source
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array)
