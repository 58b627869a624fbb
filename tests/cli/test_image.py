"""`slipstream image`: files from an engine in this process, and from a server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from slipstream.cli import image as command
from slipstream.cli import main, progress
from slipstream.cli.image import ImageOptions
from slipstream.diffusion import start as starting
from slipstream.diffusion.start import ready
from slipstream.errors import ConfigError
from slipstream.kernels.compiles import CompileCounter
from tests.diffusion import fakes
from tests.server import conftest as real
from tests.server.image_client import ImageMemory, picture_of

start = real.start


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    text = io.StringIO()
    for module in (progress, command, main):
        console = Console(file=text, soft_wrap=True, highlight=False)
        if hasattr(module, "err"):
            monkeypatch.setattr(module, "err", lambda console=console: console)
    monkeypatch.setattr(main, "print_error", lambda message: text.write(f"error: {message}\n"))
    yield text


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like an image model, and an engine that is started for it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")

    def begin(path: Path, config: Any, report: Any) -> starting.ImageEngine:
        assert path == folder and config.slots == 2
        return ready(fakes.engine(batches=(1, 2)), path.name, "flux", "float32", (), CompileCounter(), report)

    monkeypatch.setattr(starting, "start", begin)
    return folder


def opened(path: Path) -> tuple[str | None, np.ndarray]:
    """A file's format and its pixels."""
    with Image.open(path) as image:
        return image.format, np.asarray(image)


def test_in_this_process(model: Path, tmp_path: Path, said: io.StringIO) -> None:
    out = tmp_path / "a.png"
    line = ["image", "a cat", "--model", str(model), "-o", str(out), "-n", "2", "--seed", "5", "--size", "16x24"]
    assert main.run([*line, "--steps", "4", "--slots", "2"]) == 0, said.getvalue()
    pictures = [opened(tmp_path / f"a-{i}.png")[1] for i in (1, 2)]
    for seed, picture in zip((5, 6), pictures, strict=True):
        request = fakes.request("x", prompt="a cat", seed=seed, steps=4, width=16, height=24)
        expected = fakes.run(fakes.engine(), [request])["x"].picture
        assert expected is not None
        np.testing.assert_array_equal(picture, (expected * 255).round())
    shown = said.getvalue()
    assert "compile: 1 in" in shown and "denoise image 2: 4 in" in shown
    assert f"{tmp_path / 'a-1.png'} (seed 5)" in shown


def test_an_edit_in_this_process(model: Path, tmp_path: Path, said: io.StringIO) -> None:
    given = tmp_path / "given.png"
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(given)
    out = tmp_path / "out.jpg"
    line = ["image", "x", "--model", str(model), "-o", str(out), "--edit", str(given), "--slots", "2"]
    assert main.run([*line, "--strength", "0.5"]) == 0, said.getvalue()
    kind, picture = opened(out)
    assert kind == "JPEG" and picture.shape == (16, 16, 3)
    assert "denoise: 3 in" in said.getvalue(), "half of six steps"


def test_by_a_server(start: real.Start, tmp_path: Path, said: io.StringIO) -> None:
    images = ImageMemory()
    live = start(images=images)
    line = ["image", "a dog", "--url", live.url, "-n", "2", "--seed", "3"]
    assert main.run([*line, "-o", str(tmp_path / "b.png"), "--steps", "5"]) == 0, said.getvalue()
    for i in (0, 1):
        picture = opened(tmp_path / f"b-{i + 1}.png")[1]
        np.testing.assert_array_equal(picture, picture_of(images.requests[i]))
    assert "denoise image 1: 5 in" in said.getvalue()
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    line = ["image", "x", "--url", live.url, "--edit", str(tmp_path / "b-1.png"), "--mask", str(mask)]
    assert main.run([*line, "-o", str(tmp_path / "c.webp")]) == 0, said.getvalue()
    assert images.requests[-1].mask is not None and images.requests[-1].strength == 1.0
    assert opened(tmp_path / "c.webp")[0] == "WEBP"
    # What the server refuses is told, and nothing is written.
    assert main.run(["image", "x", "--url", live.url, "--size", "65x48", "-o", str(tmp_path / "d.png")]) == main.FAILED
    assert "multiples of 16" in said.getvalue()
    assert main.run(["image", "broken", "--url", live.url, "-o", str(tmp_path / "d.png")]) == main.FAILED
    assert "the engine is broken" in said.getvalue()
    assert not (tmp_path / "d.png").exists()


def test_what_cannot_work_is_said_at_once(tmp_path: Path, said: io.StringIO) -> None:
    for wrong in ({"url": "u", "mask": Path("m")}, {"url": "u", "output": tmp_path / "no" / "a.png"}):
        with pytest.raises(ConfigError):
            ImageOptions(**wrong)
    assert main.run(["image", "x", "--url", "http://127.0.0.1:9", "-o", str(tmp_path / "a.gif")]) == main.USAGE
    assert main.run(["image", "x", "--url", "http://127.0.0.1:9", "-o", str(tmp_path / "a.png")]) == main.FAILED
    assert main.run(["image", "x", "--model", str(tmp_path), "-o", str(tmp_path / "a.png")]) == main.USAGE
    missing = ["--edit", str(tmp_path / "none.png"), "-o", str(tmp_path / "a.png")]
    assert main.run(["image", "x", "--url", "http://127.0.0.1:9", *missing]) == main.USAGE
    text = said.getvalue()
    assert ".png, .jpg or .webp" in text and "no server answers" in text and "makes no images" in text
    assert "cannot read" in text
