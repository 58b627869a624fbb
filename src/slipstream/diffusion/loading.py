"""From an opened checkpoint to an engine: weights on their device, the family with its traits, the tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from slipstream.checkpoint.loading import load
from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.renamed import Renamed
from slipstream.diffusion.engine import PictureEngine, PoolOptions, Tokenize
from slipstream.diffusion.flux import PATCH, Flux
from slipstream.diffusion.pipeline import Family, Traits, Weights
from slipstream.diffusion.request import Limits
from slipstream.diffusion.scheduler_config import SchedulerConfig, read
from slipstream.diffusion.sdxl import Sdxl
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.kernels.ragged import Kernels
from slipstream.models.image.registry import Model, models_of, pipeline_of
from slipstream.spec.image import ImageCheckpoint
from slipstream.spec.param import Param
from slipstream.text.padded import PaddedTokenizer

TOKENS_GUIDED, TOKENS_FAST = 512, 256
"""T5's tokens of a text, as Flux dev and as schnell was trained with."""

UNET_SIDE, FLUX_SIDE = 128, 1024
"""Latents and pixels along a side where a checkpoint does not say."""

DENOISERS: Final = {"flux": "transformer", "sdxl": "unet"}
"""The part of a pipeline that denoises."""


def load_engine(
    checkpoint: ImageCheckpoint,
    *,
    dtype: np.dtype,
    text_tokens: int | None = None,
    options: PoolOptions | None = None,
    limits: Limits | None = None,
    kernels: Kernels = "reference",
    home: Sharding | None = None,
    progress: Progress = silent,
) -> PictureEngine:
    """Load all of a checkpoint. `text_tokens`: of T5, None as the model was trained. `home`: where weights go.

    The autoencoder is float32 whatever `dtype` is: it is a small part of the work, and rounding shows in pictures.
    Raises an error of `errors` for a checkpoint that is damaged or holds what is not computed here.
    """
    home = home or SingleDeviceSharding(jax.devices()[0])
    models = models_of(checkpoint)
    kind = pipeline_of(checkpoint.pipeline).name
    family = family_of(kind, models, checkpoint)
    schedule = scheduler_of(kind, checkpoint)
    tokenize = tokenizer_of(kind, family, checkpoint, text_tokens)
    loaded = {
        name: _loaded(model, np.dtype(np.float32) if name == "vae" else dtype, home, progress)
        for name, model in models.items()
    }
    weights = Weights(loaded[DENOISERS[kind]], (loaded["text_encoder"], loaded["text_encoder_2"]), loaded["vae"])
    return PictureEngine(
        family, weights, schedule, tokenize, options=options, limits=limits, kernels=kernels, home=home
    )


def family_of(kind: str, models: Mapping[str, Model], checkpoint: ImageCheckpoint) -> Family:
    """The family of a pipeline by its models' configs. Raises UnsupportedModel where they do not fit together."""
    return _FAMILIES[kind](models, checkpoint)


def scheduler_of(kind: str, checkpoint: ImageCheckpoint) -> SchedulerConfig:
    """How to sample. Raises UnsupportedModel for a scheduler of the other kind."""
    if not checkpoint.scheduler:
        raise CheckpointError(f"{checkpoint.path} has no scheduler_config.json")
    found = read(checkpoint.scheduler)
    if (found.sampler == "flow") != (kind == "flux"):
        raise UnsupportedModel(f"{checkpoint.pipeline} cannot be sampled by {checkpoint.scheduler['_class_name']}")
    return found


def tokenizer_of(kind: str, family: Family, checkpoint: ImageCheckpoint, text_tokens: int | None) -> Tokenize:
    """Texts to both encoders' ids. Raises CheckpointError where a tokenizer is missing or does not say enough."""
    for name in ("tokenizer", "tokenizer_2"):
        if name not in checkpoint.tokenizers:
            raise CheckpointError(f"{checkpoint.path} has no {name}: texts cannot be encoded")
    second = None
    if kind == "flux":
        most = TOKENS_GUIDED if family.traits.embeds_guidance else TOKENS_FAST
        second = text_tokens or min(most, checkpoint.tokenizers["tokenizer_2"].max_length or most)
    both = (
        PaddedTokenizer.of(checkpoint.tokenizers["tokenizer"]),
        PaddedTokenizer.of(checkpoint.tokenizers["tokenizer_2"], second),
    )
    return partial(_tokens, both)


