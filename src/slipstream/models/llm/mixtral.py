"""Mixtral: a Mistral whose feed-forwards are mixtures of experts."""

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
from slipstream.models.llm.blocks import embed, logits, output, qkv
from slipstream.models.llm.moe import (
    Moe,
    feed_forward_of_experts,
    plan_experts,
    plan_router,
    read_counts,
    softmax_top_k,
)
from slipstream.models.llm.rope import Rope, read_only_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.models.llm.weights import Attention, Axes, Leaf, Weights, plan_attention, plan_model, plan_norm
from slipstream.spec.param import stacked

NAMES = ("experts.{}.w1.weight", "experts.{}.w3.weight", "experts.{}.w2.weight")
"""Gate, up and down."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `hidden` is that of an expert, of which each token gets `chosen`."""

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
    window: int | None
    rope: Rope
    experts: int
    chosen: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json. Raises UnknownConfigKeys, UnsupportedModel or CheckpointError, naming the key."""
        keys = Keys(config, "mixtral")
        heads, width = keys.size("num_attention_heads", 32), keys.size("hidden_size", 4096)
        head_dim = keys.size("head_dim", width // heads)
        length = keys.size("max_position_embeddings", 131_072)
        rope = read_only_rope(keys, base=1e6, head_dim=head_dim, max_position=length)
        experts, chosen = read_counts(keys, "num_local_experts", 8, 2)
        keys.expect("hidden_act", "silu")
        c = cls(
            vocab_size=keys.size("vocab_size", 32_000),
            layers=keys.size("num_hidden_layers", 32),
            width=width,
            hidden=keys.size("intermediate_size", 14_336),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, 8),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-5),
            tied=keys.take("tie_word_embeddings", bool, False),
            window=keys.optional("sliding_window", int),
            rope=rope,
            experts=experts,
            chosen=chosen,
        )
        keys.finish(("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"))
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l."""

    attention_norm: Leaf
    attention: Attention
    mlp_norm: Leaf
    moe: Moe


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes = Axes.of(c)

    def layer(at: str) -> Block:
        moe = at + "block_sparse_moe."
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm"),
            attention=plan_attention(axes, at + "self_attn."),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            moe=Moe(plan_router(axes, c.experts, moe + "gate.weight"), plan_experts(axes, c.experts, moe, NAMES)),
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
    choose = partial(softmax_top_k, chosen=c.chosen, normalized=True)
    around = Around(norm(w.mlp_norm), add=x, real=step.real)
    return feed_forward_of_experts(w.moe, x, choose, "silu", around), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.rope.angles(step.positions))
    return stack(run, w.blocks, embed(tokens, w.embed), step, cache, (Kind(c.rope, c.window),) * c.layers)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
