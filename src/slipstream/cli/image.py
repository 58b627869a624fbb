"""`slipstream image`: pictures from a prompt, made in this process or by a server, with a bar of their steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from slipstream.api.image_engine import LoraUse
from slipstream.api.images import ImageEditRequest, ImageFields, ImageGenerationRequest
from slipstream.cli.console import err
from slipstream.cli.image_sources import Picture, Tell, format_of, made_by_server, made_here
from slipstream.cli.progress import StageBars
from slipstream.cli.replies import client
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.errors import ConfigError

DEFAULT_MODEL = "emoji-flux"


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Settings of `slipstream image`.

    Parameters
    ----------
    model
        The image model: a folder in diffusers' layout, or org/name on Hugging Face; emoji-flux, which comes
        with the package, if none is named. With --url: its name there, or the one served.
    url
        Ask the server at this address. Without it the model runs here.
    output
        The file to write: .png, .jpg or .webp. Of several images each gets a number before the ending.
    number
        How many images, 1 to 10.
    size
        WIDTHxHEIGHT in pixels. None: the model's own, or with --edit that of the picture.
    steps
        Denoising steps. None: as the model was made for.
    guidance
        How closely the prompt is followed. None: as the model was made for.
    negative
        What the image should not show.
    true_cfg
        Classifier-free guidance for models that have guidance built in; over 1 a negative prompt acts.
    sampler
        The way from noise to image. None: the model's own.
    use_lora
        LoRAs to use of those that --lora names, or that the server has, as NAME or NAME=SCALE.
    seed
        The same seed and settings give the same image. None: drawn, and printed.
    edit
        A picture to change.
    mask
        What of it may change: the transparent part of this file, or the white part of one without transparency.
    strength
        With --edit: how much is made anew, over 0 to 1.
    """

    model: str | None = None
    url: str | None = None
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("image.png")
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 1
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    true_cfg: float | None = None
    sampler: str | None = None
    use_lora: tuple[str, ...] = ()
    seed: int | None = None
    edit: Path | None = None
    mask: Path | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        if self.edit is None and (self.mask is not None or self.strength is not None):
            raise ConfigError("--mask and --strength need a picture to change: --edit")
        if not self.output.parent.is_dir():
            raise ConfigError(f"there is no folder {self.output.parent} to write {self.output.name} into")


def image(
    prompt: str,
    /,
    *,
    options: Annotated[ImageOptions, Parameter(name="*")] = ImageOptions(),
    engine: Annotated[ImageEngineConfig, Parameter(name="*")] = ImageEngineConfig(),
) -> None:
    """Make images from a prompt, or change one. Without --model and --url a small model that draws emoji makes them.

    Parameters
    ----------
    prompt
        What the image should show.
    """
    body = body_of(prompt, options)
    given = {"image": options.edit, "mask": options.mask}
    files = {name: path for name, path in given.items() if path is not None}
    with StageBars() as bars:

        def tell(index: int, step: int, steps: int) -> None:
            bars("denoise" if options.number == 1 else f"denoise image {index + 1}", step, steps)

        pictures = _pictures(options, engine, body, files, bars, tell)
    for path, picture in zip(paths_of(options.output, len(pictures)), pictures, strict=True):
        path.write_bytes(picture.data)
        err().print(f"{path} (seed {picture.seed})")


def _pictures(
    options: ImageOptions,
    engine: ImageEngineConfig,
    body: ImageFields,
    files: dict[str, Path],
    bars: StageBars,
    tell: Tell,
) -> list[Picture]:
    if options.url is not None:
        with client(options.url) as http:
            return made_by_server(http, body, files, tell)
    from slipstream.checkpoint import resolve
    from slipstream.checkpoint.image_folder import is_image_folder

    model = options.model or DEFAULT_MODEL
    path = resolve(model, progress=bars)
    if not is_image_folder(path):
        raise ConfigError(f"{model} makes no images: it must be a folder in diffusers' layout, with a model_index.json")
    return made_here(path, engine, body, files, bars, tell)


def body_of(prompt: str, options: ImageOptions) -> ImageFields:
    """The request that a server would get. Raises ConfigError for a file name that asks for no known format."""
    edits = options.edit is not None
    body: ImageFields = ImageEditRequest(prompt=prompt) if edits else ImageGenerationRequest(prompt=prompt)
    body.model = options.model if options.url is not None else None
    body.n = options.number
    body.size = options.size
    body.steps = options.steps
    body.guidance = options.guidance
    body.negative_prompt = options.negative
    body.true_cfg_scale = options.true_cfg
    body.sampler = options.sampler
    body.loras = [lora_of(text) for text in options.use_lora] or None
    body.seed = options.seed
    body.output_format = format_of(options.output)
    if isinstance(body, ImageEditRequest):
        body.strength = options.strength
    return body


def lora_of(text: str) -> LoraUse:
    """NAME or NAME=SCALE. Raises ConfigError for a scale that is no number."""
    name, _, scale = text.partition("=")
    try:
        return LoraUse(name, float(scale) if scale else 1.0)
    except ValueError:
        raise ConfigError(f"--use-lora {text}: write NAME or NAME=SCALE, such as ink=0.8") from None


def paths_of(output: Path, count: int) -> list[Path]:
    """The files of so many images: apple.png, or apple-1.png, apple-2.png."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i + 1}") for i in range(count)]
