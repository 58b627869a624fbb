"""An image request, made ready to run: its fields checked, its upload decoded, one engine request an image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from slipstream.api.image_engine import ImageEngineInfo, ImageRequest, LoraUse, Pixels
from slipstream.api.images import (
    MAX_IMAGES,
    MAX_PARTIAL_IMAGES,
    MAX_PROMPT,
    ImageEditRequest,
    ImageFields,
    OutputFormat,
)
from slipstream.api.openai import refuse_unless_neutral
from slipstream.api.sampling import draw_seed
from slipstream.errors import RequestError
from slipstream.server.call import Call
from slipstream.server.front import new_id
from slipstream.server.image_coding import decode, fitted, fitted_mask, has_holes, mask_of, natural_size
from slipstream.server.image_inputs import Files

if TYPE_CHECKING:
    from PIL.Image import Image

SEEDS = 2**63
MAX_GUIDANCE = MAX_SCALE = 100.0
STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0

_SIZE = re.compile(r"(\d{1,6})[x×](\d{1,6})", re.ASCII | re.IGNORECASE)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "quality": ("auto", "standard"),
    "style": (),
    "input_fidelity": (),
}


@dataclass(frozen=True)
class ImageWork:
    """A request's images. `previews` are asked of the engine; `progress`: whether each step is told."""

    id: str
    created: int
    requests: tuple[ImageRequest, ...]
    kind: OutputFormat
    quality: int | None
    as_url: bool
    stream: bool
    progress: bool

    @property
    def size(self) -> str:
        """As OpenAI writes it."""
        return f"{self.requests[0].width}x{self.requests[0].height}"


@dataclass(frozen=True)
class Uploads:
    """What an edit begins with, decoded: the image, and what of it may change as white (None: all of it)."""

    image: Image
    mask: Image | None


def count(request: ImageFields) -> int:
    """Images that the request asks for. Raises RequestError for a number out of bounds."""
    n = 1 if request.n is None else request.n
    _within("n", n, 1, MAX_IMAGES)
    return n


def read_uploads(files: Files, info: ImageEngineInfo) -> Uploads:
    """Decode an edit's files: `image`, and `mask` where there is one. An image with holes is its own mask.

    Takes time: not for the event loop. Raises RequestError.
    """
    unknown = sorted(set(files) - {"image", "mask"})
    if unknown:
        raise RequestError(
            f"unknown file {unknown[0][:64]!r}: send image and mask", param=unknown[0][:64], code="unknown_field"
        )
    if "image" not in files:
        raise RequestError("image is required: a PNG, JPEG or WebP file", param="image", code="missing_field")
    for name, given in files.items():
        if len(given) > 1:
            raise RequestError(
                f"{name}: {len(given)} were sent, and {info.model} edits one image with one mask at a time: it begins "
                f"from its pixels, so that there is no place for another",
                param=name,
                code=f"too_many_{name}s",
            )
    image = decode(files["image"][0], "image")
    mask = mask_of(image) if has_holes(image) else None
    if "mask" in files:
        holes = decode(files["mask"][0], "mask")
        if holes.size != image.size:
            raise RequestError(
                f"mask: it has {holes.width}x{holes.height} pixels and the image {image.width}x{image.height}: "
                "they must be of one size",
                param="mask",
                code="invalid_mask",
            )
        mask = mask_of(holes)
    if mask is not None and not info.masks:
        raise RequestError("this model edits whole images: send no mask", param="mask", code="unsupported_field")
    return Uploads(image, mask)