def _tokens(tokenizers: tuple[PaddedTokenizer, ...], text: str) -> tuple[np.ndarray, ...]:
    return tuple(one.rows([text]) for one in tokenizers)


def _loaded(model: Model, dtype: np.dtype, home: Sharding, progress: Progress) -> Any:
    source = Renamed.of(model.component.source, model.module.rename)

    def place(param: Param, path: str, value: np.ndarray) -> jax.Array:
        return jax.device_put(value.astype(np.float32 if param.wide else dtype, copy=False), home)

    return load(model.plan, source, place, progress=progress, allowed_unused=model.module.unread)


def _flux(models: Mapping[str, Model], checkpoint: ImageCheckpoint) -> Flux:
    transformer, vae = models["transformer"].config, models["vae"].config
    factor, channels = vae.factor, vae.latent_channels
    square = PATCH * PATCH
    # A model that repaints reads the masked picture's latents and all pixels of the mask.
    extra = {channels * square: 0, (2 * channels + factor**2) * square: channels + factor**2}.get(transformer.channels)
    if extra is None or transformer.out_channels != channels * square:
        raise UnsupportedModel(
            f"a Flux transformer of {transformer.channels} inputs and {transformer.out_channels} outputs does not fit "
            f"latents of {channels} channels"
        )
    traits = Traits(
        channels=channels,
        extra=extra,
        factor=factor,
        multiple=factor * PATCH,
        side=_side(checkpoint, "vae", FLUX_SIDE),
        embeds_guidance=transformer.guided,
        guidance=(30.0 if extra else 3.5) if transformer.guided else None,
        true_guidance=None,
        zeros=False,
        steps=28 if transformer.guided else 4,
    )
    return Flux(transformer, models["text_encoder"].config, models["text_encoder_2"].config, vae, traits)


def _sdxl(models: Mapping[str, Model], checkpoint: ImageCheckpoint) -> Sdxl:
    unet, vae = models["unet"].config, models["vae"].config
    extra = {vae.latent_channels: 0, 2 * vae.latent_channels + 1: vae.latent_channels + 1}.get(unet.in_channels)
    if extra is None or unet.out_channels != vae.latent_channels:
        raise UnsupportedModel(
            f"a UNet of {unet.in_channels} inputs and {unet.out_channels} outputs does not fit latents of "
            f"{vae.latent_channels} channels"
        )
    if checkpoint.settings.get("requires_aesthetics_score"):
        raise UnsupportedModel("SDXL's refiner (requires_aesthetics_score) is not served: use the base model")
    embeds = unet.guidance_size is not None
    traits = Traits(
        channels=vae.latent_channels,
        extra=extra,
        factor=vae.factor,
        multiple=vae.factor,
        side=(unet.sample_size or UNET_SIDE) * vae.factor,
        embeds_guidance=embeds,
        guidance=8.5 if embeds else None,
        true_guidance=None if embeds else 5.0,
        zeros=bool(checkpoint.settings.get("force_zeros_for_empty_prompt", True)),
        steps=4 if embeds else 30,
    )
    return Sdxl(unet, models["text_encoder"].config, models["text_encoder_2"].config, vae, traits)


def _side(checkpoint: ImageCheckpoint, part: str, otherwise: int) -> int:
    side = checkpoint.parts[part].config.get("sample_size")
    return side if isinstance(side, int) and not isinstance(side, bool) and side > 0 else otherwise


_FAMILIES: Final[Mapping[str, Callable[[Mapping[str, Model], ImageCheckpoint], Family]]] = {
    "flux": _flux,
    "sdxl": _sdxl,
}
