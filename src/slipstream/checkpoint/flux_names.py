"""Flux.1 in one file, under the names of black-forest-labs/flux: as a component of a diffusers pipeline.

There queries, keys and values are one matrix, in single blocks together with the feed-forward's first; and the last
modulation gives the shift before the scale, where diffusers has it after.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Any

from slipstream.checkpoint.cut import Cut, Piece
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.image import Component
from slipstream.spec.source import Source

PREFIX = "model.diffusion_model."
"""What some tools put before every name of the transformer."""

MARK = "double_blocks.0.img_attn.qkv.weight"
"""A tensor that every such file has, and no other model."""

AXES: Mapping[int, list[int]] = {128: [16, 56, 56]}
"""`axes_dims_rope` by the size of a head: the file does not say it."""

RENAMES: Mapping[str, str] = {
    r"img_in": "x_embedder",
    r"txt_in": "context_embedder",
    r"(time|guidance|vector)_in\.(in|out)_layer": "time_text_embed.{embedder}.{layer}",
    r"double_blocks\.(\d+)\.(img|txt)_mod\.lin": "transformer_blocks.{0}.norm1{mark}.linear",
    r"double_blocks\.(\d+)\.(img|txt)_attn\.norm\.(query|key)_norm": "transformer_blocks.{0}.attn.norm_{added}{head}",
    r"double_blocks\.(\d+)\.(img|txt)_attn\.proj": "transformer_blocks.{0}.attn.{out}",
    r"double_blocks\.(\d+)\.(img|txt)_mlp\.(0|2)": "transformer_blocks.{0}.ff{mark}.net.{part}",
    r"single_blocks\.(\d+)\.modulation\.lin": "single_transformer_blocks.{0}.norm.linear",
    r"single_blocks\.(\d+)\.norm\.(query|key)_norm": "single_transformer_blocks.{0}.attn.norm_{head}",
    r"single_blocks\.(\d+)\.linear2": "single_transformer_blocks.{0}.proj_out",
    r"final_layer\.linear": "proj_out",
}
"""Names of whole modules, and diffusers' for them; what stands in braces is in WORDS, or the number of the block."""

WORDS: Mapping[str, Mapping[str, str]] = {
    "time": {"embedder": "timestep_embedder"},
    "guidance": {"embedder": "guidance_embedder"},
    "vector": {"embedder": "text_embedder"},
    "in": {"layer": "linear_1"},
    "out": {"layer": "linear_2"},
    "img": {"mark": "", "added": "", "out": "to_out.0"},
    "txt": {"mark": "_context", "added": "added_", "out": "to_add_out"},
    "query": {"head": "q"},
    "key": {"head": "k"},
    "0": {"part": "0.proj"},
    "2": {"part": "2"},
}

FUSED: Mapping[str, tuple[str, ...]] = {
    r"double_blocks\.(\d+)\.img_attn\.qkv": tuple(f"transformer_blocks.{{0}}.attn.to_{part}" for part in "qkv"),
    r"double_blocks\.(\d+)\.txt_attn\.qkv": tuple(f"transformer_blocks.{{0}}.attn.add_{part}_proj" for part in "qkv"),
    r"single_blocks\.(\d+)\.linear1": (
        *(f"single_transformer_blocks.{{0}}.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.{0}.proj_mlp",
    ),
}
"""Modules whose rows are those of several, of the model's width each; the last one has what is left."""

SWAPPED = r"final_layer\.adaLN_modulation\.1"


def recognises(names: Collection[str]) -> bool:
    """Whether these are the tensors of such a file."""
    return MARK in names or PREFIX + MARK in names


def components(source: Source) -> Mapping[str, Component]:
    """The file's one component, the transformer.

    A tensor that no name here fits keeps its own, so that loading says that nobody reads it. Raises CheckpointError and
    UnsupportedModel where the file is not whole, or a head is of a size for which AXES has nothing.
    """
    plain = Cut(source, {name.removeprefix(PREFIX): Piece(name) for name in source.names()})
    config = config_of(plain)
    pieces = dict(piece for name in plain.names() for piece in _pieces(name, plain))
    return {"transformer": Component("FluxTransformer2DModel", config, Cut(plain, pieces))}


def config_of(source: Source) -> dict[str, Any]:
    """diffusers' config.json of a file, by the shapes of its tensors. Raises as `components` does."""
    names = source.names()

    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        if name not in names or len(source.shape(name)) != axes or not all(source.shape(name)):
            raise CheckpointError(f"the file has no {name} of {axes} axes, which every Flux model has")
        return source.shape(name)

    def count(kind: str) -> int:
        return len({found[1] for name in names if (found := re.match(rf"{kind}\.(\d+)\.", name))})

    width, channels = shape("img_in.weight")
    (head,) = shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)
    if head not in AXES:
        known = ", ".join(map(str, AXES))
        raise UnsupportedModel(f"a Flux file with heads of {head}: how positions turn them is known for {known}")
    return {
        "in_channels": channels,
        "out_channels": shape("final_layer.linear.weight")[0],
        "num_layers": count("double_blocks"),
        "num_single_layers": count("single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shape("txt_in.weight")[1],
        "pooled_projection_dim": shape("vector_in.in_layer.weight")[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in names,
        "axes_dims_rope": AXES[head],
    }


def _pieces(name: str, source: Source) -> Iterator[tuple[str, Piece]]:
    """diffusers' tensors in one of the file's."""
    module, _, kind = name.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    width = source.shape("img_in.weight")[0]
    if re.fullmatch(SWAPPED, module):
        yield f"norm_out.linear.{kind}", Piece(name, ((width, 2 * width), (0, width)))
        return
    for pattern, parts in FUSED.items():
        if found := re.fullmatch(pattern, module):
            ends = [*(width * i for i in range(len(parts))), prod(source.shape(name)[:1])]
            for part, first, end in zip(parts, ends, ends[1:], strict=False):
                yield f"{part.format(found[1])}.{kind}", Piece(name, ((first, end),))
            return
    new = _renamed(module)
    yield name if new is None else f"{new}.{kind}", Piece(name)


def _renamed(module: str) -> str | None:
    """diffusers' name of a whole module; None for one that is not here."""
    for pattern, new in RENAMES.items():
        if found := re.fullmatch(pattern, module):
            words = {key: word for group in found.groups() for key, word in WORDS.get(group, {}).items()}
            return new.format(found[1] if found.groups() else "", **words)
    return None


def rows_of(name: str, *, rows: int, width: int) -> list[tuple[str, tuple[int, int] | None]]:
    """The tensors of diffusers' that one of the file's holds, with the rows of each; None for all of them.

    `rows`: how many it has, which may be fewer than the model's: a change of queries, keys and values alone. Empty for
    a name that is not such a file's, and for the last modulation, whose halves change places.
    """
    module, _, kind = name.rpartition(".")
    for pattern, parts in FUSED.items():
        if found := re.fullmatch(pattern, module):
            ends = [*(min(rows, width * i) for i in range(len(parts))), rows]
            runs = zip(parts, ends, ends[1:], strict=False)
            return [(f"{part.format(found[1])}.{kind}", (first, end)) for part, first, end in runs if first < end]
    new = _renamed(module)
    return [] if new is None else [(f"{new}.{kind}", None)]
