"""T5's encoder (Raffel et al. 2020, arXiv:1910.10683), as version 1.1 has it and as the first one did.

Flux reads its states of a prompt, padding among them: no token is masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.kernels.batched_attention import attend_batch
from slipstream.kernels.matmul import rows_of
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import Kernels
from slipstream.models.activations import ACTIVATIONS
from slipstream.models.image.blocks import Linear, linear, linears, plan_linear
from slipstream.models.keys import Keys
from slipstream.models.layers import run_layers
from slipstream.models.llm.weights import Leaf
from slipstream.spec.param import Axis, param, stacked

FEED_FORWARDS: Mapping[str, tuple[str, bool]] = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_new", True),
    "gated-silu": ("silu", True),
}
"""`feed_forward_proj` of config.json: the activation, and whether a second product is multiplied with its result."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `buckets`: kinds of distance between tokens, up to `max_distance`, which has the last one."""

    vocab_size: int
    layers: int
    width: int
    hidden: int
    heads: int
    head_dim: int
    buckets: int
    max_distance: int
    norm_eps: float
    activation: str
    gated: bool

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Config:
        """From the encoder's config.json, whose defaults are transformers'. Raises an error of `errors`."""
        keys = Keys(config, "t5")
        feed_forward = keys.take("feed_forward_proj", str, "relu")
        if feed_forward not in FEED_FORWARDS:
            known = ", ".join(FEED_FORWARDS)
            raise UnsupportedModel(
                f"config.json sets feed_forward_proj to {feed_forward!r}; Slipstream's t5 computes {known}"
            )
        activation, gated = FEED_FORWARDS[feed_forward]
        keys.expect("dense_act_fn", activation)
        keys.expect("is_gated_act", gated)
        keys.expect("is_decoder", False)
        c = cls(
            vocab_size=keys.size("vocab_size", 32_128),
            layers=keys.size("num_layers", 6),
            width=keys.size("d_model", 512),
            hidden=keys.size("d_ff", 2048),
            heads=keys.size("num_heads", 8),
            head_dim=keys.size("d_kv", 64),
            buckets=keys.size("relative_attention_num_buckets", 32),
            max_distance=keys.size("relative_attention_max_distance", 128),
            norm_eps=keys.positive("layer_norm_epsilon", 1e-6),
            activation=activation,
            gated=gated,
        )
        if c.buckets < 4 or c.max_distance <= c.buckets // 4:
            raise UnsupportedModel(
                f"config.json: {c.buckets} buckets of distances up to {c.max_distance}: at least 4, up to more than a "
                "quarter of them"
            )
        # Of the decoder, of its output layer, and of training.
        keys.finish(
            (
                *("num_decoder_layers", "decoder_start_token_id", "tie_word_embeddings", "scale_decoder_outputs"),
                *("dropout_rate", "classifier_dropout", "initializer_factor", "n_positions", "output_past"),
                "task_specific_params",
            )
        )
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l. `gate`: None where nothing is gated."""

    attention_norm: Leaf
    q: Linear
    k: Linear
    v: Linear
    out: Linear
    mlp_norm: Leaf
    gate: Linear | None
    up: Linear
    down: Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights. `distances` [bucket, n]: what a distance adds to each head's scores, the same in all layers."""

    words: Leaf
    distances: Leaf
    blocks: Block
    final_norm: Leaf


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    D, F = Axis("embed", "d", c.width), Axis("mlp", "f", c.hidden)
    N, H = Axis("heads", "n", c.heads), Axis("head", "h", c.head_dim)
    product = partial(plan_linear, bias=False)

    def layer(at: str) -> Block:
        attention, mlp = at + "layer.0.SelfAttention.", at + "layer.1.DenseReluDense."
        return Block(
            attention_norm=param(D, at + "layer.0.layer_norm.weight", init="ones"),
            q=product(D, N | H, attention + "q"),
            k=product(D, N | H, attention + "k"),
            v=product(D, N | H, attention + "v"),
            out=product(N | H, D, attention + "o"),
            mlp_norm=param(D, at + "layer.1.layer_norm.weight", init="ones"),
            gate=product(D, F, mlp + "wi_0") if c.gated else None,
            up=product(D, F, mlp + ("wi_1" if c.gated else "wi")),
            down=product(F, D, mlp + "wo"),
        )

    return Weights(
        words=param(Axis("vocab", "v", c.vocab_size) | D, "shared.weight", contract=("embed",)),
        distances=param(
            Axis("bucket", "u", c.buckets) | N, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        blocks=stacked(c.layers, layer, "encoder.block.{}."),
        final_norm=param(D, "encoder.final_layer_norm.weight", init="ones"),
    )


def buckets_of(c: Config, distances: np.ndarray) -> np.ndarray:
    """The bucket of each distance from a token to one that it sees: int32 of the same shape.

    Half of them are for tokens behind. Of a half, half have a distance each, and the others grow by equal factors up to
    `c.max_distance`. Rounded in float32 as transformers does, or else borders would move.
    """
    half = c.buckets // 2
    exact = half // 2
    far = np.abs(distances)
    steps = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(log(c.max_distance / exact))
    spaced = np.minimum(exact + (steps * np.float32(half - exact)).astype(np.int32), half - 1)
    return np.where(far < exact, far, spaced).astype(np.int32) + half * (distances > 0).astype(np.int32)


def distance_bias(w: Weights, c: Config, t: int) -> Array:
    """What the distances among t tokens add to the scores, float32 [n, t, t]."""
    by_distance = w.distances.astype(jnp.float32)[buckets_of(c, np.arange(1 - t, t))]
    places = jnp.arange(t, dtype=jnp.int32)
    return jnp.moveaxis(by_distance[places[None, :] - places[:, None] + t - 1], -1, 0)


def block(c: Config, bias: Array, kernels: Kernels, w: Block, x: Array) -> Array:
    """One layer: `x` [b, t, d] -> [b, t, d]."""
    q, k, v = linears(("td,dnh->tnh",) * 3, Norm(w.attention_norm, c.norm_eps)(x), (w.q, w.k, w.v))
    # Scores are not scaled: T5's weights were drawn for that.
    x = x + linear("tnh,nhd->td", attend_batch(q, k, v, scale=1.0, bias=bias, kernels=kernels), w.out)
    activation, y = ACTIVATIONS[c.activation], Norm(w.mlp_norm, c.norm_eps)(x)
    if w.gate is None:
        opened = activation(linear("td,df->tf", y, w.up))
    else:
        gate, up = linears(("td,df->tf",) * 2, y, (w.gate, w.up))
        opened = activation(gate) * up
    return x + linear("tf,fd->td", opened, w.down)


def encode(w: Weights, c: Config, tokens: Array, *, kernels: Kernels = "reference") -> Array:
    """Texts i32[b, t], each filled up to t, to their states [b, t, d]. Padding counts as any other token.

    In float16 the states of published checkpoints overflow: use bfloat16 or float32.
    """
    count, t = tokens.shape
    x = rows_of(w.words, tokens.reshape(-1)).reshape(count, t, -1)
    x = run_layers(partial(block, c, distance_bias(w, c, t), kernels), w.blocks, x, c.layers)
    return Norm(w.final_norm, c.norm_eps)(x)
