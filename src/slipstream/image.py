"""`ImagePipeline`: an image model in this process, for scripts and notebooks."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import jax
import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from slipstream.checkpoint import Progress, resolve
from slipstream.checkpoint.image_opening import open_images
from slipstream.checkpoint.lora import Lora
from slipstream.checkpoint.progress import silent
from slipstream.diffusion.config import Tiling
from slipstream.diffusion.engine import Finished, PictureEngine, PoolOptions, Progressed
from slipstream.diffusion.loading import load_engine
from slipstream.diffusion.pictures import Picture, size_of, to_array, to_mask, to_pil
from slipstream.diffusion.request import SEEDS, Limits, PictureRequest, size
from slipstream.diffusion.reuse import Reuse
from slipstream.errors import ConfigError, RequestError
from slipstream.kernels.ragged import Kernels
from slipstream.quant.rounding import SCHEMES

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

MOST_IMAGES = 64
"""Of one call."""

Output: TypeAlias = Literal["pil", "np", "latent"]


class ImagePipeline:
    """A model that makes pictures in this process: Flux or Stable Diffusion XL. Not thread safe.

    >>> from slipstream import ImagePipeline
    >>> pipeline = ImagePipeline("black-forest-labs/FLUX.1-schnell", dtype="bfloat16")
    >>> pipeline.generate("a red apple on a wooden table", seed=7)[0].save("apple.png")
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: DTypeLike = "auto",
        variant: str | None = None,
        file: str | Path | None = None,
        loras: Mapping[str, str | Path] | None = None,
        merge_loras: Mapping[str | Path, float] | None = None,
        text_tokens: int | None = None,
        tp: int = 1,
        quantization: str | None = None,
        vae_tiling: Tiling | None = None,
        options: PoolOptions | None = None,
        limits: Limits | None = None,
        kernels: Kernels | None = None,
        progress: Progress = silent,
    ) -> None:
        """Load `model`: a name, or a folder in diffusers' layout. A size of pictures is compiled at its first use.

        `dtype`: float32, bfloat16 or float16; auto is float32 on a CPU and bfloat16 on an accelerator. `variant`: which
        set of weights, where a folder has several ("fp16"). `file`: a .safetensors file as the models were first
        published, whose parts take the place of the folder's. `text_tokens`: how long a text Flux's T5 reads.
        `loras`: LoRA files by the names that `generate` calls them. `merge_loras`: files that change the weights for
        all pictures, and how much of each: 1 is as it was trained. `tp`: how many devices the weights are sharded
        over. `quantization`: what matrices of layers are rounded to as they are loaded: int8, fp8, int4-g128, int4-g64
        or int4-g32. `vae_tiling`: whether pictures are decoded in tiles: auto (None), always or never; it takes the
        place of what `options` say.
        `options`: how pictures share steps. `limits`: of sizes and steps. `kernels`: None for those that the device is
        fastest with. Raises SlipstreamError's subclasses.
        """
        if text_tokens is not None and not 1 <= text_tokens <= 512:
            raise ConfigError(f"text_tokens must be from 1 to 512, got {text_tokens}")
        if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1:
            raise ConfigError(f"tp must be a whole number of devices, at least 1, got {tp!r}")
        if quantization is not None and quantization not in SCHEMES:
            raise ConfigError(f"quantization must be one of {', '.join(SCHEMES)}, got {quantization!r}")
        if vae_tiling not in (None, *get_args(Tiling)):
            raise ConfigError(f"vae_tiling must be one of {', '.join(get_args(Tiling))}, got {vae_tiling!r}")
        if vae_tiling is not None:
            options = replace(options or PoolOptions(), tiling=vae_tiling)
        checkpoint = open_images(
            resolve(str(model), progress=progress),
            variant=variant,
            file=None if file is None else Path(file),
            loras=[Lora(Path(path), scale) for path, scale in (merge_loras or {}).items()],
        )
        self.engine: PictureEngine = load_engine(
            checkpoint,
            dtype=_dtype(dtype),
            text_tokens=text_tokens,
            tp=tp,
            quantization=quantization,
            options=options,
            limits=limits,
            kernels=kernels,
            adapters={name: Path(path) for name, path in (loras or {}).items()},
            progress=progress,
        )
        self._ids = itertools.count()

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        true_guidance: float | None = None,
        seed: int | Sequence[int] | None = None,
        n: int = 1,
        sampler: str | None = None,
        latents: np.ndarray | None = None,
        image: Picture | None = None,
        mask: Picture | None = None,
        strength: float | None = None,
        loras: Mapping[str, float] | None = None,
        reuse: Reuse | None = None,
        first_block: float | None = None,
        output: Output = "pil",
        progress: Progress = silent,
    ) -> list[Image.Image] | np.ndarray:
        """Pictures of a prompt, or of each of several; `n` of each, those of one prompt side by side.

        `width`, `height`: pixels; None: as the model was trained, or the size of `image`. `guidance`: how closely the
        prompt is followed. SDXL: true guidance, against `negative_prompt`; over 1 takes two passes of the model a step.
        Flux dev: an input of the model, and `true_guidance` over 1 brings a negative prompt in. Schnell: read with a
        negative prompt only, as true guidance.

        `seed`: of the first picture; those after it have the seeds that follow. Or one for each. A seed gives the same
        picture whatever is made beside it. `latents`: unit noise [pictures, channels, height / 8, width / 8] in place
        of the seeds'. `sampler`: one of `schedule.SAMPLERS`, None: the checkpoint's.

        `image` is changed by `strength` (0..1, 0.6 if None); where there is a `mask`, only its light part is (strength
        1 if None). Both are scaled to the size that is made. `loras`: how much of each that was named at the start, 1
        being as it was trained; those that are left out do nothing. `reuse`: steps that are guessed.
        `first_block`: the limit of first-block caching (`PoolOptions.first_block` turns it on), 0 for none.

        Gives Pillow images; "np": float32 [pictures, height, width, 3] in 0..1; "latent": float32 [pictures, channels,
        height / 8, width / 8] as the model made them. `progress` gets the stage "denoise" in steps of all pictures.

        Raises RequestError for what cannot be made, before anything is computed.
        """
        if output not in ("pil", "np", "latent"):
            raise RequestError(f"output must be pil, np or latent, got {output!r}", param="output")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST_IMAGES:
            raise RequestError(f"n must be a whole number from 1 to {MOST_IMAGES}, got {n!r}", param="n")
        count = len(prompts) * n
        if not 1 <= count <= MOST_IMAGES:
            raise RequestError(f"{count} pictures are asked for, 1 to {MOST_IMAGES} are made in a call", param="prompt")
        negatives = _for_each(negative_prompt, len(prompts), "negative_prompt")
        seeds = _seeds(seed, count)
        latents = None if latents is None else np.asarray(latents)
        if latents is not None and (latents.ndim != 4 or latents.shape[0] != count):
            raise RequestError(
                f"latents must be [{count}, channels, height / 8, width / 8], got {list(latents.shape)}",
                param="latents",
            )
        known, painted = self._known(image, mask, height, width)
        requests = [
            PictureRequest(
                id=str(next(self._ids)),
                prompt=prompts[i // n],
                negative_prompt=negatives[i // n],
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                true_guidance=true_guidance,
                seed=seeds[i],
                sampler=sampler,
                latents=None if latents is None else latents[i],
                picture=known,
                mask=painted,
                strength=strength,
                loras=loras,
                reuse=reuse,
                first_block=first_block,
            )
            for i in range(count)
        ]
        made = self._made(requests, decode=output != "latent", progress=progress)
        if output == "latent":
            return np.stack([np.moveaxis(one.latents, -1, 0) for one in made])
        pictures = [one.picture for one in made if one.picture is not None]
        return [to_pil(one) for one in pictures] if output == "pil" else np.stack(pictures)

    def _known(
        self, image: Picture | None, mask: Picture | None, height: int | None, width: int | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The picture to change and its mask, scaled to the size that is made."""
        if image is None:
            if mask is not None:
                raise RequestError("mask needs an image", param="mask")
            return None, None
        rows, columns = size(height, width, size_of(image), self.engine.family, self.engine.limits)
        return to_array(image, rows, columns), None if mask is None else to_mask(mask, rows, columns)

    def _made(self, requests: Sequence[PictureRequest], *, decode: bool, progress: Progress) -> list[Finished]:
        """All requests' pictures in their order. Whatever ends it, none is left in the engine."""
        total = sum(self.engine.check(request).schedule.steps for request in requests)
        found: dict[str, Finished] = {}
        done = 0
        progress("denoise", 0, total)
        try:
            for request in requests:
                self.engine.add(request, decode=decode)
            while self.engine.has_work:
                for output in self.engine.step():
                    if isinstance(output, Progressed):
                        done += 1
                        progress("denoise", done, total)
                    else:
                        found[output.id] = output
        finally:
            for request in requests:
                self.engine.abort(request.id)
        return [found[request.id] for request in requests]


def _dtype(given: DTypeLike) -> np.dtype:
    name = given if isinstance(given, str) else str(np.dtype(given).name)
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise ConfigError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def _for_each(given: str | Sequence[str] | None, count: int, name: str) -> list[str | None]:
    """One for all, or one for each."""
    if given is None or isinstance(given, str):
        return [given] * count
    if not isinstance(given, Sequence):
        raise RequestError(f"{name} must be text or a list of texts, got {type(given).__name__}", param=name)
    if len(given) != count:
        raise RequestError(f"{count} prompts and {len(given)} of {name}: send one for each, or one", param=name)
    return list(given)


def _seeds(given: int | Sequence[int] | None, count: int) -> list[int]:
    if isinstance(given, Sequence):
        if len(given) != count:
            raise RequestError(
                f"{count} pictures and {len(given)} seeds: send one for each, or the first", param="seed"
            )
        return list(given)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < SEEDS):
        raise RequestError(f"seed must be a whole number from 0 to 2^64 - 1, got {given!r}", param="seed")
    first = secrets.randbits(32) if given is None else given
    return [(first + i) % SEEDS for i in range(count)]
