"""A tiny Stable Diffusion XL as a folder of diffusers has it, and the same tensors as its authors' code names them.

The original names are spelled out here from how that code numbers its blocks, not by way of the reader's tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slipstream.checkpoint import RandomSource
from slipstream.models.image import autoencoder, unet

Tensors = dict[str, np.ndarray]

UNET: dict[str, Any] = {
    "block_out_channels": [32, 64, 128],
    "layers_per_block": 2,
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "transformer_layers_per_block": [1, 2, 3],
    "projection_class_embeddings_input_dim": 6 * 256 + 24,
    "cross_attention_dim": 40,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "scaling_factor": 0.13025,
}
WIDTH, SECOND_WIDTH, PROJECTED = 64, 128, 24
"""Of the text encoders' states, and of the second's pooled one."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def folder() -> dict[str, Tensors]:
    """The tensors of each model, under diffusers' and transformers' names."""
    return {
        "unet": _random(unet.plan(unet.Config.from_diffusers(UNET))),
        "vae": _random(autoencoder.plan(autoencoder.Config.from_diffusers(AUTOENCODER))),
        "text_encoder": _clip(WIDTH, None),
        "text_encoder_2": _clip(SECOND_WIDTH, PROJECTED),
    }


def single(models: Mapping[str, Tensors]) -> Tensors:
    """The same in one file, with what such files hold besides."""
    parts = {
        "model.diffusion_model.": original_unet(models["unet"]),
        "first_stage_model.": original_autoencoder(models["vae"]),
        "conditioner.embedders.0.transformer.": models["text_encoder"],
        "conditioner.embedders.1.model.": original_clip(models["text_encoder_2"]),
    }
    tensors = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    tensors["conditioner.embedders.1.model.logit_scale"] = np.float32([4.6])
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = np.arange(7)[None]
    return tensors


class Moved:
    """Tensors that are moved from names to others, each once."""

    def __init__(self, tensors: Tensors) -> None:
        self.left, self.moved = dict(tensors), Tensors()

    def move(self, old: str, new: str, modules: Mapping[str, str] | None = None) -> None:
        """All whose names begin with `old`; `modules`: new names of what follows."""
        for name in [name for name in self.left if name.startswith(old)]:
            module, _, kind = name.removeprefix(old).rpartition(".")
            self.moved[f"{new}{modules[module] if modules else module}.{kind}".replace("..", ".")] = self.left.pop(name)

    def finish(self) -> Tensors:
        """Those that were moved, which must be all."""
        assert not self.left, sorted(self.left)
        return self.moved


def original_unet(tensors: Tensors) -> Tensors:
    """As sgm's UNetModel numbers its blocks."""
    t, layers, count = Moved(tensors), UNET["layers_per_block"], len(UNET["block_out_channels"])
    t.move("time_embedding.linear_1", "time_embed.0")
    t.move("time_embedding.linear_2", "time_embed.2")
    t.move("add_embedding.linear_1", "label_emb.0.0")
    t.move("add_embedding.linear_2", "label_emb.0.2")
    t.move("conv_in", "input_blocks.0.0")
    t.move("conv_norm_out", "out.0")
    t.move("conv_out", "out.2")
    block = 0
    for level in range(count):
        for i in range(layers):
            block += 1
            t.move(f"down_blocks.{level}.resnets.{i}.", f"input_blocks.{block}.0.", RESNET)
            t.move(f"down_blocks.{level}.attentions.{i}.", f"input_blocks.{block}.1.")
        if level < count - 1:
            block += 1
            t.move(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op")
    t.move("mid_block.resnets.0.", "middle_block.0.", RESNET)
    t.move("mid_block.attentions.0.", "middle_block.1.")
    t.move("mid_block.resnets.1.", "middle_block.2.", RESNET)
    for level in range(count):
        for i in range(layers + 1):
            block = level * (layers + 1) + i
            attends = UNET["up_block_types"][level] == "CrossAttnUpBlock2D"
            t.move(f"up_blocks.{level}.resnets.{i}.", f"output_blocks.{block}.0.", RESNET)
            t.move(f"up_blocks.{level}.attentions.{i}.", f"output_blocks.{block}.1.")
            if i == layers:
                t.move(f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{block}.{2 if attends else 1}.conv")
    return t.finish()


def original_autoencoder(tensors: Tensors) -> Tensors:
    """As ldm's Encoder and Decoder name their parts; the way up is numbered from the picture."""
    t, count = Moved(tensors), len(AUTOENCODER["block_out_channels"])
    same = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name in ("quant_conv", "post_quant_conv"):
        t.move(name + ".", name + ".")
    for half, way, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        t.move(f"{half}.conv_in", f"{half}.conv_in")
        t.move(f"{half}.conv_norm_out", f"{half}.norm_out")
        t.move(f"{half}.conv_out", f"{half}.conv_out")
        for i in range(2):
            t.move(f"{half}.mid_block.resnets.{i}.", f"{half}.mid.block_{i + 1}.", same)
        t.move(f"{half}.mid_block.attentions.0.", f"{half}.mid.attn_1.", attention)
        for level in range(count):
            number = level if way == "down" else count - 1 - level
            for i in range(AUTOENCODER["layers_per_block"] + (way == "up")):
                t.move(f"{half}.{way}_blocks.{level}.resnets.{i}.", f"{half}.{way}.{number}.block.{i}.", same)
            t.move(f"{half}.{way}_blocks.{level}.{sampler}rs.0.conv", f"{half}.{way}.{number}.{sampler}.conv")
    found = t.finish()
    points = {f".attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out")}
    return {name: x[:, :, None, None] if any(map(name.endswith, points)) else x for name, x in found.items()}


def original_clip(tensors: Tensors) -> Tensors:
    """As OpenCLIP's text tower: queries, keys and values in one tensor, the projection from the left."""
    t = Moved(tensors)
    modules = {
        "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    found = {
        "text_projection": t.left.pop("text_projection.weight").T,
        "positional_embedding": t.left.pop("text_model.embeddings.position_embedding.weight"),
    }
    for i in range(2):
        at, new = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            each = [t.left.pop(f"{at}self_attn.{letter}_proj.{kind}") for letter in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = np.concatenate(each)
        t.move(at, new, modules)
    t.move("text_model.embeddings.token_embedding", "token_embedding")
    t.move("text_model.final_layer_norm", "ln_final")
    return found | t.finish()


def _random(plan: Any) -> Tensors:
    source = RandomSource(plan)
    return {name: source.read(name) for name in source.names()}


def _clip(width: int, projected: int | None) -> Tensors:
    """A text encoder's tensors, two layers, 30 words and 7 positions."""
    random = np.random.default_rng(width)
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (30, width),
        "text_model.embeddings.position_embedding.weight": (7, width),
        **_pair("text_model.final_layer_norm", width),
    }
    for i in range(2):
        at = f"text_model.encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _pair(f"{at}self_attn.{name}", width, width)
        shapes |= _pair(at + "mlp.fc1", 3 * width, width) | _pair(at + "mlp.fc2", width, 3 * width)
        shapes |= _pair(at + "layer_norm1", width) | _pair(at + "layer_norm2", width)
    if projected is not None:
        shapes["text_projection.weight"] = (projected, width)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {name + ".weight": shape, name + ".bias": shape[:1]}
