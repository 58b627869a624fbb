"""diffusers and transformers as the reference for parts of image models, with the weights of `random_source`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from slipstream.models.image.registry import module_of
from tests.models.image.harness import FluxInputs, random_source
from tests.models.image.variants import KINDS, VARIANTS

torch.set_num_threads(1)

CONFIGS = {
    "CLIPTextModel": transformers.CLIPTextConfig,
    "CLIPTextModelWithProjection": transformers.CLIPTextConfig,
    "T5EncoderModel": transformers.T5Config,
}
TIED = ("encoder.embed_tokens.weight",)
"""A parameter that is another's."""


def model_of(name: str) -> Any:
    """The reference's model of a variant."""
    return filled(KINDS[name], VARIANTS[name])


def filled(kind: str, config: Mapping[str, Any]) -> Any:
    """The reference's model of a config, float32, with random weights by their names."""
    model = empty(kind, config)
    module, source = module_of(kind), random_source(kind, config)
    wanted = set(source.names())
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name not in TIED:
                tensor.copy_(torch.from_numpy(source.read(module.rename(name))))
                wanted.remove(module.rename(name))
    assert not wanted, f"not in the reference's model: {sorted(wanted)}"
    return model


def empty(kind: str, config: Mapping[str, Any]) -> Any:
    """The same with the weights that the library drew."""
    settings = {
        key: value for key, value in config.items() if key not in ("architectures", "model_type", "_class_name")
    }
    if kind not in CONFIGS:
        return getattr(diffusers, kind)(**settings).eval()
    loaded = CONFIGS[kind](**settings)
    loaded._attn_implementation = "eager"
    return getattr(transformers, kind)(loaded).to(torch.float32).eval()


@torch.no_grad()
def clip(model: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`ClipOutput`'s fields."""
    out = model(torch.from_numpy(tokens.astype(np.int64)), output_hidden_states=True)
    projected = hasattr(model, "text_projection")
    pooled = out.text_embeds if projected else out.pooler_output
    found = {"hidden": out.last_hidden_state, "penultimate": out.hidden_states[-2], "pooled": pooled}
    return {name: tensor.numpy() for name, tensor in found.items()}


@torch.no_grad()
def t5(model: Any, tokens: np.ndarray) -> np.ndarray:
    """States [b, t, d]."""
    return model(torch.from_numpy(tokens.astype(np.int64))).last_hidden_state.numpy()


@torch.no_grad()
def flux(model: Any, inputs: FluxInputs) -> np.ndarray:
    """The velocity [b, t, channels]."""
    latents, text, pooled, time, guidance, text_ids, image_ids = (
        None if x is None else torch.from_numpy(x) for x in inputs.all
    )
    return model(
        hidden_states=latents,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=time,
        guidance=guidance,
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0].numpy()
