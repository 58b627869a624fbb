"""config.json of parts of image models: what is refused, and what published files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel
from slipstream.models.image import clip, flux, t5
from slipstream.models.image.registry import model_of, models_of, module_of, pipeline_of
from slipstream.spec.image import Component, ImageCheckpoint
from tests.models.image.harness import random_source
from tests.models.image.variants import CLIP, FLUX, T5

SAVED = {"_name_or_path": "x", "torch_dtype": "float16", "transformers_version": "4.43.3"}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "sdxl text_encoder": (
        "CLIPTextModel",
        {**CLIP, **SAVED, "vocab_size": 49_408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
         "num_attention_heads": 12, "num_hidden_layers": 12, "dropout": 0.0, "attention_dropout": 0.0,
         "initializer_factor": 1.0, "initializer_range": 0.02},
    ),
    "sdxl text_encoder_2": (
        "CLIPTextModelWithProjection",
        {**CLIP, **SAVED, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280,
         "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
         "vocab_size": 49_408, "dropout": 0.0},
    ),
    "flux text_encoder_2": (
        "T5EncoderModel",
        {**T5, **SAVED, "classifier_dropout": 0.0, "d_ff": 10_240, "d_kv": 64, "d_model": 4096,
         "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
         "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0,
         "use_cache": True, "vocab_size": 32_128},
    ),
    "flux transformer": (
        "FluxTransformer2DModel",
        {"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0", "_name_or_path": "x",
         "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64, "joint_attention_dim": 4096,
         "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
         "pooled_projection_dim": 768},
    ),
}  # fmt: skip
"""Keys as published files have them, written down from memory."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name: str) -> None:
    kind, config = PUBLISHED[name]
    module = module_of(kind)
    module.plan(module.from_diffusers(config))


def test_what_a_config_leaves_out() -> None:
    """The defaults are diffusers': FLUX.1-schnell's sizes."""
    c = flux.Config.from_diffusers({})
    assert (c.width, c.hidden, c.axes, c.guided, c.channels, c.out_channels) == (
        3072,
        12_288,
        (16, 56, 56),
        False,
        64,
        64,
    )


def test_what_is_refused() -> None:
    with pytest.raises(UnknownConfigKeys, match=r"qk_clip \(flux\)"):
        flux.Config.from_diffusers({**FLUX, "qk_clip": 3})
    with pytest.raises(UnsupportedModel, match=r"axes_dims_rope \[4, 4, 4\] must be three even sizes .* 16"):
        flux.Config.from_diffusers({**FLUX, "axes_dims_rope": [4, 4, 4]})
    with pytest.raises(CheckpointError, match="axes_dims_rope must be a list of sizes, got 16"):
        flux.Config.from_diffusers({**FLUX, "axes_dims_rope": 16})
    with pytest.raises(CheckpointError, match="num_layers must be at least 1"):
        flux.Config.from_diffusers({**FLUX, "num_layers": 0})
    with pytest.raises(UnknownConfigKeys, match=r"vision \(clip\)"):
        clip.Config.from_diffusers({**CLIP, "vision": 3})
    with pytest.raises(UnsupportedModel, match="5 attention heads do not divide a hidden_size of 32"):
        clip.Config.from_diffusers({**CLIP, "num_attention_heads": 5})
    with pytest.raises(UnsupportedModel, match="hidden_act to 'mish'; Slipstream computes gelu, "):
        clip.Config.from_diffusers({**CLIP, "hidden_act": "mish"})
    with pytest.raises(UnsupportedModel, match="feed_forward_proj to 'gated-relu'; Slipstream's t5 computes relu, "):
        t5.Config.from_diffusers({**T5, "feed_forward_proj": "gated-relu"})
    with pytest.raises(UnsupportedModel, match="dense_act_fn to 'relu'; Slipstream's t5 computes 'gelu_new' only"):
        t5.Config.from_diffusers({**T5, "dense_act_fn": "relu"})
    with pytest.raises(UnsupportedModel, match="8 buckets of distances up to 2"):
        t5.Config.from_diffusers({**T5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 2})
    with pytest.raises(
        UnsupportedModel, match=r"FluxTransformer3DModel is not a part .*; the nearest is FluxTransformer2D"
    ):
        module_of("FluxTransformer3DModel")
    with pytest.raises(UnsupportedModel, match=r"KolorsPipeline is not an image model .* Known: FluxPipeline, "):
        pipeline_of("KolorsPipeline")


def test_parts_of_a_pipeline() -> None:
    transformer = Component("FluxTransformer2DModel", FLUX, random_source("FluxTransformer2DModel", FLUX))
    assert model_of(transformer).config == flux.Config.from_diffusers(FLUX)
    parts = {"transformer": transformer, "text_encoder": Component("T5EncoderModel", T5, transformer.source)}
    with pytest.raises(CheckpointError) as error:
        models_of(ImageCheckpoint(Path("folder"), "FluxPipeline", parts, {}, {}, {}))
    assert str(error.value) == (
        "folder is no whole FluxPipeline: text_encoder must be a CLIPTextModel, and is a T5EncoderModel; "
        "text_encoder_2 must be a T5EncoderModel, and is missing; vae must be a AutoencoderKL, and is missing"
    )


def test_names_with_and_without_a_prefix() -> None:
    module = module_of("CLIPTextModel")
    assert module.rename("embeddings.token_embedding.weight") == "text_model.embeddings.token_embedding.weight"
    assert module.rename("text_model.final_layer_norm.bias") == "text_model.final_layer_norm.bias"
    assert module.rename("text_projection.weight") == "text_projection.weight"
