"""Flux and SDXL from checkpoints of random weights: what their parts are joined to, and what does not fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from slipstream.checkpoint import RandomSource
from slipstream.diffusion import flux, sdxl
from slipstream.diffusion.engine import PictureEngine
from slipstream.diffusion.loading import load_engine
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.image.registry import module_of
from slipstream.spec.image import Component, ImageCheckpoint
from slipstream.spec.tokenizer import TokenizerSpec
from tests.diffusion.fakes import request, run
from tests.diffusion.samplers import FLUX_DEV, SDXL

CLIP: Mapping[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "hidden_act": "gelu",
    "eos_token_id": 39,
    "projection_dim": 16,
}
T5: Mapping[str, Any] = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
TRANSFORMER: Mapping[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": [2, 2, 4],
    "guidance_embeds": True,
}
UNET: Mapping[str, Any] = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "sample_size": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 16,
    "cross_attention_dim": 32,
    "norm_num_groups": 2,
}
VAE: Mapping[str, Any] = {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "sample_size": 8,
    "mid_block_add_attention": False,
}

PARTS = {
    "FluxPipeline": {
        "text_encoder": ("CLIPTextModel", CLIP),
        "text_encoder_2": ("T5EncoderModel", T5),
        "transformer": ("FluxTransformer2DModel", TRANSFORMER),
        "vae": ("AutoencoderKL", VAE),
    },
    "StableDiffusionXLPipeline": {
        "text_encoder": ("CLIPTextModel", CLIP),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP),
        "unet": ("UNet2DConditionModel", UNET),
        "vae": ("AutoencoderKL", VAE),
    },
}
SCHEDULERS = {"FluxPipeline": FLUX_DEV, "StableDiffusionXLPipeline": SDXL}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    """One that knows a few words, for rows of 12."""
    words = ["<pad>", "<unk>", "a", "red", "green", "apple"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(made.to_str())))
    return TokenizerSpec(tokenizer_json=path, special={"pad": "<pad>"}, max_length=12)


def checkpoint(kind: str, tokenizer: TokenizerSpec, **changes: Mapping[str, Any]) -> ImageCheckpoint:
    """A checkpoint of random weights; `changes` are those of the parts' configs."""
    parts = {}
    for name, (cls, config) in PARTS[kind].items():
        config = {**config, **changes.get(name, {})}
        module = module_of(cls)
        source = RandomSource(module.plan(module.from_diffusers(config)), jitter=0.3)
        parts[name] = Component(cls, config, source)
    tokenizers = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
    return ImageCheckpoint(Path("random"), kind, parts, tokenizers, SCHEDULERS[kind], {})


def load(found: ImageCheckpoint) -> PictureEngine:
    return load_engine(found, dtype=np.dtype(np.float32))


def test_flux(tokenizer: TokenizerSpec) -> None:
    engine = load(checkpoint("FluxPipeline", tokenizer))
    assert (engine.family.traits.side, engine.family.traits.multiple, engine.family.traits.guidance) == (8, 4, 3.5)
    asked = {
        "one": {},
        "same": {},
        "text": {"prompt": "green apple"},
        "guided": {"guidance": 9.0},
        "against": {"true_guidance": 4.0, "negative_prompt": "red"},
    }
    found = run(engine, [request(id, **({"prompt": "red apple", "steps": 2} | asked[id])) for id in asked])
    first = found["one"].latents
    assert first.shape == (4, 4, 4)
    assert found["one"].picture is not None
    assert found["one"].picture.shape == (8, 8, 3)
    assert np.abs(found["same"].latents - first).max() < 1e-5
    for id in ("text", "guided", "against"):
        assert np.abs(found[id].latents - first).max() > 1e-3, id


