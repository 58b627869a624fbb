"""From an opened checkpoint to an engine: weights on their device, the family with its traits, the tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from slipstream.checkpoint.adapters import with_adapters
from slipstream.checkpoint.loading import load
from slipstream.checkpoint.lora import Delta, Lora, deltas_of
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.checkpoint.renamed import Renamed
from slipstream.diffusion.engine import PictureEngine, PoolOptions, Tokenize
from slipstream.diffusion.flux import PATCH, Flux
from slipstream.diffusion.pipeline import Family, Traits, Weights
from slipstream.diffusion.request import MOST_GUIDANCE, Limits
from slipstream.diffusion.scheduler_config import SchedulerConfig, read
from slipstream.diffusion.sdxl import Sdxl
from slipstream.errors import CheckpointError, ConfigError, UnsupportedModel
from slipstream.kernels.native import library
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import autoencoder, unet
from slipstream.models.image.registry import Model, models_of, pipeline_of
from slipstream.parallel.fit import check_share
from slipstream.parallel.mesh import make_mesh, replicas
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import whole
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.image import ImageCheckpoint
from slipstream.spec.param import params
from slipstream.spec.source import Source
from slipstream.text.padded import PaddedTokenizer

logger = logging.getLogger(__name__)

TOKENS_GUIDED, TOKENS_FAST = 512, 256
"""T5's tokens of a text, as Flux dev and as schnell was trained with."""

UNET_SIDE, FLUX_SIDE = 128, 1024
"""Latents and pixels along a side where a checkpoint does not say."""

DENOISERS: Final = {"flux": "transformer", "sdxl": "unet"}
"""The part of a pipeline that denoises."""

QUANTIZED: Final = frozenset({"flux", "unet", "t5"})
"""The modules whose layers are rounded to small numbers where that is asked for; the others are small beside them."""


def load_engine(
    checkpoint: ImageCheckpoint,
    *,
    dtype: np.dtype,
    text_tokens: int | None = None,
    tp: int = 1,
    quantization: str | None = None,
    options: PoolOptions | None = None,
    limits: Limits | None = None,
    kernels: Kernels | None = None,
    adapters: Mapping[str, Path] | None = None,
    progress: Progress = silent,
) -> PictureEngine:
    """Load all of a checkpoint. `text_tokens`: of T5, None as the model was trained.

    `tp`: how many devices weights are sharded over; each gets its parts from the files. `quantization`: one of SCHEMES
    for the matrices of layers. `kernels`: None for those that the devices are fastest with. `adapters`: LoRA files by
    the names that requests give them.

    The autoencoder is float32 whatever `dtype` is: it is a small part of the work, and rounding shows in pictures.
    Raises an error of `errors` for a checkpoint that is damaged or holds what is not computed here, and ConfigError for
    settings that the devices or the model cannot have.
    """
    devices = replicas(jax.local_devices(), tp, 1)[0]
    kernels = kernels_of(kernels, devices[0].platform, tp)
    models = models_of(checkpoint)
    kind = pipeline_of(checkpoint.pipeline).name
    family = family_of(kind, models, checkpoint)
    schedule = scheduler_of(kind, checkpoint)
    tokenize = tokenizer_of(kind, family, checkpoint, text_tokens)
    check_share(models[DENOISERS[kind]].plan, tp, rules_of())
    mesh = make_mesh(devices, tp) if tp > 1 else None
    home = SingleDeviceSharding(devices[0]) if mesh is None else whole(mesh)
    native = kernels == "cpu"
    if native and (missing := library.reason()):
        logger.warning("%s", missing)
        native = False
    placement = Placement(devices[0], dtype, native, "exact", mesh, partial=True)
    wide = replace(placement, dtype=np.dtype(np.float32))
    added = {name: deltas_of(Lora(path), checkpoint) for name, path in (adapters or {}).items()}
    loaded = {
        name: _loaded(model, wide if name == "vae" else placement, quantization, progress)
        for name, model in models.items()
    }
    for name, model in models.items():
        changes = {adapter: _by_plan(parts.get(name, ()), model) for adapter, parts in added.items()}
        loaded[name] = with_adapters(
            model.plan, loaded[name], changes, lambda value: jax.device_put(value.astype(dtype), home)
        )
    if kernels == "cpu":
        _prepare(loaded, models, family.traits, dtype)
    weights = Weights(loaded[DENOISERS[kind]], (loaded["text_encoder"], loaded["text_encoder_2"]), loaded["vae"])
    return PictureEngine(
        family,
        weights,
        schedule,
        tokenize,
        options=options,
        limits=limits,
        kernels=kernels,
        home=home,
        adapters=tuple(added),
    )


