"""What an image model needs, from config files alone: compiled for a CPU here, for real targets in tests/targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from slipstream.checkpoint.image_outline import image_outline
from slipstream.cli.compile_images import lines
from slipstream.diffusion.target import ImageReport, compile_images
from slipstream.diffusion.target_options import PictureOptions
from slipstream.engine.target_options import TargetOptions
from slipstream.errors import ConfigError

from . import tiny

LIMIT = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which only the config files are there."""
    path = tiny.written("StableDiffusionXLPipeline", tmp_path_factory.mktemp("sdxl") / "model")
    for file in (*path.rglob("*.safetensors"), *path.rglob("tokenizer*.json")):
        file.unlink()
    return path


def compiled(folder: Path, **asked: int) -> ImageReport:
    checkpoint = image_outline(str(folder))
    assert checkpoint is not None
    options = PictureOptions(**asked)
    return compile_images(checkpoint, options, jax.devices()[:1], dtype=np.dtype(np.float32), scheme=None, limit=LIMIT)


def test_what_a_pipeline_needs(folder: Path) -> None:
    report = compiled(folder, width=16, height=8, batch=2)
    assert (report.width, report.height, report.batch, report.passes) == (16, 8, 2, 4), "two passes for each picture"
    assert [part.name for part in report.parts] == ["text encoders", "denoising step", "decoding"]
    step = report.parts[1]
    assert step.needs.arguments > step.weights + report.pool, "the step also reads numbers"
    assert 0 < step.needs.donated <= report.pool, "what changes of the pool changes in place"
    assert report.temporaries == max(part.needs.temporaries + part.needs.own for part in report.parts)
    assert report.free == LIMIT - report.weights - report.pool - report.temporaries - report.code > 0

    said = lines("toy", TargetOptions(target="v6e-1"), report, "TPU v6e")
    assert said[0] == "toy (bfloat16) on v6e-1: fits with 2 pictures of 16x8 at once"
    small = replace(report, limit=1000)
    said = lines("toy", TargetOptions(target="v6e-1"), small, "TPU v6e")
    assert "does not fit" in said[0] and said[6].split()[0] == "missing"


def test_sizes_that_a_model_cannot_have(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--height 9 must be a multiple of"):
        compiled(folder, width=16, height=9)


def test_what_is_no_image_model(tmp_path: Path) -> None:
    assert image_outline(str(tmp_path)) is None and image_outline("llama-3.1-8b") is None
