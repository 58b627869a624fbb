"""Qwen 3 mixtures of experts: 30B-A3B, 235B-A22B, Qwen3-Coder. Each head of queries and keys is normed."""

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
from slipstream.spec.param import Axis, stacked

NAMES = ("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight")


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `hidden` is that of an expert, of which each token gets `chosen`.

    `dense`: numbers of the layers that have one feed-forward, of `dense_hidden`, in place of experts.
    """

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
    normalized: bool
    attention_bias: bool
    dense: tuple[int, ...]
    dense_hidden: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json. Raises UnknownConfigKeys, UnsupportedModel or CheckpointError, naming the key."""
        keys = Keys(config, "qwen3_moe")
        heads, width = keys.size("num_attention_heads", 32), keys.size("hidden_size", 2048)
        head_dim = keys.size("head_dim", width // heads)
        length = keys.size("max_position_embeddings", 32_768)
        rope = read_only_rope(keys, head_dim=head_dim, max_position=length)
        # transformers 5 writes num_experts under the other name.
        experts, chosen = read_counts(keys, "num_experts", keys.size("num_local_experts", 128), 8)
        window = keys.nullable("sliding_window", int, 4096)
        keys.expect("hidden_act", "silu")
        keys.expect("shared_expert_intermediate_size", 0)  # of the first Qwen 3 checkpoints
        layers = keys.size("num_hidden_layers", 24)
        step, dense = keys.size("decoder_sparse_step", 1), keys.integers("mlp_only_layers")
        c = cls(
            vocab_size=keys.size("vocab_size", 151_936),
            layers=layers,
            width=width,
            hidden=keys.size("moe_intermediate_size", 768),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, 4),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, False),
            window=window if keys.take("use_sliding_window", bool, False) else None,
            rope=rope,
            experts=experts,
            chosen=chosen,
            normalized=keys.take("norm_topk_prob", bool, False),
            attention_bias=keys.take("attention_bias", bool, False),
            dense=tuple(i for i in range(layers) if i in dense or (i + 1) % step),
            dense_hidden=keys.size("intermediate_size", 6144),
        )
        # The number of layers with a window is for other Qwens.
        keys.finish(("max_window_layers", "output_router_logits", "router_aux_loss_coef"))
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of several with a leading axis l: a feed-forward, or experts."""

    attention_norm: Leaf
    attention: Attention
    mlp_norm: Leaf
    mlp: Mlp | None
    moe: Moe | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """The layers with one feed-forward, and those with experts; None where there are none of a kind."""

    dense: Block | None
    sparse: Block | None


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes = Axes.of(c)
    wide = axes._replace(F=Axis("mlp", "f", c.dense_hidden))

    def layer(at: str, mlp: Mlp | None = None, moe: Moe | None = None) -> Block:
        bias = c.attention_bias
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm"),
            attention=plan_attention(axes, at + "self_attn.", bias=bias, out_bias=bias, head_norms="ones"),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            mlp=mlp,
            moe=moe,
        )

    def dense(at: str) -> Block:
        return layer(at, mlp=plan_mlp(wide, at + "mlp."))

    def sparse(at: str) -> Block:
        moe = at + "mlp."
        router = plan_router(axes, c.experts, moe + "gate.weight")
        return layer(at, moe=Moe(router, plan_experts(axes, c.experts, moe, NAMES)))

    others = [i for i in range(c.layers) if i not in c.dense]
    blocks = Blocks(
        dense=stacked(c.dense, dense) if c.dense else None,
        sparse=stacked(others, sparse) if others else None,
    )
    return plan_model(axes, blocks, tied=c.tied)


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]."""
    norm = partial(Norm, eps=c.norm_eps)
    q, k, v = qkv(w.attention, x, Around(norm(w.attention_norm), real=step.real))
    heads = norm(w.attention.q_norm), norm(w.attention.k_norm)
    scale, window = c.head_dim**-0.5, kind.window
    y, cache = attend(cache, layer, q, k, v, step, scale=scale, window=window, angles=angles, qk_norm=heads)
    x = output(w.attention, y, Around(add=x, real=step.real))
    around = Around(norm(w.mlp_norm), add=x, real=step.real)
    if w.mlp is not None:
        return feed_forward(w.mlp, x, "silu", around), cache
    assert w.moe is not None, "a layer has one or the other"
    choose = partial(softmax_top_k, chosen=c.chosen, normalized=c.normalized)
    return feed_forward_of_experts(w.moe, x, choose, "silu", around), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.rope.angles(step.positions))
    kinds = [Kind(c.rope, c.window, form=int(i not in c.dense)) for i in range(c.layers)]
    return stack(run, (w.blocks.dense, w.blocks.sparse), embed(tokens, w.embed), step, cache, kinds)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
