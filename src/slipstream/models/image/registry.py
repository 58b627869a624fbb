"""The tables of image models: which module computes which class of diffusers and transformers; what pipelines need."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.image import autoencoder, clip, flux, t5, unet
from slipstream.spec.image import Component, ImageCheckpoint


@dataclass(frozen=True)
class Module:
    """A part of an image model as functions.

    `classes`: what model_index.json calls it. `from_diffusers(config)` -> its Config, `plan(c)` -> tree of Params; what
    it computes is called on the module itself, as each computes something else. `renames`: patterns in tensors' names,
    each with what takes its place, that make the plan's names of them. `unread`: patterns (of fnmatch) of the plan's
    names that it does not ask for.
    """

    name: str
    classes: tuple[str, ...]
    from_diffusers: Callable[[Mapping[str, Any]], Any]
    plan: Callable[[Any], Any]
    renames: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()

    def rename(self, name: str) -> str:
        """The plan's name of a checkpoint's tensor."""
        for old, new in self.renames:
            name = re.sub(old, new, name)
        return name


@dataclass(frozen=True)
class Pipeline:
    """A kind of image model. `classes`: diffusers' pipelines of it. `parts`: the class of each part that it needs."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Model:
    """A part of a checkpoint with its module, config and plan. Its tensors have the names that the file gives them."""

    module: Module
    config: Any
    plan: Any
    component: Component


MODULES: Final = (
    Module(
        "clip",
        ("CLIPTextModel", "CLIPTextModelWithProjection"),
        clip.Config.from_diffusers,
        clip.plan,
        # transformers 5 leaves the prefix out where there is no projection.
        renames=((r"^(?!text_model\.|text_projection\.)", "text_model."),),
        unread=("text_model.embeddings.position_ids",),
    ),
    Module(
        "t5",
        ("T5EncoderModel",),
        t5.Config.from_diffusers,
        t5.plan,
        unread=("encoder.embed_tokens.weight", "decoder.*"),  # the former is shared.weight again
    ),
    Module("flux", ("FluxTransformer2DModel",), flux.Config.from_diffusers, flux.plan),
    Module("unet", ("UNet2DConditionModel",), unet.Config.from_diffusers, unet.plan),
    Module(
        "autoencoder",
        ("AutoencoderKL",),
        autoencoder.Config.from_diffusers,
        autoencoder.plan,
        renames=autoencoder.OLD_NAMES,
    ),
)

PIPELINES: Final = (
    Pipeline(
        "flux",
        ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxKontextPipeline"),
        {
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
        },
    ),
    Pipeline(
        "sdxl",
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        {
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
        },
    ),
)


def module_of(kind: str) -> Module:
    """The module of a class. Raises UnsupportedModel, which lists the classes."""
    classes = {name: module for module in MODULES for name in module.classes}
    if kind not in classes:
        raise UnsupportedModel(_unknown(kind, "a part of an image model that Slipstream computes", list(classes)))
    return classes[kind]


def pipeline_of(kind: str) -> Pipeline:
    """The pipeline of a class. Raises UnsupportedModel, which lists the classes."""
    classes = {name: pipeline for pipeline in PIPELINES for name in pipeline.classes}
    if kind not in classes:
        raise UnsupportedModel(_unknown(kind, "an image model that Slipstream serves", list(classes)))
    return classes[kind]


def model_of(component: Component) -> Model:
    """A component's config and plan. Raises an error of `errors` for what is not computed."""
    module = module_of(component.kind)
    config = module.from_diffusers(component.config)
    return Model(module, config, module.plan(config), component)


def models_of(checkpoint: ImageCheckpoint) -> Mapping[str, Model]:
    """The parts that the checkpoint's pipeline needs, by their names in model_index.json.

    Raises CheckpointError where one is missing or of another class, and as `pipeline_of` and `model_of` do.
    """
    pipeline = pipeline_of(checkpoint.pipeline)
    found = {name: part.kind for name, part in checkpoint.parts.items() if name in pipeline.parts}
    wrong = [
        f"{name} must be a {kind}, and {'is a ' + found[name] if name in found else 'is missing'}"
        for name, kind in pipeline.parts.items()
        if found.get(name) != kind
    ]
    if wrong:
        raise CheckpointError(f"{checkpoint.path} is no whole {checkpoint.pipeline}: {'; '.join(wrong)}")
    return {name: model_of(checkpoint.parts[name]) for name in pipeline.parts}


def _unknown(kind: str, what: str, known: list[str]) -> str:
    near = get_close_matches(kind, known, 1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"{kind} is not {what}{hint}. Known: {', '.join(known)}"