def test_sdxl(tokenizer: TokenizerSpec) -> None:
    engine = load(checkpoint("StableDiffusionXLPipeline", tokenizer))
    assert (engine.family.traits.side, engine.family.traits.multiple, engine.family.traits.zeros) == (8, 2, True)
    asked = {
        "zeros": {},
        "empty": {"negative_prompt": ""},
        "red": {"negative_prompt": "red"},
        "alone": {"guidance": 1.0},
        "odd": {"height": 10, "width": 14},
    }
    found = run(engine, [request(id, **({"prompt": "green apple", "steps": 2} | asked[id])) for id in asked])
    for id in ("empty", "red", "alone"):
        assert np.abs(found[id].latents - found["zeros"].latents).max() > 1e-3, id
    assert found["odd"].latents.shape == (5, 7, 4)


def test_packing() -> None:
    latents = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = np.asarray(flux.pack(latents))
    assert tokens.shape == (2, 6, 12)
    # Token 4 is row 1, column 1 of squares; in it a channel's four latents follow one another.
    np.testing.assert_array_equal(tokens[1, 4], latents[1, 2:4, 2:4].transpose(2, 0, 1).ravel())
    np.testing.assert_array_equal(flux.unpack(tokens, 2, 3), latents)
    np.testing.assert_array_equal(flux.places(2, 3)[4], [0, 1, 1])


def test_steps_that_strength_leaves_out() -> None:
    """Of 10 steps at 0.55, SDXL takes 5 and Flux 6, as in diffusers."""
    assert sdxl.Sdxl.begin(None, 10, 0.55) == 5  # type: ignore[arg-type]
    assert flux.Flux.begin(None, 10, 0.55) == 4  # type: ignore[arg-type]
    assert sdxl.Sdxl.begin(None, 10, 1.0) == flux.Flux.begin(None, 10, 1.0) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("FluxPipeline", {"transformer": {"in_channels": 24}}, "24 inputs"),
        ("FluxPipeline", {"transformer": {"in_channels": 48}}, "48 inputs and 48 outputs"),
        ("StableDiffusionXLPipeline", {"unet": {"in_channels": 5}}, "5 inputs"),
    ],
)
def test_parts_that_do_not_fit(kind: str, changes: Mapping[str, Any], words: str, tokenizer: TokenizerSpec) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        load(checkpoint(kind, tokenizer, **changes))


def test_models_that_repaint(tokenizer: TokenizerSpec) -> None:
    fill = load(checkpoint("FluxPipeline", tokenizer, transformer={"in_channels": 48, "out_channels": 16}))
    assert (fill.family.traits.extra, fill.family.traits.guidance) == (8, 30.0)
    inpaint = load(checkpoint("StableDiffusionXLPipeline", tokenizer, unet={"in_channels": 9}))
    assert inpaint.family.traits.extra == 5


def test_checkpoints_that_lack_something(tokenizer: TokenizerSpec) -> None:
    whole = checkpoint("FluxPipeline", tokenizer)
    with pytest.raises(CheckpointError, match="no tokenizer_2"):
        load(replace(whole, tokenizers={"tokenizer": tokenizer}))
    with pytest.raises(CheckpointError, match="no scheduler_config"):
        load(replace(whole, scheduler={}))
    with pytest.raises(UnsupportedModel, match="cannot be sampled by EulerDiscreteScheduler"):
        load(replace(whole, scheduler=SDXL))
    with pytest.raises(UnsupportedModel, match="refiner"):
        load(replace(checkpoint("StableDiffusionXLPipeline", tokenizer), settings={"requires_aesthetics_score": True}))


def test_texts_are_as_long_as_the_checkpoint_says(tokenizer: TokenizerSpec) -> None:
    for guided, longest, wanted in ((True, None, 512), (False, None, 256), (True, 20, 20)):
        found = checkpoint("FluxPipeline", tokenizer, transformer={"guidance_embeds": guided})
        long = replace(tokenizer, max_length=longest)
        engine = load(replace(found, tokenizers={"tokenizer": tokenizer, "tokenizer_2": long}))
        assert [ids.shape for ids in engine._tokenize("a red apple")] == [(1, 12), (1, wanted)]
