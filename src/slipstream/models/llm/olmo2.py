"""OLMo 2: norms stand after attention and feed-forward, and on all heads of queries, and of keys, together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from slipstream.models.llm.rope import Rope, read_only_rope
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
from slipstream.spec.param import param, stacked


@dataclass(frozen=True)
class Config:
    """Sizes and switches."""

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
    attention_bias: bool
    rope: Rope

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are transformers'. Raises an error of `errors` that names the key."""
        keys = Keys(config, "olmo2")
        heads, width = keys.size("num_attention_heads", 32), keys.size("hidden_size", 4096)
        head_dim = keys.size("head_dim", width // heads)
        length = keys.size("max_position_embeddings", 2048)
        rope = read_only_rope(keys, head_dim=head_dim, max_position=length)
        keys.expect("hidden_act", "silu")
        c = cls(
            vocab_size=keys.size("vocab_size", 50_304),
            layers=keys.size("num_hidden_layers", 32),
            width=width,
            hidden=keys.size("intermediate_size", 11_008),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-5),
            tied=keys.take("tie_word_embeddings", bool, False),
            attention_bias=keys.take("attention_bias", bool, False),
            rope=rope,
        )
        keys.finish()
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l."""

    attention: Attention
    attention_out_norm: Leaf
    mlp: Mlp
    mlp_out_norm: Leaf


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes = Axes.of(c)
    _, _, _, N, K, H = axes

    def layer(at: str) -> Block:
        return Block(
            attention=replace(
                plan_attention(axes, at + "self_attn.", bias=c.attention_bias, out_bias=c.attention_bias),
                q_norm=param(N | H, at + "self_attn.q_norm.weight", "(n h) -> n h", init="ones"),
                k_norm=param(K | H, at + "self_attn.k_norm.weight", "(k h) -> k h", init="ones"),
            ),
            attention_out_norm=plan_norm(axes, at + "post_attention_layernorm"),
            mlp=plan_mlp(axes, at + "mlp."),
            mlp_out_norm=plan_norm(axes, at + "post_feedforward_layernorm"),
        )

    return plan_model(axes, stacked(c.layers, layer), tied=c.tied)


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]. What enters attention and feed-forward is not normed; what leaves them is."""
    norm = partial(Norm, eps=c.norm_eps)
    q, k, v = qkv(w.attention, x, Around(real=step.real))
    q, k = (together(norm(weight), y) for weight, y in ((w.attention.q_norm, q), (w.attention.k_norm, k)))
    y, cache = attend(cache, layer, q, k, v, step, scale=c.head_dim**-0.5, window=kind.window, angles=angles)
    x = output(w.attention, y, Around(after=norm(w.attention_out_norm), add=x, real=step.real))
    return feed_forward(w.mlp, x, "silu", Around(after=norm(w.mlp_out_norm), add=x, real=step.real)), cache


def together(norm: Norm, x: Array) -> Array:
    """All heads of `x` [t, n, h] normed as one vector, with a weight [n, h]."""
    flat = replace(norm, weight=norm.weight.reshape(-1))
    return flat(x.reshape(x.shape[0], -1)).reshape(x.shape)


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.rope.angles(step.positions))
    return stack(run, w.blocks, embed(tokens, w.embed), step, cache, (Kind(c.rope),) * c.layers)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
