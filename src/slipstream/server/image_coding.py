"""Between pixels and files: uploads decoded within bounds, pictures encoded as PNG, JPEG or WebP.

An upload is hostile until shown otherwise: its header is read first, and nothing is decoded that would take more memory
than a picture of MAX_UPLOAD_PIXELS. Pillow is loaded where it is used: a server without an image model
does without.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from slipstream.api.image_engine import ImageEngineInfo, Pixels
from slipstream.api.images import OutputFormat
from slipstream.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_UPLOAD_PIXELS = 2**25
"""Most pixels of an upload: 33.5 million, 128 MiB once it is decoded."""

MEDIA_TYPES: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_FORMATS = ("PNG", "JPEG", "WEBP")
_PNG_LEVEL = 4
"""zlib's: 6, the usual one, takes twice the time for 2% fewer bytes."""

_OPAQUE = 255


def encode(pixels: Pixels, kind: OutputFormat, quality: int | None = None) -> bytes:
    """The picture as a file. `quality`: 0 to 100, of a JPEG or WebP; None: as Pillow has it."""
    from PIL.Image import fromarray

    image = fromarray(pixels.array.squeeze(-1) if pixels.channels == 1 else pixels.array)
    options: dict[str, Any] = {"compress_level": _PNG_LEVEL} if kind == "png" else {}
    if quality is not None and kind != "png":
        options["quality"] = quality
    file = io.BytesIO()
    image.save(file, kind.upper(), **options)
    return file.getvalue()


def decode(file: IO[bytes], param: str) -> Image:
    """An upload, upright, as RGB, or as RGBA where it has any transparency.

    Raises RequestError for what is no whole PNG, JPEG or WebP, and for one that is too large.
    """
    import PIL.Image as pillow
    from PIL.ImageOps import exif_transpose

    try:
        with pillow.open(file, formats=_FORMATS) as image:
            _check_pixels(image.width * image.height, param)
            image.load()
            exif_transpose(image, in_place=True)
            return _eight_bits(image)
    except RequestError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise _too_many_pixels(None, param) from None
    except Exception as error:
        # Whatever a damaged file makes the decoder raise (it has a dozen types for it), the file is at fault.
        reason = f" ({error})" if isinstance(error, OSError) and "truncated" in str(error) else ""
        raise RequestError(
            f"{param}: the upload is no readable PNG, JPEG or WebP image{reason}", param=param, code="invalid_image"
        ) from None


def mask_of(image: Image) -> Image:
    """What is to be painted anew, as white: the transparent part of a mask, or the white part of one without any."""
    from PIL.ImageOps import invert

    if image.mode == "RGBA":
        return invert(image.getchannel("A"))
    return image.convert("L")


def has_holes(image: Image) -> bool:
    """Whether any pixel is transparent."""
    if image.mode != "RGBA":
        return False
    least: Any = image.getchannel("A").getextrema()[0]
    return bool(least < _OPAQUE)


def fitted(image: Image, width: int, height: int) -> Pixels:
    """The picture cut to the aspect, around its middle, and scaled."""
    from PIL.Image import Resampling
    from PIL.ImageOps import fit

    picture = fit(image.convert("RGB"), (width, height), Resampling.LANCZOS)
    return Pixels.of(np.asarray(picture))


def fitted_mask(mask: Image, width: int, height: int) -> Pixels:
    """The same of a mask: every pixel is 0 or 255."""
    from PIL.Image import Resampling
    from PIL.ImageOps import fit

    scaled = np.asarray(fit(mask, (width, height), Resampling.BILINEAR))
    return Pixels.of(np.where(scaled >= 128, np.uint8(255), np.uint8(0))[..., None])


def natural_size(image: Image, info: ImageEngineInfo) -> tuple[int, int]:
    """The size nearest to the upload's own that the model takes, with no more pixels than the model's own size."""
    most = min(info.max_pixels, info.width * info.height)
    scale = min(1.0, math.sqrt(most / (image.width * image.height)))
    least = -(-info.min_side // info.multiple) * info.multiple
    width, height = (
        max(least, round(side * scale / info.multiple) * info.multiple) for side in (image.width, image.height)
    )
    while width * height > info.max_pixels:
        # Rounding up, or a very long picture: the longer side gives way.
        width, height = (width - info.multiple, height) if width >= height else (width, height - info.multiple)
    return width, height


def _eight_bits(image: Image) -> Image:
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        # Sixteen bits of grey: a plain conversion would clip them to white.
        from PIL.Image import fromarray

        shifted = np.right_shift(np.asarray(image), 8)
        image = fromarray(np.clip(shifted, 0, 255, out=shifted).astype(np.uint8))
    return image.convert("RGB")


def _check_pixels(pixels: int, param: str) -> None:
    if pixels > MAX_UPLOAD_PIXELS:
        raise _too_many_pixels(pixels, param)


def _too_many_pixels(pixels: int | None, param: str) -> RequestError:
    has = "far more" if pixels is None else f"{pixels:,}"
    return RequestError(
        f"{param}: the upload has {has} pixels and the server takes at most {MAX_UPLOAD_PIXELS:,}: make it smaller",
        param=param,
        code="image_too_large",
    )
