"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020), and OpenCLIP's larger one, which SDXL has beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.kernels.batched_attention import MASKED, attend_batch
from slipstream.kernels.matmul import rows_of
from slipstream.kernels.ragged import Kernels
from slipstream.models.activations import ACTIVATIONS, read_activation
from slipstream.models.image.blocks import Linear, linear, linears, normed, plan_layer_norm, plan_linear
from slipstream.models.keys import Keys
from slipstream.models.layers import run_layers
from slipstream.models.llm.weights import Leaf
from slipstream.spec.param import Axis, param, stacked

HIGHEST_ID = 2
"""An `eos_token_id` that means another: the first conversions wrote it, and transformers then takes the highest id."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches.

    `eos`: the token whose state stands for the text. `projection`: the size that this state is projected to, or None.
    """

    vocab_size: int
    layers: int
    width: int
    hidden: int
    heads: int
    max_position: int
    norm_eps: float
    activation: str
    eos: int
    projection: int | None

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.width // self.heads

    @property
    def pooled(self) -> int:
        """Numbers in `ClipOutput.pooled` for a text."""
        return self.projection or self.width

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Config:
        """From the encoder's config.json, whose defaults are transformers'. Raises an error of `errors`."""
        keys = Keys(config, "clip")
        projected = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
        eos = keys.take("eos_token_id", int, 49_407)
        width, heads = keys.size("hidden_size", 512), keys.size("num_attention_heads", 8)
        if width % heads:
            raise UnsupportedModel(f"config.json: {heads} attention heads do not divide a hidden_size of {width}")
        projection = keys.size("projection_dim", 512)
        c = cls(
            vocab_size=keys.size("vocab_size", 49_408),
            layers=keys.size("num_hidden_layers", 12),
            width=width,
            hidden=keys.size("intermediate_size", 2048),
            heads=heads,
            max_position=keys.size("max_position_embeddings", 77),
            norm_eps=keys.positive("layer_norm_eps", 1e-5),
            activation=read_activation(keys, "hidden_act", "quick_gelu"),
            eos=eos,
            projection=projection if projected else None,
        )
        keys.finish(("dropout", "initializer_factor"))  # of training
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l."""

    attention_norm: Linear
    q: Linear
    k: Linear
    v: Linear
    out: Linear
    mlp_norm: Linear
    up: Linear
    down: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights."""

    words: Leaf
    positions: Leaf
    blocks: Block
    final_norm: Linear
    projection: Linear | None


class ClipOutput(NamedTuple):
    """What a text becomes.

    `hidden` [b, t, d]: the last layer's states, normed. `penultimate` [b, t, d]: the states that the last layer is
    given. `pooled` [b, e]: the normed state of the text's end, projected where the model has a projection.
    """

    hidden: Array
    penultimate: Array
    pooled: Array


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    D, F = Axis("embed", "d", c.width), Axis("mlp", "f", c.hidden)
    N, H = Axis("heads", "n", c.heads), Axis("head", "h", c.head_dim)

    def layer(at: str) -> Block:
        return Block(
            attention_norm=plan_layer_norm(D, at + "layer_norm1"),
            q=plan_linear(D, N | H, at + "self_attn.q_proj"),
            k=plan_linear(D, N | H, at + "self_attn.k_proj"),
            v=plan_linear(D, N | H, at + "self_attn.v_proj"),
            out=plan_linear(N | H, D, at + "self_attn.out_proj"),
            mlp_norm=plan_layer_norm(D, at + "layer_norm2"),
            up=plan_linear(D, F, at + "mlp.fc1"),
            down=plan_linear(F, D, at + "mlp.fc2"),
        )

    E = None if c.projection is None else Axis("pooled", "e", c.projection)
    table = "text_model.embeddings."
    return Weights(
        words=param(Axis("vocab", "v", c.vocab_size) | D, table + "token_embedding.weight", contract=("embed",)),
        positions=param(Axis("position", "p", c.max_position) | D, table + "position_embedding.weight"),
        blocks=stacked(c.layers, layer, "text_model.encoder.layers.{}."),
        final_norm=plan_layer_norm(D, "text_model.final_layer_norm"),
        projection=None if E is None else plan_linear(D, E, "text_projection", bias=False),
    )


def block(c: Config, causal: Array, kernels: Kernels, w: Block, x: Array) -> Array:
    """One layer: `x` [b, t, d] -> [b, t, d]."""
    q, k, v = linears(("td,dnh->tnh",) * 3, normed(w.attention_norm, x, c.norm_eps), (w.q, w.k, w.v))
    y = attend_batch(q, k, v, scale=c.head_dim**-0.5, bias=causal, kernels=kernels)
    x = x + linear("tnh,nhd->td", y, w.out)
    opened = ACTIVATIONS[c.activation](linear("td,df->tf", normed(w.mlp_norm, x, c.norm_eps), w.up))
    return x + linear("tf,fd->td", opened, w.down)


def encode(w: Weights, c: Config, tokens: Array, *, kernels: Kernels = "reference") -> ClipOutput:
    """Texts i32[b, t], each filled up to t, which is at most `c.max_position`. Padding counts as any other token."""
    count, t = tokens.shape
    if t > c.max_position:
        raise ValueError(f"{t} tokens are more than the {c.max_position} positions of this text encoder")
    x = rows_of(w.words, tokens.reshape(-1)).reshape(count, t, -1) + w.positions[:t]
    causal = jnp.where(jnp.tri(t, dtype=bool), 0.0, MASKED)[None]

    def one(layer: Block, states: tuple[Array, Array]) -> tuple[Array, Array]:
        return block(c, causal, kernels, layer, states[0]), states[0]

    last, penultimate = run_layers(one, w.blocks, (x, x), c.layers)
    hidden = normed(w.final_norm, last, c.norm_eps)
    end = jnp.argmax(tokens if c.eos == HIGHEST_ID else tokens == c.eos, axis=-1)  # the first of them
    pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
    if w.projection is not None:
        pooled = linear("td,de->te", pooled, w.projection)
    return ClipOutput(hidden, penultimate, pooled)
