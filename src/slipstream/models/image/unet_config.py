"""What a config.json of diffusers' UNet2DConditionModel says, as far as Stable Diffusion has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.image.residual import Norms
from slipstream.models.image.transformer import Shape
from slipstream.models.keys import Keys

DOWN: Mapping[str, bool] = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP: Mapping[str, bool] = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
"""diffusers' names of blocks, and whether they attend."""

MIDDLE = "UNetMidBlock2DCrossAttn"

METADATA = ("_class_name", "_diffusers_version", "addition_embed_type_num_heads", "dropout", "upcast_attention")
"""Keys that change nothing here: softmax is float32 in any case."""


@dataclass(frozen=True)
class Level:
    """A resolution on the way down or up. `depths`: layers of each block's transformer, 0 where it has none."""

    channels: int
    heads: int
    text: int
    depths: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """The embedding of a pooled text with the picture's sizes: of `each` for every size, `inputs` in all."""

    each: int
    inputs: int


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `down` begins at the full resolution, `up` ends there; `middle` None: there is none.

    `time_size`: of the vector that steers the blocks. `guidance_size`: of guidance's embedding, None for a model that
    has none. `sample_size`: rows and columns of the latents it was trained on.
    """

    in_channels: int
    out_channels: int
    down: tuple[Level, ...]
    middle: Level | None
    up: tuple[Level, ...]
    linear_projection: bool
    groups: int
    norm_eps: float
    time_size: int
    added: Added | None
    guidance_size: int | None
    sample_size: int | None

    @property
    def channels(self) -> int:
        """At the full resolution."""
        return self.down[0].channels

    @property
    def factor(self) -> int:
        """Latents whose rows and columns are a multiple of this are halved evenly; others work as well."""
        return 1 << (len(self.down) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of what is denoised; the rest of `in_channels` is a mask and a masked picture."""
        return self.out_channels

    @property
    def norms(self) -> Norms:
        """Of residual blocks and of the last one."""
        return Norms(self.groups, self.norm_eps)

    def shape(self, level: Level) -> Shape:
        """Of a level's transformers."""
        return Shape(level.channels, level.heads, level.text, self.linear_projection, self.groups)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are diffusers'. Raises an error of `errors` that names the key."""
        keys = Keys(config, "sdxl unet")
        types = keys.strings("down_block_types") or (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
        up_types = keys.strings("up_block_types") or ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
        count = len(types)
        if len(up_types) != count:
            raise CheckpointError(f"config.json has {count} down_block_types and {len(up_types)} up_block_types")
        channels = keys.counts("block_out_channels", count)
        layers = keys.counts("layers_per_block", count, 2)
        # diffusers calls it the size of a head and reads it as their number.
        heads = keys.counts("attention_head_dim", count, 8)
        texts = keys.counts("cross_attention_dim", count, 1280)
        depths, up_depths, middle_depth = _depths(keys, layers)
        attends = [_known(DOWN, name) for name in types]
        up_attends = [_known(UP, name) for name in up_types]
        down = tuple(
            Level(width, n, text, tuple(depth if attend else 0 for depth in own))
            for width, n, text, own, attend in zip(channels, heads, texts, depths, attends, strict=True)
        )
        up = tuple(
            replace(level, depths=tuple(depth if attend else 0 for depth in own))
            for level, own, attend in zip(reversed(down), up_depths, up_attends, strict=True)
        )
        middle = keys.nullable("mid_block_type", str, MIDDLE)
        if middle not in (None, MIDDLE):
            raise UnsupportedModel(f"config.json sets mid_block_type to {middle!r}; Slipstream's unet has {MIDDLE!r}")
        groups = keys.size("norm_num_groups", 32)
        for level in (*down, *up):
            if level.channels % groups or (any(level.depths) and level.channels % level.heads):
                raise CheckpointError(
                    f"config.json: {level.channels} channels are no {groups} groups or no {level.heads} heads"
                )
        built = cls(
            in_channels=keys.size("in_channels", 4),
            out_channels=keys.size("out_channels", 4),
            down=down,
            middle=replace(down[-1], depths=(middle_depth,)) if middle else None,
            up=up,
            linear_projection=keys.take("use_linear_projection", bool, False),
            groups=groups,
            norm_eps=keys.positive("norm_eps", 1e-5),
            time_size=keys.size("time_embedding_dim", 4 * channels[0]),
            added=_added(keys),
            guidance_size=keys.optional("time_cond_proj_dim", int),
            sample_size=_sample_size(keys),
        )
        _refuse_others(keys)
        return built


def _known(names: Mapping[str, bool], name: str) -> bool:
    if name not in names:
        raise UnsupportedModel(f"config.json has a block {name!r}; Slipstream's unet has {', '.join(names)}")
    return names[name]


def _depths(keys: Keys, layers: Sequence[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], int]:
    """Layers of each transformer: by level on the way down, by level on the way up, and in the middle."""

    def by_level(name: str, given: Any, layers: Sequence[int]) -> list[tuple[int, ...]]:
        levels = given if isinstance(given, list | tuple) else (given,) * len(layers)
        found = [
            tuple(one) if isinstance(one, list | tuple) else (one,) * count
            for one, count in zip(levels, layers, strict=False)
        ]
        right = [len(one) for one in found] == list(layers) and len(levels) == len(layers)
        if not right or not all(type(depth) is int and depth > 0 for one in found for depth in one):
            raise CheckpointError(f"config.json: {name} {given!r} does not fit residual blocks {list(layers)}")
        return found

    down, up = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    given, reverse = keys.nested(down), keys.nested(up)
    given = 1 if given is None else given
    depths = by_level(down, given, layers)
    more = [count + 1 for count in reversed(layers)]
    if reverse is not None:
        up_depths = by_level(up, reverse, more)
    else:
        up_depths = by_level(down, list(reversed(given)) if isinstance(given, list | tuple) else given, more)
    return depths, up_depths, depths[-1][0]


def _added(keys: Keys) -> Added | None:
    kind = keys.optional("addition_embed_type", str)
    if kind is None:
        keys.ignore(("addition_time_embed_dim", "projection_class_embeddings_input_dim"))
        return None
    if kind != "text_time":
        raise UnsupportedModel(f"config.json sets addition_embed_type to {kind!r}; Slipstream's unet has 'text_time'")
    return Added(keys.size("addition_time_embed_dim"), keys.size("projection_class_embeddings_input_dim"))


def _sample_size(keys: Keys) -> int | None:
    size = keys.nested("sample_size")
    return max(size) if isinstance(size, list | tuple) else size


def _refuse_others(keys: Keys) -> None:
    """What diffusers' class can do besides."""
    if keys.take("act_fn", str, "silu") not in ("silu", "swish"):
        raise UnsupportedModel("config.json sets an act_fn other than 'silu', which is what Slipstream's unet has")
    keys.expect("attention_type", "default")
    keys.expect("center_input_sample", False)
    keys.expect("class_embeddings_concat", False)
    keys.expect("conv_in_kernel", 3)
    keys.expect("conv_out_kernel", 3)
    keys.expect("downsample_padding", 1)
    keys.expect("dual_cross_attention", False)
    keys.expect("flip_sin_to_cos", True)
    keys.expect("freq_shift", 0)
    keys.expect("mid_block_only_cross_attention", False)
    keys.expect("mid_block_scale_factor", 1)
    keys.expect("only_cross_attention", False)
    keys.expect("resnet_out_scale_factor", 1)
    keys.expect("resnet_skip_time_act", False)
    keys.expect("resnet_time_scale_shift", "default")
    keys.expect("time_embedding_type", "positional")
    keys.finish(METADATA)