def make_work(request: ImageFields, uploads: Uploads | None, info: ImageEngineInfo, call: Call) -> ImageWork:
    """The engine's requests. Takes time where there are uploads: not for the event loop.

    Raises RequestError for whatever the model cannot do, with what it can.
    """
    for name, neutral in _NEUTRAL.items():
        refuse_unless_neutral(name, getattr(request, name, None), neutral)
    stream = bool(request.stream)
    _need_stream(request, stream=stream)
    width, height = _size(request.size, uploads, info)
    steps = _one_of(request, ("steps", "num_inference_steps"))
    if steps is not None:
        _within("steps", steps, 1, info.max_steps)
    seed = draw_seed() % SEEDS if request.seed is None else request.seed
    _within("seed", seed, 0, SEEDS - 1)
    kind = request.output_format or "png"
    image, mask, strength = _start(request, uploads, width, height)
    id = new_id("img")
    shared = ImageRequest(
        id=id,
        prompt=_text("prompt", request.prompt),
        negative_prompt=_negative(request, info),
        width=width,
        height=height,
        steps=steps,
        guidance=_guidance(request),
        true_guidance=_true_guidance(request, info),
        sampler=_sampler(request.sampler, info),
        seed=seed,
        image=image,
        mask=mask,
        strength=strength,
        loras=_loras(request.loras or (), info),
        previews=request.partial_images or 0,
        arrival=call.arrival,
    )
    return ImageWork(
        id=id,
        created=int(call.arrival_ns // 10**9),
        requests=tuple(_nth(shared, i) for i in range(count(request))),
        kind=kind,
        quality=_quality(request.output_compression, kind),
        as_url=request.response_format == "url",
        stream=stream,
        progress=bool(request.progress),
    )


def _nth(shared: ImageRequest, index: int) -> ImageRequest:
    """The i-th image is what a request of its own with seed + i would give."""
    return replace(shared, id=f"{shared.id}-{index}", seed=(shared.seed + index) % SEEDS)


def _need_stream(request: ImageFields, *, stream: bool) -> None:
    if request.partial_images is not None:
        _within("partial_images", request.partial_images, 0, MAX_PARTIAL_IMAGES)
    for name, asked in (("partial_images", request.partial_images), ("progress", request.progress)):
        if asked and not stream:
            raise RequestError(f"{name} needs stream: true", param=name, code="invalid_combination")


def _size(size: str | None, uploads: Uploads | None, info: ImageEngineInfo) -> tuple[int, int]:
    if size is None or size == "auto":
        return (info.width, info.height) if uploads is None else natural_size(uploads.image, info)
    match = _SIZE.fullmatch(size)
    if match is None:
        raise RequestError(f"size: {size[:32]!r} is not WIDTHxHEIGHT, such as {info.width}x{info.height}", param="size")
    width, height = int(match[1]), int(match[2])
    if width % info.multiple or height % info.multiple:
        near = "x".join(
            str(max(info.multiple, round(side / info.multiple) * info.multiple)) for side in (width, height)
        )
        raise RequestError(
            f"size: width and height must be multiples of {info.multiple} for this model, got {width}x{height}; "
            f"{near} is near",
            param="size",
            code="invalid_size",
        )
    if min(width, height) < info.min_side:
        raise RequestError(
            f"size: width and height must be at least {info.min_side}, got {width}x{height}",
            param="size",
            code="invalid_size",
        )
    if width * height > info.max_pixels:
        raise RequestError(
            f"size: {width}x{height} is {width * height:,} pixels and this server makes at most {info.max_pixels:,}",
            param="size",
            code="invalid_size",
        )
    return width, height


def _start(
    request: ImageFields, uploads: Uploads | None, width: int, height: int
) -> tuple[Pixels | None, Pixels | None, float]:
    """The picture to begin with, its mask, and how much of it is made anew."""
    if uploads is None:
        return None, None, 1.0
    assert isinstance(request, ImageEditRequest)
    mask = None if uploads.mask is None else fitted_mask(uploads.mask, width, height)
    strength = request.strength
    if strength is None:
        strength = STRENGTH if mask is None else STRENGTH_WITH_MASK
    if not 0 < strength <= 1:
        raise RequestError(f"strength must be over 0 and at most 1, got {strength}", param="strength")
    return fitted(uploads.image, width, height), mask, strength


def _text(name: str, text: str) -> str:
    if len(text) > MAX_PROMPT:
        raise RequestError(f"{name} has {len(text)} characters, at most {MAX_PROMPT} are taken", param=name)
    return text


def _negative(request: ImageFields, info: ImageEngineInfo) -> str | None:
    negative = request.negative_prompt
    if negative is None:
        return None
    if negative and not info.negative:
        if not info.true_guidance:
            raise RequestError(
                "negative_prompt does not act on this model", param="negative_prompt", code="unsupported_field"
            )
        if (request.true_cfg_scale or 1.0) <= 1:
            raise RequestError(
                "negative_prompt acts on this model only with true_cfg_scale over 1",
                param="negative_prompt",
                code="invalid_combination",
            )
    return _text("negative_prompt", negative)


def _guidance(request: ImageFields) -> float | None:
    guidance = _one_of(request, ("guidance", "guidance_scale"))
    if guidance is None:
        return None
    _within("guidance", guidance, 0, MAX_GUIDANCE)
    return float(guidance)


def _true_guidance(request: ImageFields, info: ImageEngineInfo) -> float | None:
    scale = request.true_cfg_scale
    if scale is None:
        return None
    _within("true_cfg_scale", scale, 1, MAX_GUIDANCE)
    if not info.true_guidance:
        if scale == 1:
            return None
        raise RequestError(
            "true_cfg_scale is for models with guidance built in: use guidance",
            param="true_cfg_scale",
            code="unsupported_field",
        )
    return scale


def _sampler(sampler: str | None, info: ImageEngineInfo) -> str | None:
    if sampler is not None and sampler not in info.samplers:
        raise RequestError(
            f"sampler: {sampler[:64]!r} is not one of {', '.join(info.samplers)}",
            param="sampler",
            code="unknown_sampler",
        )
    return sampler


def _loras(loras: Sequence[LoraUse], info: ImageEngineInfo) -> tuple[LoraUse, ...]:
    names = [lora.name for lora in loras]
    for lora in loras:
        if lora.name not in info.loras:
            there = ", ".join(info.loras) if info.loras else "none was named when the server was started"
            raise RequestError(f"loras: {lora.name[:64]!r} is not one of: {there}", param="loras", code="unknown_lora")
        if not abs(lora.scale) <= MAX_SCALE:
            raise RequestError(
                f"loras: the scale of {lora.name} must be from -{MAX_SCALE:g} to {MAX_SCALE:g}, got {lora.scale}",
                param="loras",
            )
        if names.count(lora.name) > 1:
            raise RequestError(f"loras: {lora.name} is there more than once: name each once", param="loras")
    return tuple(loras)


def _quality(quality: int | None, kind: OutputFormat) -> int | None:
    if quality is None:
        return None
    _within("output_compression", quality, 0, 100)
    if kind == "png" and quality != 100:
        raise RequestError(
            "output_compression is for jpeg and webp: a png loses nothing",
            param="output_compression",
            code="invalid_combination",
        )
    return quality


def _one_of(request: ImageFields, names: tuple[str, str]) -> Any:
    """The value of a field that has two names, None where neither is given. Raises RequestError where they differ."""
    given = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    if len(set(given.values())) > 1:
        raise RequestError(
            f"{names[0]} and {names[1]} mean the same and differ: send one", param=names[0], code="invalid_combination"
        )
    return next(iter(given.values()), None)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise RequestError(f"{name} must be between {least} and {most}, got {value}", param=name)
