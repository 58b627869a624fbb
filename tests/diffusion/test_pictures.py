"""Pictures in and out: kinds, sizes, and what is no picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from slipstream.diffusion.pictures import size_of, to_array, to_mask, to_pil
from slipstream.errors import RequestError

VALUES = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["pil", "uint8", "float"])
def test_kinds(kind: str) -> None:
    given = {"pil": Image.fromarray(VALUES), "uint8": VALUES, "float": VALUES / np.float32(255)}[kind]
    assert size_of(given) == (6, 8)
    np.testing.assert_allclose(to_array(given, 6, 8), VALUES / 255, atol=1e-7)
    assert to_array(given, 12, 4).shape == (12, 4, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_modes(mode: str) -> None:
    given = Image.fromarray(VALUES).convert("L" if mode == "I;16" else mode).convert(mode)
    found = to_array(given, 3, 4)
    assert found.shape == (3, 4, 3)
    assert found.min() >= 0
    assert found.max() <= 1


def test_masks_are_all_or_nothing() -> None:
    shade = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert to_mask(shade, 4, 4).sum() == 8
    assert to_mask(np.repeat(shade[..., None], 3, 2), 4, 4).sum() == 8
    assert to_mask(Image.fromarray((shade * 255).astype(np.uint8)), 8, 8).shape == (8, 8)
    assert to_mask(shade > 0.7, 4, 4).sum() == (shade > 0.7).sum()


def test_to_pillow_and_back() -> None:
    np.testing.assert_array_equal(np.asarray(to_pil(VALUES / np.float32(255))), VALUES)


@pytest.mark.parametrize(
    "given", ["cat.png", np.zeros(5), np.zeros((4, 4, 4)), np.zeros((4, 4, 3)) - 1, np.zeros((4, 4, 3), np.int64), None]
)
def test_what_is_no_picture(given: object) -> None:
    with pytest.raises(RequestError):
        to_array(given, 4, 4)  # type: ignore[arg-type]


def test_too_large_to_be_scaled() -> None:
    wide = np.broadcast_to(np.uint8(0), (10_000, 10_000, 3))
    with pytest.raises(RequestError, match="at most"):
        to_array(wide, 8, 8)


def test_a_file_that_is_cut_off() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:4000]))
    with pytest.raises(RequestError, match="cannot be decoded"):
        to_array(cut, 32, 32)
