"""Pictures as people have them (Pillow's, numpy's) and as models do: float32 [H, W, 3] in 0..1, masks [H, W]."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from PIL import Image

from slipstream.errors import RequestError

Picture: TypeAlias = "Image.Image | np.ndarray"
"""A Pillow image; or an array [H, W, 3], uint8 or floats in 0..1. A mask may also be [H, W]."""

MOST_PIXELS = 1 << 26
"""Of a picture that is given: 8192 x 8192. A larger one is refused before it is decoded or scaled."""


def size_of(picture: Picture, param: str = "image") -> tuple[int, int]:
    """Height and width. Raises RequestError for what is no picture, or too large a one; nothing is decoded."""
    if isinstance(picture, Image.Image):
        width, height = picture.size
    elif isinstance(picture, np.ndarray) and picture.ndim in (2, 3):
        height, width = picture.shape[:2]
    else:
        raise RequestError(f"{param} must be a Pillow image or an array [height, width, 3]", param=param)
    if not 0 < height * width <= MOST_PIXELS:
        raise RequestError(f"{param} has {width} x {height} pixels, at most {MOST_PIXELS} are read", param=param)
    return height, width


def to_array(picture: Picture, height: int, width: int) -> np.ndarray:
    """float32 [height, width, 3] in 0..1, scaled to that size if it has another. Raises RequestError."""
    size_of(picture)
    if not isinstance(picture, Image.Image):
        values = _checked(picture, "image")
        if values.ndim != 3 or values.shape[2] != 3:
            raise RequestError(f"image must be [height, width, 3], got {list(values.shape)}", param="image")
        if values.shape[:2] == (height, width):
            return values
        picture = to_pil(values)
    return _values(picture, height, width, "RGB", "image")


def to_mask(mask: Picture, height: int, width: int) -> np.ndarray:
    """float32 [height, width], 1 where the picture is to be repainted: where the mask is lighter than half."""
    size_of(mask, "mask")
    if not isinstance(mask, Image.Image):
        values = _checked(mask, "mask")
        values = values.mean(-1) if values.ndim == 3 else values
        mask = Image.fromarray(np.round(values * 255).astype(np.uint8))
    return (_values(mask, height, width, "L", "mask") >= 0.5).astype(np.float32)


def to_pil(picture: np.ndarray) -> Image.Image:
    """A Pillow image of float32 [H, W, 3] in 0..1."""
    return Image.fromarray(np.round(picture * 255).astype(np.uint8))


def _values(picture: Image.Image, height: int, width: int, mode: str, param: str) -> np.ndarray:
    try:
        if picture.mode not in ("RGB", "RGBA", "L"):  # a palette cannot be interpolated
            picture = picture.convert("RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(picture.convert(mode), np.float32) / np.float32(255)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a file that is cut off or corrupt
        raise RequestError(f"{param} cannot be decoded: {error}", param=param) from error


def _checked(values: np.ndarray, param: str) -> np.ndarray:
    """Floats in 0..1 as float32."""
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating) or not ((values >= 0) & (values <= 1)).all():
        raise RequestError(f"{param} must be uint8, or floats from 0 to 1", param=param)
    return values.astype(np.float32)
