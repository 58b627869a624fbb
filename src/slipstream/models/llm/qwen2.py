"""Qwen 2 and 2.5, and QwQ: queries, keys and values have biases, and upper layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import Array

from slipstream.kernels.attention import attend
from slipstream.kernels.matmul import Around
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles
from slipstream.models.keys import Keys
from slipstream.models.llm.blocks import embed, feed_forward, logits, output, qkv
from slipstream.models.llm.layer_types import read_upper_windows
from slipstream.models.llm.rope import read_only_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.models.llm.weights import (
    Attention,
    Axes,
    Leaf,
    Mlp,
    Weights,
    plan_attention,
    plan_mlp,
    plan_model,
    plan_norm,
)
from slipstream.spec.param import stacked


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `kinds`: rotary table and window of each layer."""

    vocab_size: int
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float
    tied: bool
    kinds: tuple[Kind, ...]

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are transformers'. Raises an error of `errors` that names the key."""
        keys = Keys(config, "qwen2")
        heads, width = keys.size("num_attention_heads", 32), keys.size("hidden_size", 4096)
        layers, length = keys.size("num_hidden_layers", 32), keys.size("max_position_embeddings", 32_768)
        head_dim = keys.size("head_dim", width // heads)
        rope = read_only_rope(keys, head_dim=head_dim, max_position=length)
        keys.expect("hidden_act", "silu")
        keys.expect("use_mrope", False)
        c = cls(
            vocab_size=keys.size("vocab_size", 151_936),
            layers=layers,
            width=width,
            hidden=keys.size("intermediate_size", 22_016),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, 32),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, False),
            kinds=read_upper_windows(keys, layers, rope),
        )
        keys.finish()
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l."""

    attention_norm: Leaf
    attention: Attention
    mlp_norm: Leaf
    mlp: Mlp


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes = Axes.of(c)

    def layer(at: str) -> Block:
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm"),
            attention=plan_attention(axes, at + "self_attn.", bias=True),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            mlp=plan_mlp(axes, at + "mlp."),
        )

    return plan_model(axes, stacked(c.layers, layer), tied=c.tied)


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]."""
    norm = partial(Norm, eps=c.norm_eps)
    q, k, v = qkv(w.attention, x, Around(norm(w.attention_norm), real=step.real))
    y, cache = attend(cache, layer, q, k, v, step, scale=c.head_dim**-0.5, window=kind.window, angles=angles)
    x = output(w.attention, y, Around(add=x, real=step.real))
    return feed_forward(w.mlp, x, "silu", Around(norm(w.mlp_norm), add=x, real=step.real)), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.kinds[0].rope.angles(step.positions))  # one table for all layers
    return stack(run, w.blocks, embed(tokens, w.embed), step, cache, c.kinds)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
