"""The image engine's settings. The command line's flags are these fields; each is read somewhere, a test holds that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from slipstream.errors import ConfigError

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ImageEngineConfig:
    """Settings of one image engine.

    Parameters
    ----------
    dtype
        Type of weights and activations. auto: float32 on a CPU, bfloat16 on an accelerator.
    variant
        Which of a folder's sets of weights, such as fp16. None: the one without a name, or else the only one.
    file
        A .safetensors file as the models were first published, whose parts take the place of the folder's.
    text_tokens
        Tokens of a prompt that Flux's T5 reads. None: as the model was trained.
    slots
        Most passes of the model in a step. A picture takes one, or two with classifier-free guidance.
    sizes
        Sizes of pictures to compile at the start, such as 1024x768; others are compiled when they are first asked for.
        None named: the model's own.
    pools
        Sizes of pictures that are kept ready; one more drops the size that was idle longest.
    max_pixels
        Largest picture, as width times height.
    max_steps
        Most denoising steps of a picture.
    loras
        LoRA files that change the model, as PATH or PATH=SCALE, such as ink.safetensors=0.8; several add up.
    compile_cache
        Folder for compiled steps; None: under the user's cache folder; an empty string turns it off.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    variant: str | None = None
    file: str | None = None
    text_tokens: int | None = None
    slots: int = 4
    sizes: tuple[str, ...] = ()
    pools: int = 4
    max_pixels: int = 2048 * 2048
    max_steps: int = 150
    loras: tuple[str, ...] = ()
    compile_cache: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        for name in ("slots", "pools", "max_pixels", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of images must be at least 1, got {getattr(self, name)}")
        if self.text_tokens is not None and not 1 <= self.text_tokens <= 512:
            raise ConfigError(f"text_tokens must be from 1 to 512, got {self.text_tokens}")
        for size in self.sizes:
            size_of(size)
        if len(self.sizes) > self.pools:
            raise ConfigError(f"{len(self.sizes)} sizes are to be compiled and {self.pools} kept: raise pools")


def size_of(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT as two numbers. Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no size of a picture: write WIDTHxHEIGHT, such as 1024x768")
    return int(match[1]), int(match[2])
