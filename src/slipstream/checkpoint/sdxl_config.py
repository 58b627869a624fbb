"""The configs of Stable Diffusion XL's models, in diffusers' and transformers' words, from the shapes of their tensors.

A file in the original layout has no configs. What shapes do not tell is the same in all published models: heads of 64,
pictures' sizes embedded in 256 numbers each, the latents' scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slipstream.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""A model's tensors by their names in the file, without the model's prefix."""

HEAD = 64
SIZE_EMBEDDING = 256
SCALING = 0.13025


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """config.json of UNet2DConditionModel."""
    each = layers_per_block(shapes) + 1
    count = _count(shapes, r"input_blocks\.(\d+)\.") // each
    channels = [_shape(shapes, f"input_blocks.{1 + i * each}.0.out_layers.3.weight")[0] for i in range(count)]
    middle = _depth(shapes, "middle_block.1.")
    down = [[_depth(shapes, f"input_blocks.{1 + i * each + j}.1.") for j in range(each - 1)] for i in range(count)]
    up = [[_depth(shapes, f"output_blocks.{i * each + j}.1.") for j in range(each)] for i in range(count)]
    added = _shape(shapes, "label_emb.0.0.weight")[1]
    return {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": each - 1,
        "down_block_types": ["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in up],
        # A level that does not attend has no use for the number; the last one's is the middle's.
        "transformer_layers_per_block": [[depth or middle for depth in depths] for depths in down],
        "reverse_transformer_layers_per_block": [[depth or middle for depth in depths] for depths in up],
        "attention_head_dim": [max(1, width // HEAD) for width in channels],
        "cross_attention_dim": _shape(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(_shape(shapes, "middle_block.1.proj_in.weight")) == 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_EMBEDDING,
        "projection_class_embeddings_input_dim": added,
        "sample_size": 128,
    }


def layers_per_block(shapes: Shapes) -> int:
    """Residual blocks of a UNet's level on the way down: those before the first halving."""
    halvings = [
        int(found[1]) for name in shapes if (found := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name))
    ]
    return min(halvings, default=_count(shapes, r"input_blocks\.(\d+)\.")) - 1


def autoencoder_config(shapes: Shapes) -> dict[str, Any]:
    """config.json of AutoencoderKL."""
    count = levels(shapes)
    quantized, dequantized = ("quant_conv.weight" in shapes), ("post_quant_conv.weight" in shapes)
    return {
        "in_channels": _shape(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "block_out_channels": [_shape(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(count)],
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "scaling_factor": SCALING,
        "use_quant_conv": quantized,
        "use_post_quant_conv": dequantized,
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
    }


def levels(shapes: Shapes) -> int:
    """Resolutions of an autoencoder."""
    return _count(shapes, r"encoder\.down\.(\d+)\.")


def encoder_config(shapes: Shapes) -> dict[str, Any]:
    """config.json of the first text encoder."""
    words, width = _shape(shapes, "text_model.embeddings.token_embedding.weight")
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight")[0],
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD),
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "eos_token_id": 2,
    }


def second_encoder_config(shapes: Shapes) -> dict[str, Any]:
    """config.json of the second text encoder, OpenCLIP's."""
    words, width = _shape(shapes, "token_embedding.weight")
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": _shape(shapes, "positional_embedding")[0],
        "intermediate_size": _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": _count(shapes, r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD),
        "hidden_act": "gelu",
        "projection_dim": _shape(shapes, "text_projection")[1],
        "eos_token_id": 2,
    }


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"the file has no {name!r}, which every model of its kind has: it is cut off or another")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that names have where the pattern's group is."""
    return max((int(found[1]) for name in shapes if (found := re.match(pattern, name))), default=-1) + 1


def _depth(shapes: Shapes, at: str) -> int:
    """Layers of the transformer whose names begin so; 0 where there is none."""
    return _count(shapes, re.escape(at) + r"transformer_blocks\.(\d+)\.")
