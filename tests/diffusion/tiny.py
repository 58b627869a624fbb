"""Image models of random weights that compile in little time, and a tokenizer of a few words: in memory, on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from slipstream.checkpoint import RandomSource
from slipstream.models.image.registry import module_of
from slipstream.spec.image import Component, ImageCheckpoint
from slipstream.spec.tokenizer import TokenizerSpec
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


def tokenizer_in(folder: Path) -> TokenizerSpec:
    """One that knows a few words, for rows of 12, in a folder as transformers writes it."""
    words = ["<pad>", "<unk>", "a", "red", "green", "apple"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(made.to_str())))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "model_max_length": 12}))
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


def written(kind: str, folder: Path, **changes: Mapping[str, Any]) -> Path:
    """The same as a folder in diffusers' layout."""
    made = checkpoint(kind, tokenizer_in(folder / "tokenizer"), **changes)
    tokenizer_in(folder / "tokenizer_2")
    index: dict[str, Any] = {"_class_name": kind, "scheduler": ["diffusers", made.scheduler["_class_name"]]}
    for name in made.tokenizers:
        index[name] = ["transformers", "CLIPTokenizer"]
    for name, part in made.parts.items():
        index[name] = ["diffusers", part.kind]
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(dict(part.config)))
        save_file({one: part.source.read(one) for one in part.source.names()}, folder / name / "model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(made.scheduler)))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
