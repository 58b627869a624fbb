"""Flux.1 (Black Forest Labs 2024): dev, schnell, and those of the same form with more input channels (fill, kontext).

A transformer on packed latents: each token is a square of 2 x 2 latent pixels. Blocks of the first kind have weights of
their own for text and for image, which meet in attention (Esser et al. 2024, arXiv:2403.03206); blocks of the second
kind have one set for both, and attention and feed-forward side by side (Dehghani et al. 2023, arXiv:2302.05442).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.kernels.batched_attention import attend_batch
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import Kernels
from slipstream.kernels.rotary import Angles, rotate, unpaired
from slipstream.models.image.blocks import (
    Embedder,
    Linear,
    embedded,
    linear,
    linears,
    modulated,
    opened,
    plan_embedder,
    plan_linear,
    sinusoid,
)
from slipstream.models.keys import Keys
from slipstream.models.layers import run_layers
from slipstream.models.llm.weights import Leaf
from slipstream.spec.param import Axis, Part, param, stacked

WAVES = 256
"""Size of the sinusoids of time and guidance."""
STEPS = 1000
"""What times and guidances are multiplied by, as in training."""
NORM_EPS = 1e-6
THETA = 10_000
WIDENING = 4
"""How much wider a feed-forward is inside."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `channels`: of a token given, `out_channels`: of one that comes out.

    `text`, `pooled`: sizes of T5's states and of CLIP's pooled state. `axes`: how many elements of a head turn with
    each of a token's three coordinates. `guided`: guidance is an input.
    """

    channels: int
    out_channels: int
    doubles: int
    singles: int
    heads: int
    head_dim: int
    text: int
    pooled: int
    axes: tuple[int, ...]
    guided: bool

    @property
    def width(self) -> int:
        """Numbers in a token's state."""
        return self.heads * self.head_dim

    @property
    def hidden(self) -> int:
        """Inner size of a feed-forward."""
        return WIDENING * self.width

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Config:
        """From the transformer's config.json, whose defaults are diffusers'. Raises an error of `errors`."""
        keys = Keys(config, "flux")
        channels, patch = keys.size("in_channels", 64), keys.size("patch_size", 1)
        c = cls(
            channels=channels,
            out_channels=patch * patch * keys.size("out_channels", channels),
            doubles=keys.size("num_layers", 19),
            singles=keys.size("num_single_layers", 38),
            heads=keys.size("num_attention_heads", 24),
            head_dim=keys.size("attention_head_dim", 128),
            text=keys.size("joint_attention_dim", 4096),
            pooled=keys.size("pooled_projection_dim", 768),
            axes=keys.sizes("axes_dims_rope", (16, 56, 56)),
            guided=keys.take("guidance_embeds", bool, False),
        )
        if len(c.axes) != 3 or any(size % 2 for size in c.axes) or sum(c.axes) != c.head_dim:
            raise UnsupportedModel(
                f"config.json: axes_dims_rope {list(c.axes)} must be three even sizes whose sum is attention_head_dim, "
                f"{c.head_dim}"
            )
        keys.finish(("_class_name", "_diffusers_version"))
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stream:
    """What a double block has for each of text and image."""

    modulation: Linear
    q: Linear
    k: Linear
    v: Linear
    q_norm: Leaf
    k_norm: Leaf
    out: Linear
    up: Linear
    down: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Double:
    """The weights of a double block, or of all of them with a leading axis l."""

    image: Stream
    text: Stream


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Single:
    """The weights of a single block, or of all of them with a leading axis l.

    `out` is the product with attention's result, `down` that with the feed-forward's; it has the bias of both.
    """

    modulation: Linear
    q: Linear
    k: Linear
    v: Linear
    q_norm: Leaf
    k_norm: Leaf
    up: Linear
    out: Linear
    down: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights. `guidance`: None where the model has none."""

    image: Linear
    text: Linear
    time: Embedder
    guidance: Embedder | None
    pooled: Embedder
    double: Double
    single: Single
    modulation: Linear
    out: Linear


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    D, F = Axis("embed", "d", c.width), Axis("mlp", "f", c.hidden)
    N, H = Axis("heads", "n", c.heads), Axis("head", "h", c.head_dim)
    waves = Axis("waves", "c", WAVES)

    def modulation(count: int, name: str) -> Linear:
        """A condition's scales and shifts: [d] -> [count, d]. They are a quarter of all weights."""
        return plan_linear(D, Axis("kinds", "k", count) | Axis("modulation", "m", c.width), name + ".linear")

    def norm(name: str) -> Leaf:
        return param(H, name + ".weight", init="ones")

    def stream(at: str, mark: str, q: str, out: str, added: str) -> Stream:
        """`mark` is in the names of the text's modulation and feed-forward, `added` in those of its norms."""
        attention = at + "attn."
        return Stream(
            modulation=modulation(6, f"{at}norm1{mark}"),
            q=plan_linear(D, N | H, attention + q.format("q")),
            k=plan_linear(D, N | H, attention + q.format("k")),
            v=plan_linear(D, N | H, attention + q.format("v")),
            q_norm=norm(f"{attention}norm_{added}q"),
            k_norm=norm(f"{attention}norm_{added}k"),
            out=plan_linear(N | H, D, attention + out),
            up=plan_linear(D, F, f"{at}ff{mark}.net.0.proj"),
            down=plan_linear(F, D, f"{at}ff{mark}.net.2"),
        )

    def double(at: str) -> Double:
        return Double(
            image=stream(at, "", "to_{}", "to_out.0", ""),
            text=stream(at, "_context", "add_{}_proj", "to_add_out", "added_"),
        )

    def single(at: str) -> Single:
        # One stored matrix takes attention's result and the feed-forward's, one after the other.
        joined = c.width + c.hidden
        return Single(
            modulation=modulation(3, at + "norm"),
            q=plan_linear(D, N | H, at + "attn.to_q"),
            k=plan_linear(D, N | H, at + "attn.to_k"),
            v=plan_linear(D, N | H, at + "attn.to_v"),
            q_norm=norm(at + "attn.norm_q"),
            k_norm=norm(at + "attn.norm_k"),
            up=plan_linear(D, F, at + "proj_mlp"),
            out=plan_linear(N | H, D, at + "proj_out", bias=False, part=Part("n", 0, joined // c.head_dim)),
            down=plan_linear(F, D, at + "proj_out", part=Part("f", c.width, joined)),
        )

    return Weights(
        image=plan_linear(Axis("channels", "c", c.channels), D, "x_embedder"),
        text=plan_linear(Axis("text", "c", c.text), D, "context_embedder"),
        time=plan_embedder(waves, D, "time_text_embed.timestep_embedder"),
        guidance=plan_embedder(waves, D, "time_text_embed.guidance_embedder") if c.guided else None,
        pooled=plan_embedder(Axis("pooled", "c", c.pooled), D, "time_text_embed.text_embedder"),
        double=stacked(c.doubles, double, "transformer_blocks.{}."),
        single=stacked(c.singles, single, "single_transformer_blocks.{}."),
        modulation=modulation(2, "norm_out"),
        out=plan_linear(D, Axis("channels", "c", c.out_channels), "proj_out"),
    )


def angles_of(c: Config, ids: Array) -> Angles:
    """Cosine and sine, float32 [..., t, h/2] each, for the coordinates `ids` [..., t, 3] of tokens."""
    turns = [np.float64(THETA) ** (-np.arange(0, size, 2) / size) for size in c.axes]
    places = ids.astype(jnp.float32)
    radians = jnp.concatenate([places[..., i, None] * turn.astype(np.float32) for i, turn in enumerate(turns)], axis=-1)
    return jnp.cos(radians), jnp.sin(radians)


def conditions(w: Linear, condition: Array) -> list[Array]:
    """Scales, shifts and gates [b, d] of a condition [b, d], in the order in which they are stored."""
    values = linear("td,dkm->tkm", jax.nn.silu(condition), w)
    return [values[:, i] for i in range(values.shape[1])]


def heads_of(w: Stream | Single, x: Array) -> list[Array]:
    """Queries, keys and values [b, t, n, h] of states, the former two normed."""
    q, k, v = linears(("td,dnh->tnh",) * 3, x, (w.q, w.k, w.v))
    return [Norm(w.q_norm, NORM_EPS)(q), Norm(w.k_norm, NORM_EPS)(k), v]


def attention(c: Config, angles: Angles, kernels: Kernels, q: Array, k: Array, v: Array) -> Array:
    """Attention among all tokens, text first; pairs of neighbours in a head are turned."""
    q, k = (rotate(unpaired(x), angles) for x in (q, k))
    return attend_batch(q, k, v, scale=c.head_dim**-0.5, kernels=kernels)


def double_block(
    c: Config, condition: Array, angles: Angles, kernels: Kernels, w: Double, states: tuple[Array, Array]
) -> tuple[Array, Array]:
    """One block: states of text and image, [b, t, d] each."""
    streams = (w.text, w.image)
    kinds = [conditions(stream.modulation, condition) for stream in streams]
    heads = [
        heads_of(stream, modulated(x, scale, shift, NORM_EPS))
        for stream, x, (shift, scale, *_) in zip(streams, states, kinds, strict=True)
    ]
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(*heads, strict=True))
    y = attention(c, angles, kernels, q, k, v)
    cut = states[0].shape[1]
    found = []
    for stream, x, own, (_, _, gate, shift, scale, mlp_gate) in zip(
        streams, states, (y[:, :cut], y[:, cut:]), kinds, strict=True
    ):
        x = x + gate[:, None] * linear("tnh,nhd->td", own, stream.out)
        inside = opened(modulated(x, scale, shift, NORM_EPS), stream.up, kernels, tanh=True)
        found.append(x + mlp_gate[:, None] * linear("tf,fd->td", inside, stream.down))
    return found[0], found[1]


def single_block(c: Config, condition: Array, angles: Angles, kernels: Kernels, w: Single, x: Array) -> Array:
    """One block: states of text and image together, [b, t, d]."""
    shift, scale, gate = conditions(w.modulation, condition)
    y = modulated(x, scale, shift, NORM_EPS)
    inside = opened(y, w.up, kernels, tanh=True)
    attended = attention(c, angles, kernels, *heads_of(w, y))
    both = linear("tnh,nhd->td", attended, w.out) + linear("tf,fd->td", inside, w.down)
    return x + gate[:, None] * both


def condition_of(w: Weights, pooled: Array, time: Array, guidance: Array | None) -> Array:
    """What all blocks are conditioned on, [b, d]: time, guidance and the prompt as a whole."""
    found = embedded(w.time, sinusoid(time * STEPS, WAVES).astype(pooled.dtype))
    if w.guidance is not None:
        assert guidance is not None
        found = found + embedded(w.guidance, sinusoid(guidance * STEPS, WAVES).astype(pooled.dtype))
    return found + embedded(w.pooled, pooled)


def forward(
    w: Weights,
    c: Config,
    latents: Array,
    text: Array,
    pooled: Array,
    time: Array,
    guidance: Array | None,
    text_ids: Array,
    image_ids: Array,
    *,
    kernels: Kernels = "reference",
) -> Array:
    """The velocity [b, t, out_channels] of packed `latents` [b, t, channels], in their dtype.

    `text` [b, s, e]: T5's states. `pooled` [b, p]: CLIP's pooled state. `time` float32 [b], 1 for noise and 0 for an
    image. `guidance` float32 [b] as the user gives it (3.5), None where the config has none. `text_ids` [s, 3] and
    `image_ids` [t, 3]: coordinates of tokens, the same for the whole batch, or with a leading axis b.

    Raises ValueError where guidance is given or missing against the config.
    """
    begun = _begun(w, c, latents, text, pooled, time, guidance, text_ids, image_ids)
    condition, angles, states = begun
    states = run_layers(partial(double_block, c, condition, angles, kernels), w.double, states, c.doubles)
    return _out(w, condition, _singles(w, c, begun, kernels, states))


class Kept(NamedTuple):
    """What a pass left for passes after it: what the first block added to the picture's states, and what all those
    after it did, [b, t, d] each.
    """

    first: Array
    rest: Array


def forward_reusing(
    w: Weights,
    c: Config,
    latents: Array,
    text: Array,
    pooled: Array,
    time: Array,
    guidance: Array | None,
    text_ids: Array,
    image_ids: Array,
    kept: Kept,
    limits: Array,
    real: Array,
    *,
    kernels: Kernels = "reference",
) -> tuple[Array, Kept, Array]:
    """`forward`, but a row whose first block adds about what it added before takes from `kept` what the rest adds.

    About: the mean difference is under `limits` float32 [b] of the mean size; a row without anything kept has a limit
    of 0 or less. The blocks after the first are left out where all `real` rows (bool [b]) reuse; otherwise all rows
    compute them. Gives the velocity, what is kept now, and bool [b]: which rows reused. (The observation of TeaCache,
    arXiv:2411.19108, with the first block in the place of a fitted polynomial, as ParaAttention has it.)
    """
    begun = _begun(w, c, latents, text, pooled, time, guidance, text_ids, image_ids)
    condition, angles, before = begun
    block = partial(double_block, c, condition, angles, kernels)
    states = run_layers(block, w.double, before, 1)
    added = states[1] - before[1]
    reused = _size(added - kept.first) < limits * _size(kept.first)
    known = states[1] + kept.rest
    x = jax.lax.cond(
        jnp.all(reused | ~real),
        lambda: known,
        lambda: _singles(w, c, begun, kernels, run_layers(block, w.double, states, c.doubles, first=1)),
    )
    rows = reused[:, None, None]
    x = jnp.where(rows, known, x)
    kept = Kept(jnp.where(rows, kept.first, added), jnp.where(rows, kept.rest, x - states[1]))
    return _out(w, condition, x), kept, reused


Begun = tuple[Array, Angles, tuple[Array, Array]]
"""The condition of all blocks, the angles of all tokens, and the states of text and image."""


def _begun(
    w: Weights,
    c: Config,
    latents: Array,
    text: Array,
    pooled: Array,
    time: Array,
    guidance: Array | None,
    text_ids: Array,
    image_ids: Array,
) -> Begun:
    """All that is before the blocks. Raises ValueError as `forward`."""
    if (guidance is None) == c.guided:
        raise ValueError("this Flux model needs a guidance" if c.guided else "this Flux model takes no guidance")
    condition = condition_of(w, pooled.astype(latents.dtype), time.astype(jnp.float32), guidance)
    angles = angles_of(c, jnp.concatenate((text_ids, image_ids), axis=-2))
    states = linear("tc,cd->td", text.astype(latents.dtype), w.text), linear("tc,cd->td", latents, w.image)
    return condition, angles, states


def _singles(w: Weights, c: Config, begun: Begun, kernels: Kernels, states: tuple[Array, Array]) -> Array:
    """States of the image after the single blocks."""
    condition, angles, _ = begun
    x = jnp.concatenate(states, axis=1)
    x = run_layers(partial(single_block, c, condition, angles, kernels), w.single, x, c.singles)
    return x[:, states[0].shape[1] :]


def _out(w: Weights, condition: Array, x: Array) -> Array:
    """The velocity of the image's states."""
    scale, shift = conditions(w.modulation, condition)
    return linear("td,dc->tc", modulated(x, scale, shift, NORM_EPS), w.out)


def _size(x: Array) -> Array:
    """The mean absolute value of each row."""
    return jnp.mean(jnp.abs(x.astype(jnp.float32)), axis=(1, 2))
