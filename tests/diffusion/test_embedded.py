"""The image model that comes with the package: it is small, it has its licence, and what it draws can be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream import ImagePipeline
from slipstream.checkpoint.builtin import EMBEDDED

GOLDEN = Path(__file__).parents[1] / "golden/emoji/emoji.npz"


@pytest.fixture(scope="module")
def pipeline() -> ImagePipeline:
    return ImagePipeline("emoji-flux")


def names_of(pictures: np.ndarray) -> list[str]:
    """The emoji to which each of float32 [n, 64, 64, 3] is nearest, pixel by pixel."""
    with np.load(GOLDEN) as stored:
        names, known = stored["names"].tolist(), stored["pictures"].astype(np.float32) / 255
    distances = ((pictures[:, None] - known[None]) ** 2).mean((2, 3, 4))
    return [names[i] for i in distances.argmin(1)]


def test_it_is_small_and_has_its_papers() -> None:
    model = EMBEDDED["emoji-flux"]
    assert 5_000_000 < model.size <= 20_000_000
    assert "Apache License" in (model.path / "LICENSE").read_text()
    assert "Noto" in (model.path / "README.md").read_text()
    for log, best in (("autoencoder.csv", "psnr"), ("transformer.csv", "loss")):
        header, *rows = (model.path / log).read_text().splitlines()
        assert header.split(",")[-1] == best and len(rows) > 20


@pytest.mark.parametrize("prompt", ["red apple", "smiling face"])
def test_what_it_draws_can_be_told(pipeline: ImagePipeline, prompt: str) -> None:
    """The nearest of 56 emoji, tomatoes, green apples and other faces among them, for two seeds of three."""
    pictures = pipeline.generate(prompt, n=3, seed=0, output="np")
    assert isinstance(pictures, np.ndarray) and pictures.shape == (3, 64, 64, 3)
    told = names_of(pictures)
    assert told.count(prompt) >= 2, told


def test_another_prompt_draws_something_else(pipeline: ImagePipeline) -> None:
    apple, tree = (pipeline.generate(prompt, seed=0, output="np")[0] for prompt in ("red apple", "deciduous tree"))
    assert names_of(apple[None]) != names_of(tree[None])
