"""Gemma 2: every other layer has a window, and scores and logits are capped."""

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
from slipstream.models.llm.blocks import embed, feed_forward, logits, output, qkv, soft_cap
from slipstream.models.llm.layer_types import FULL, SLIDING, read_kinds
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
    score_scale: float
    score_cap: float | None
    logit_cap: float | None
    kinds: tuple[Kind, ...]

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are transformers'. Raises an error of `errors` that names the key."""
        keys = Keys(config, "gemma2")
        heads, head_dim = keys.size("num_attention_heads", 8), keys.size("head_dim", 256)
        layers, length = keys.size("num_hidden_layers", 26), keys.size("max_position_embeddings", 8192)
        rope = read_only_rope(keys, head_dim=head_dim, max_position=length)
        window = keys.size("sliding_window", 4096)
        keys.expect("sliding_window_size", window)
        kinds = {FULL: Kind(rope), SLIDING: Kind(rope, window)}
        for name in ("hidden_activation", "hidden_act"):
            keys.expect(name, "gelu_pytorch_tanh")
        keys.expect("use_bidirectional_attention", False)
        keys.expect("attention_bias", False)
        c = cls(
            vocab_size=keys.size("vocab_size", 256_000),
            layers=layers,
            width=keys.size("hidden_size", 2304),
            hidden=keys.size("intermediate_size", 9216),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, 4),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, True),
            score_scale=keys.positive("query_pre_attn_scalar", 256.0) ** -0.5,
            score_cap=keys.nullable("attn_logit_softcapping", float, 50.0),
            logit_cap=keys.nullable("final_logit_softcapping", float, 30.0),
            kinds=read_kinds(keys, kinds, [FULL if i % 2 else SLIDING for i in range(layers)]),
        )
        keys.finish()
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l. Norms are stored as w - 1."""

    attention_norm: Leaf
    attention: Attention
    attention_out_norm: Leaf
    mlp_norm: Leaf
    mlp: Mlp
    mlp_out_norm: Leaf


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes = Axes.of(c)

    def layer(at: str) -> Block:
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm", "zeros"),
            attention=plan_attention(axes, at + "self_attn."),
            attention_out_norm=plan_norm(axes, at + "post_attention_layernorm", "zeros"),
            mlp_norm=plan_norm(axes, at + "pre_feedforward_layernorm", "zeros"),
            mlp=plan_mlp(axes, at + "mlp."),
            mlp_out_norm=plan_norm(axes, at + "post_feedforward_layernorm", "zeros"),
        )

    return plan_model(axes, stacked(c.layers, layer), tied=c.tied, norms="zeros")


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]. Norms before and after both halves."""
    norm = partial(Norm, eps=c.norm_eps, offset=1.0)
    q, k, v = qkv(w.attention, x, Around(norm(w.attention_norm), real=step.real))
    attention = partial(attend, scale=c.score_scale, window=kind.window, soft_cap=c.score_cap)
    y, cache = attention(cache, layer, q, k, v, step, angles=angles)
    x = output(w.attention, y, Around(after=norm(w.attention_out_norm), add=x, real=step.real))
    around = Around(norm(w.mlp_norm), norm(w.mlp_out_norm), add=x, real=step.real)
    return feed_forward(w.mlp, x, "gelu_tanh", around), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.kinds[0].rope.angles(step.positions))  # one table for all layers
    return stack(run, w.blocks, embed(tokens, w.embed, c.width**0.5), step, cache, c.kinds)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return soft_cap(logits(w, x, c.norm_eps, real, offset=1.0), c.logit_cap)
