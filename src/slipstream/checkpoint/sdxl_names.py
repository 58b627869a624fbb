"""Stable Diffusion XL in one file, as its authors' own code writes it: whose tensor is what in diffusers' folders.

Such a file holds the UNet, the autoencoder and both text encoders, each under a prefix of its own. The second encoder
is OpenCLIP's, which has queries, keys and values in one tensor and its projection transposed. What the file has no
words for, the models' configs, follows from the tensors' shapes: `sdxl_config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase

from slipstream.checkpoint.cut import Cut, Piece
from slipstream.checkpoint.sdxl_config import (
    autoencoder_config,
    encoder_config,
    layers_per_block,
    levels,
    second_encoder_config,
    unet_config,
)
from slipstream.errors import CheckpointError
from slipstream.spec.image import Component
from slipstream.spec.source import Source

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
ENCODER = "conditioner.embedders.0.transformer."
SECOND_ENCODERS = ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
"""Where OpenCLIP's encoder is: behind the other one, or in a refiner alone."""

UNREAD = (
    "*.logit_scale",  # of training
    "*.position_ids",
    "alphas_cumprod",
    "denoiser.*",
    "model_ema.*",
)
"""Tensors (patterns of fnmatch) that are not a model's weights, or those of its average in training."""

_AROUND_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_AUTOENCODER: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_([12])\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
_AROUND_CLIP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_CLIP_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def recognises(names: Collection[str]) -> bool:
    """Whether a file with these tensors is one of Stable Diffusion XL."""
    return UNET + "input_blocks.0.0.weight" in names and any(at + "text_projection" in names for at in SECOND_ENCODERS)


def components(source: Source) -> Mapping[str, Component]:
    """The file's models by their names in diffusers' folders.

    A tensor of a model whose name is not known keeps it, and is then reported as one that the model does not read.
    Raises CheckpointError for tensors of no model, and for shapes that are no such model's.
    """
    names = set(source.names())
    second = next(at for at in SECOND_ENCODERS if at + "text_projection" in names)
    unet, autoencoder = _Part(source, UNET), _Part(source, AUTOENCODER)
    vae = Cut(source, dict(_autoencoder(autoencoder)))
    parts = {
        "unet": Component("UNet2DConditionModel", unet_config(unet.shapes), Cut(source, dict(_unet(unet)))),
        "vae": Component("AutoencoderKL", autoencoder_config(autoencoder.shapes), vae),
        "text_encoder_2": _second_encoder(_Part(source, second)),
    }
    if second == SECOND_ENCODERS[0]:
        first = _Part(source, ENCODER)
        pieces = {name: Piece(ENCODER + name) for name in first.shapes}
        parts["text_encoder"] = Component("CLIPTextModel", encoder_config(first.shapes), Cut(source, pieces))
    prefixes = (UNET, AUTOENCODER, ENCODER, second)
    strange = sorted(name for name in names if not name.startswith(prefixes) and not _unread(name))
    if strange:
        raise CheckpointError(f"{len(strange)} tensors are of none of the file's models, such as {strange[0]!r}")
    return parts


def _unread(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in UNREAD)


class _Part:
    """The tensors under a prefix: `shapes` by their names without it."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.source, self.prefix = source, prefix
        names = [name for name in source.names() if name.startswith(prefix) and not _unread(name)]
        self.shapes: Mapping[str, tuple[int, ...]] = {name.removeprefix(prefix): source.shape(name) for name in names}


def _unet(part: _Part) -> Iterator[tuple[str, Piece]]:
    each = layers_per_block(part.shapes) + 1
    for name in part.shapes:
        yield unet_name(name, each), Piece(part.prefix + name)


def unet_name(name: str, each: int) -> str:
    """A tensor's name in diffusers; `each`: blocks on the way down and up that are one level's."""
    module, _, kind = name.rpartition(".")
    if module in _AROUND_UNET:
        return f"{_AROUND_UNET[module]}.{kind}"
    found = re.fullmatch(r"(input|middle|output)_blocks?\.(\d+)\.(?:(\d+)\.)?(.+)", name)
    if found is None:
        return name
    way, first, second, rest = found[1], int(found[2]), found[3], found[4]
    if way == "middle":
        # Its only block has three parts, of which the second is the transformer.
        rest = name.split(".", 2)[2]
        return f"mid_block.attentions.0.{rest}" if first == 1 else f"mid_block.resnets.{first // 2}.{_in_resnet(rest)}"
    level, i = divmod(first - 1 if way == "input" else first, each)
    at = f"{'down' if way == 'input' else 'up'}_blocks.{level}."
    if rest.startswith("op."):
        return f"{at}downsamplers.0.conv.{kind}"
    if rest.startswith("conv."):
        return f"{at}upsamplers.0.{rest}"
    return f"{at}resnets.{i}.{_in_resnet(rest)}" if second == "0" else f"{at}attentions.{i}.{rest}"


def _in_resnet(rest: str) -> str:
    module, _, kind = rest.rpartition(".")
    return f"{_RESNET.get(module, module)}.{kind}"


def _autoencoder(part: _Part) -> Iterator[tuple[str, Piece]]:
    last = levels(part.shapes) - 1
    for name, shape in part.shapes.items():
        new = autoencoder_name(name, last)
        # Products of attention are stored as convolutions of one point.
        flat = shape[:2] if ".attentions." in new and len(shape) == 4 else None
        yield new, Piece(part.prefix + name, shape=flat)


def autoencoder_name(name: str, last: int) -> str:
    """A tensor's name in diffusers; `last`: the number of the last level. The way up is counted from the other end."""
    for old, new in _AUTOENCODER:
        name = re.sub(old, new, name)
    name = re.sub(r"\.up\.(\d+)\.block\.(\d+)\.", lambda at: f".up_blocks.{last - int(at[1])}.resnets.{at[2]}.", name)
    return re.sub(r"\.up\.(\d+)\.upsample\.", lambda at: f".up_blocks.{last - int(at[1])}.upsamplers.0.", name)


def _second_encoder(part: _Part) -> Component:
    pieces = {new: piece for name in part.shapes for new, piece in _clip_pieces(part, name)}
    return Component("CLIPTextModelWithProjection", second_encoder_config(part.shapes), Cut(part.source, pieces))


def _clip_pieces(part: _Part, name: str) -> Iterator[tuple[str, Piece]]:
    """What diffusers makes of one of OpenCLIP's tensors."""
    stored, found = part.prefix + name, re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)
    if name == "text_projection":
        yield "text_projection.weight", Piece(stored, transposed=True)
    elif found is None:
        yield _AROUND_CLIP.get(name, name), Piece(stored)
    elif found[2] == "attn.in_proj":
        size = part.shapes[name][0] // 3
        for i, letter in enumerate("qkv"):
            at = f"text_model.encoder.layers.{found[1]}.self_attn.{letter}_proj.{found[3]}"
            yield at, Piece(stored, rows=((i * size, (i + 1) * size),))
    else:
        module = _CLIP_LAYER.get(found[2], found[2])
        yield f"text_model.encoder.layers.{found[1]}.{module}.{found[3]}", Piece(stored)