def kernels_of(asked: Kernels | None, platform: str, tp: int) -> Kernels:
    """The kernels of `tp` devices of a platform. Raises ConfigError for native ones on several devices."""
    if asked == "cpu" and tp > 1:
        raise ConfigError(f'kernels="cpu" are for one device, and tp is {tp}: leave kernels out')
    return asked or ("cpu" if platform == "cpu" and tp == 1 else "reference")


def family_of(kind: str, models: Mapping[str, Model], checkpoint: ImageCheckpoint) -> Family:
    """The family of a pipeline by its models' configs. Raises UnsupportedModel where they do not fit together."""
    return _FAMILIES[kind](models, checkpoint)


def with_defaults(traits: Traits, checkpoint: ImageCheckpoint) -> Traits:
    """Traits with the steps and the guidance that the folder names. Raises CheckpointError for values that are none.

    Guidance named for a model that has none of its own is true guidance from then on, as SDXL's is.
    """
    named = dict(checkpoint.defaults)
    steps, guidance = named.pop("steps", traits.steps), named.pop("guidance", None)
    if named:
        raise CheckpointError(f"{checkpoint.path}: defaults are steps and guidance, not {', '.join(sorted(named))}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise CheckpointError(f"{checkpoint.path}: the default of steps must be a whole number from 1, got {steps!r}")
    if guidance is None:
        return replace(traits, steps=steps)
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= MOST_GUIDANCE:
        raise CheckpointError(
            f"{checkpoint.path}: the default of guidance must be from 0 to {MOST_GUIDANCE:g}, got {guidance!r}"
        )
    if traits.guidance is not None:
        return replace(traits, steps=steps, guidance=float(guidance))
    return replace(traits, steps=steps, true_guidance=float(guidance))


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
        most = trained_tokens(family)
        second = text_tokens or min(most, checkpoint.tokenizers["tokenizer_2"].max_length or most)
    both = (
        PaddedTokenizer.of(checkpoint.tokenizers["tokenizer"]),
        PaddedTokenizer.of(checkpoint.tokenizers["tokenizer_2"], second),
    )
    return partial(_tokens, both)


def trained_tokens(family: Family) -> int:
    """T5's tokens of a text, as a Flux model was trained."""
    return TOKENS_GUIDED if family.traits.embeds_guidance else TOKENS_FAST


def _tokens(tokenizers: tuple[PaddedTokenizer, ...], text: str) -> tuple[np.ndarray, ...]:
    return tuple(one.rows([text]) for one in tokenizers)


def _prepare(loaded: dict[str, Any], models: Mapping[str, Model], traits: Traits, dtype: np.dtype) -> None:
    """Put convolutions of float32 into the form that a CPU is fastest with, for pictures of the model's own size."""
    side = traits.side // traits.factor
    loaded["vae"] = autoencoder.prepare(loaded["vae"], models["vae"].config, (side, side))
    if "unet" in models and dtype == np.float32:
        loaded["unet"] = unet.prepare(loaded["unet"], models["unet"].config, (side, side))


def _loaded(model: Model, placement: Placement, quantization: str | None, progress: Progress) -> Any:
    return load(
        model.plan,
        rounded(model, Renamed.of(model.component.source, model.module.rename), quantization),
        placement.place,
        place_blocks=placement.place_blocks,
        place_parts=placement.place_parts,
        progress=progress,
        allowed_unused=model.module.unread,
    )


def _by_plan(changes: Sequence[tuple[str, Delta]], model: Model) -> dict[str, list[Delta]]:
    """What an adapter adds to a model's tensors, by the plan's names."""
    found: dict[str, list[Delta]] = {}
    for name, delta in changes:
        found.setdefault(model.module.rename(name), []).append(delta)
    return found


def rounded(model: Model, source: Source, quantization: str | None) -> Source:
    """The weights of a model, those of its layers rounded to one of SCHEMES; as they are for None."""
    if quantization is None or model.module.name not in QUANTIZED:
        return source
    layers = tuple(param for _, param in params(model.plan) if param.layers is not None)
    return RoundedSource(source, layers, SCHEMES[quantization])


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
    traits = with_defaults(traits, checkpoint)
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
    traits = with_defaults(traits, checkpoint)
    return Sdxl(unet, models["text_encoder"].config, models["text_encoder_2"].config, vae, traits)


def _side(checkpoint: ImageCheckpoint, part: str, otherwise: int) -> int:
    side = checkpoint.parts[part].config.get("sample_size")
    return side if isinstance(side, int) and not isinstance(side, bool) and side > 0 else otherwise


_FAMILIES: Final[Mapping[str, Callable[[Mapping[str, Model], ImageCheckpoint], Family]]] = {
    "flux": _flux,
    "sdxl": _sdxl,
}
