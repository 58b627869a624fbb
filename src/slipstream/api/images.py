"""The HTTP API's requests and replies for images: OpenAI's bodies, with diffusers' names for what OpenAI has no field.

`steps`, `guidance`: the short names; `num_inference_steps` and `guidance_scale`, which diffusers and other servers use,
mean the same. Fields that are UNSET are left out of the JSON.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from slipstream.api.image_engine import LoraUse

OutputFormat = Literal["png", "jpeg", "webp"]

MAX_IMAGES = 10
"""Most images of a request, as OpenAI has it."""

MAX_PARTIAL_IMAGES = 3
"""Most previews of an image, as OpenAI has it."""

MAX_PROMPT = 32_000
"""Most characters of a prompt, as OpenAI has it."""


class ImageFields(msgspec.Struct, kw_only=True):
    """The fields that generations and edits share. Abstract: requests are one of its two children."""

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    seed: int | None = None
    steps: int | None = None
    num_inference_steps: int | None = None
    guidance: float | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    sampler: str | None = None
    loras: list[LoraUse] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: OutputFormat | None = None
    output_compression: int | None = None
    stream: bool | None = None
    partial_images: int | None = None
    progress: bool | None = None
    background: str | None = None
    moderation: str | None = None
    quality: str | None = None
    style: str | None = None


class ImageGenerationRequest(ImageFields, kw_only=True):
    """POST /v1/images/generations.

    Parameters
    ----------
    prompt
        What the image should show.
    model
        The image model's name; absent: the one served.
    n
        Number of images, 1 to 10. Image i is drawn with seed + i.
    size
        WIDTHxHEIGHT in pixels, such as 1024x768, or auto: the model's own. GET /v1/models tells the model's limits.
    seed
        The same seed and request give the same images. Absent: drawn; the reply names it.
    steps
        Denoising steps. Absent: as the model was made for.
    num_inference_steps
        The same as steps.
    guidance
        How closely the prompt is followed, on the model's own scale.
    guidance_scale
        The same as guidance.
    true_cfg_scale
        Classifier-free guidance for models that have guidance built in (Flux). It makes a negative prompt act, and
        takes twice the time; 1 is none.
    negative_prompt
        What the image should not show.
    sampler
        The way from noise to image, one of those that GET /v1/models lists. Absent: the model's own.
    loras
        LoRAs of the server to use, each with a scale: [{"name": "ink", "scale": 0.8}]. GET /v1/models lists them.
    response_format
        b64_json: the image in the reply (default); url: the address of a file on this server, for a while.
    output_format
        png (default), jpeg or webp.
    output_compression
        Quality of a jpeg or webp, 0 to 100.
    stream
        Send previews and images as server-sent events.
    partial_images
        With stream: previews of each image, 0 to 3.
    progress
        With stream: also an event image_generation.progress after each step, which OpenAI does not have.
    background
        Only auto or opaque: images have no transparency.
    moderation
        Only auto or low: nothing is moderated here.
    quality
        Only auto or standard: use steps.
    style
        Not supported: say it in the prompt.
    """


class ImageReference(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A picture in a JSON body: `image_url` is a data URL, or base64 as such."""

    image_url: str


class ImageEditRequest(ImageFields, kw_only=True):
    """POST /v1/images/edits, as multipart/form-data or as JSON. Fields that are not listed are those of a generation.

    Parameters
    ----------
    image
        In a form a file; in JSON a data URL, or the base64 of a PNG, JPEG or WebP. One: no model here takes several.
    images
        The same as image, as OpenAI's JSON has it: [{"image_url": "data:image/png;base64,..."}].
    mask
        What may change, of the image's size: a file, a data URL, base64, or {"image_url": ...}.
    size
        As for a generation; auto (default): the uploaded image's, rounded and scaled to what the model takes.
    strength
        How much of the image is made anew: 1 keeps nothing but what the mask keeps, 0 keeps all. Default 0.8, with a
        mask 1.
    input_fidelity
        Not supported: use strength.
    """

    image: str | list[str] | None = None
    images: list[ImageReference] | None = None
    mask: str | ImageReference | None = None
    strength: float | None = None
    input_fidelity: str | None = None


class GeneratedImage(msgspec.Struct, kw_only=True):
    """One image: in base64, or as the address of a file."""

    b64_json: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    seed: int


class ImagesReply(msgspec.Struct, kw_only=True):
    """The answer of both."""

    created: int
    data: list[GeneratedImage]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str


class ImageEvent(msgspec.Struct, kw_only=True):
    """What the events of a stream share. `index` counts the request's images from 0, `step` the steps done."""

    type: str
    created_at: int
    index: int
    step: int
    steps: int


class ImageProgress(ImageEvent, kw_only=True):
    """image_generation.progress, image_edit.progress: sent only where progress is asked for."""


class PartialImage(ImageEvent, kw_only=True):
    """image_generation.partial_image, image_edit.partial_image: a preview, `partial_image_index` from 0.

    `size` is the image's; a preview may be smaller.
    """

    partial_image_index: int
    b64_json: str
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str


class CompletedImage(ImageEvent, kw_only=True):
    """image_generation.completed, image_edit.completed: the image."""

    b64_json: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    seed: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str


class ImageModelLimits(msgspec.Struct, kw_only=True):
    """What may be asked of an image model: a part of its entry in /v1/models.

    `size`, `steps`, `guidance`, `sampler`: what a request that says nothing gets. Width and height are multiples of
    `multiple`, at least `min_side`, and at most `max_pixels` in all. `loras`: names of those that may be used.
    """

    size: str
    multiple: int
    min_side: int
    max_pixels: int
    steps: int
    max_steps: int
    guidance: float
    sampler: str
    samplers: tuple[str, ...]
    negative_prompt: bool
    true_cfg_scale: bool
    edits: bool
    masks: bool
    loras: tuple[str, ...]
