"""diffusers' UNets and autoencoders as the reference, with our random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from slipstream.checkpoint import RandomSource
from slipstream.models.image import autoencoder, unet
from slipstream.spec.source import Source
from tests.models.image.unets import UnetInputs

torch.set_num_threads(1)


def filled(model: torch.nn.Module, source: Source) -> Any:
    """The model with all of a source's tensors, under the same names and of the same shapes, no more and no fewer."""
    state = {name: torch.from_numpy(np.ascontiguousarray(source.read(name))) for name in source.names()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a constructor takes of config.json."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def unet_of(config: Mapping[str, Any]) -> Any:
    source = RandomSource(unet.plan(unet.Config.from_diffusers(config)), jitter=0.3)
    return filled(diffusers.UNet2DConditionModel(**plain(config)), source)


def autoencoder_of(config: Mapping[str, Any]) -> Any:
    source = RandomSource(autoencoder.plan(autoencoder.Config.from_diffusers(config)), jitter=0.3)
    return filled(diffusers.AutoencoderKL(**plain(config)), source)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x.numpy(), 1, -1))


@torch.no_grad()
def predicted(model: Any, inputs: UnetInputs) -> np.ndarray:
    """The UNet's output [b, y, x, c]."""
    given = {name: None if x is None else torch.from_numpy(x) for name, x in vars(inputs).items()}
    added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
    weight = given["guidance"]
    condition = None
    if weight is not None:
        size = model.config.time_cond_proj_dim
        # A method of the pipeline that reads nothing of it.
        embed = diffusers.StableDiffusionXLPipeline.get_guidance_scale_embedding
        condition = embed(None, weight - 1, embedding_dim=size)
    out = model(
        channels_first(inputs.latents),
        given["time"],
        encoder_hidden_states=given["text"],
        timestep_cond=condition,
        added_cond_kwargs=added,
    )
    return channels_last(out.sample)


@torch.no_grad()
def encoded(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = model.encode(channels_first(images)).latent_dist
    return channels_last(found.mean), channels_last(found.logvar)


@torch.no_grad()
def decoded(model: Any, latents: np.ndarray) -> np.ndarray:
    return channels_last(model.decode(channels_first(latents)).sample)
