"""The image engine's settings. The command line's flags are these fields; each is read somewhere, a test holds that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from slipstream.errors import ConfigError

Tiling = Literal["auto", "always", "never"]
Quantization = Literal["int8", "fp8", "int4-g128", "int4-g64", "int4-g32"]

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
    tp
        Devices that the weights are sharded over.
    quantization
        What matrices of layers are rounded to as they are loaded, of a model that is not quantized. None: nothing.
    vae_tiling
        Whether pictures are decoded in overlapping tiles, which bounds memory and may change colours a little. auto:
        those of more than 1024x1024 pixels.
    slots
        Most passes of the model in a step. A picture takes one, or two with classifier-free guidance.
    sizes
        Sizes of pictures to compile at the start, such as 1024x768; others are compiled when they are first asked for.
        None named: the model's own.
    pools
        Sizes of pictures that are kept ready; one more drops the size that was idle longest.
    cache
        first-block: a step whose first block adds about what it added before takes the rest from there (Flux).
    cache_threshold
        With --cache: how large a difference, relative to what the first block adds, still counts as about the same.
    max_compiled_sizes
        Of how many sizes the compiled steps are kept; one more drops those of the size that was asked for longest ago.
    max_pixels
        Largest picture, as width times height.
    max_steps
        Most denoising steps of a picture.
    lora
        LoRA files that requests may ask for, each by its name and as much as it likes, as NAME=PATH, such as
        ink=ink.safetensors.
    merge_lora
        LoRA files that change the model for all, as PATH or PATH=SCALE, such as ink.safetensors=0.8; several add up.
    compile_cache
        Folder for compiled steps; None: under the user's cache folder; an empty string turns it off.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    variant: str | None = None
    file: str | None = None
    text_tokens: int | None = None
    tp: int = 1
    quantization: Quantization | None = None
    vae_tiling: Tiling = "auto"
    slots: int = 4
    sizes: tuple[str, ...] = ()
    pools: int = 4
    cache: Literal["none", "first-block"] = "none"
    cache_threshold: float = 0.1
    max_compiled_sizes: int = 8
    max_pixels: int = 2048 * 2048
    max_steps: int = 150
    lora: tuple[str, ...] = ()
    merge_lora: tuple[str, ...] = ()
    compile_cache: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        for name in ("tp", "slots", "pools", "max_compiled_sizes", "max_pixels", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of images must be at least 1, got {getattr(self, name)}")
        if not 0 < self.cache_threshold <= 1:
            raise ConfigError(f"cache_threshold must be over 0 and at most 1, got {self.cache_threshold}")
        if self.text_tokens is not None and not 1 <= self.text_tokens <= 512:
            raise ConfigError(f"text_tokens must be from 1 to 512, got {self.text_tokens}")
        for size in self.sizes:
            size_of(size)
        for name in ("pools", "max_compiled_sizes"):
            if len(self.sizes) > getattr(self, name):
                kept = getattr(self, name)
                raise ConfigError(f"{len(self.sizes)} sizes are to be compiled and {kept} kept: raise {name}")


def size_of(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT as two numbers. Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no size of a picture: write WIDTHxHEIGHT, such as 1024x768")
    return int(match[1]), int(match[2])
