"""`ImagePipeline`: what its calls take, check and give. What its models compute is compared in tests/parity."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

import slipstream
from slipstream import ImagePipeline
from slipstream.errors import CheckpointError, ConfigError, RequestError
from slipstream.image import _dtype
from tests.diffusion.fakes import EMBEDDED, engine


@pytest.fixture(scope="module")
def pipeline() -> ImagePipeline:
    """One of a fake model: its pictures have 16 x 16 pixels, its latents 2 channels of 8 x 8."""
    made = object.__new__(ImagePipeline)
    made.engine, made._ids = engine(EMBEDDED), itertools.count()
    return made


def test_it_is_exported() -> None:
    assert slipstream.ImagePipeline is ImagePipeline


def test_outputs(pipeline: ImagePipeline) -> None:
    [made] = pipeline.generate("a cat", seed=4)
    assert isinstance(made, Image.Image)
    assert made.size == (16, 16)
    values = pipeline.generate("a cat", seed=4, output="np")
    assert isinstance(values, np.ndarray)
    assert (values.shape, values.dtype) == ((1, 16, 16, 3), np.float32)
    assert 0 <= values.min() < values.max() <= 1
    np.testing.assert_array_equal(np.round(values[0] * 255), np.asarray(made))
    latents = pipeline.generate("a cat", seed=4, output="latent")
    assert isinstance(latents, np.ndarray)
    assert (latents.shape, latents.dtype) == ((1, 2, 8, 8), np.float32)


def test_several_prompts_and_pictures(pipeline: ImagePipeline) -> None:
    """Pictures of one prompt side by side, with the seeds that follow the first."""
    found = pipeline.generate(["a cat", "a dog"], n=2, seed=10, output="latent")
    for i, (prompt, seed) in enumerate([("a cat", 10), ("a cat", 11), ("a dog", 12), ("a dog", 13)]):
        alone = pipeline.generate(prompt, seed=seed, output="latent")
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-5, atol=1e-6)
    own = pipeline.generate("a cat", n=2, seed=[10, 12], output="latent")
    np.testing.assert_allclose(own[0], found[0], rtol=1e-5, atol=1e-6)


def test_no_seed_is_another_picture_each_time(pipeline: ImagePipeline) -> None:
    first, second = (pipeline.generate("a cat", output="latent", steps=1) for _ in range(2))
    assert not np.array_equal(first, second)


def test_given_latents_take_the_seeds_place(pipeline: ImagePipeline) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)
    first = pipeline.generate("a cat", n=2, seed=1, latents=noise, output="latent")
    again = pipeline.generate("a cat", n=2, seed=2, latents=noise, output="latent")
    np.testing.assert_array_equal(first, again)


def test_progress_counts_all_steps(pipeline: ImagePipeline) -> None:
    seen: list[tuple[str, int, int | None]] = []
    pipeline.generate("a cat", n=3, steps=2, progress=lambda *call: seen.append(call))
    assert seen == [("denoise", done, 6) for done in range(7)]


def test_a_call_that_is_interrupted_leaves_nothing(pipeline: ImagePipeline) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate("a cat", steps=50, progress=stop)
    assert pipeline.engine.counts().running == 0
    pipeline.generate("a cat", steps=1)


def test_a_picture_is_scaled_to_what_is_made(pipeline: ImagePipeline) -> None:
    given = Image.new("RGB", (35, 21), (200, 100, 50))
    [made] = pipeline.generate("a cat", image=given, strength=0.5)
    assert made.size == (32, 20)  # its own, cut to what the model takes
    [made] = pipeline.generate("a cat", image=given, mask=Image.new("L", (5, 5), 255), width=16, height=16)
    assert made.size == (16, 16)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output": "jpeg"}, "output"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": 1.5}, "n"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 40, "n": 2}, "prompt"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"latents": np.zeros((2, 8, 8), np.float32)}, "latents"),
        ({"latents": np.zeros((2, 2, 8, 8), np.float32)}, "latents"),
        ({"mask": np.zeros((16, 16))}, "mask"),
        ({"image": "cat.png"}, "image"),
        ({"image": np.zeros((16, 16, 3)), "width": 10_000, "height": 10_000}, "size"),
        ({"width": 10_000, "height": 10_000}, "size"),
        ({"steps": 0}, "steps"),
    ],
)
def test_refused(fields: dict[str, Any], param: str, pipeline: ImagePipeline) -> None:
    with pytest.raises(RequestError) as caught:
        pipeline.generate(**({"prompt": "a cat"} | fields))
    assert caught.value.param == param
    assert not pipeline.engine.has_work


def test_types() -> None:
    for given in ("float32", np.float32, np.dtype(np.float32), "auto"):
        assert _dtype(given) == np.float32
    assert _dtype(ml_dtypes.bfloat16) == _dtype("bfloat16")
    for given in ("int8", "half-ish", np.float64):
        with pytest.raises(ConfigError, match="dtype must be"):
            _dtype(given)


def test_what_is_no_image_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ImagePipeline(tmp_path, dtype="float32")
