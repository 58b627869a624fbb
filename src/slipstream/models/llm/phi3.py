"""Phi 3, 3.5 and 4 (mini and medium): checkpoints fuse q, k, v and gate, up, and a part of a head may be turned."""

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
from slipstream.models.llm.rope import Rope, read_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.models.llm.weights import (
    Attention,
    Axes,
    Leaf,
    Mlp,
    Weights,
    plan_model,
    plan_norm,
)
from slipstream.spec.param import Part, param, stacked


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `window`: a token sees this many tokens, itself included (None: all before it)."""

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

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are transformers'. Raises an error of `errors` that names the key."""
        keys = Keys(config, "phi3")
        heads, width = keys.size("num_attention_heads", 32), keys.size("hidden_size", 3072)
        head_dim, length = keys.size("head_dim", width // heads), keys.size("max_position_embeddings", 4096)
        rope = read_rope(
            keys.section("rope_scaling") or keys.section("rope_parameters"),
            base=keys.positive("rope_theta", 10_000.0),
            head_dim=head_dim,
            max_position=length,
            original=keys.size("original_max_position_embeddings", 4096),
            partial=keys.positive("partial_rotary_factor", 1.0),
            aliases=OLD_NAMES,
        )
        keys.expect("hidden_act", "silu")
        for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
            keys.expect(name, False)
        for name in ("full_attn_mod", "interpolate_factor"):
            keys.expect(name, 1)
        c = cls(
            vocab_size=keys.size("vocab_size", 32_064),
            layers=keys.size("num_hidden_layers", 32),
            width=width,
            hidden=keys.size("intermediate_size", 8192),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads),
            head_dim=head_dim,
            max_position=length,
            norm_eps=keys.take("rms_norm_eps", float, 1e-5),
            tied=keys.take("tie_word_embeddings", bool, False),
            window=keys.optional("sliding_window", int),
            rope=rope,
        )
        keys.finish(("embd_pdrop", "resid_pdrop"))  # training only
        return c


OLD_NAMES = {"su": "longrope", "yarn": "longrope"}
"""What the first Phi 3 files call longrope."""


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
    D, F, _, N, K, H = axes
    n, k = c.heads, c.kv_heads
    fused = n + 2 * k  # heads in one tensor: those of queries, then of keys, then of values

    def layer(at: str) -> Block:
        qkv_name, gate_up = at + "self_attn.qkv_proj.weight", at + "mlp.gate_up_proj.weight"
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm"),
            attention=Attention(
                wq=param(D | N | H, qkv_name, "(n h) d -> d n h", contract=("embed",), part=Part("n", 0, fused)),
                wk=param(D | K | H, qkv_name, "(k h) d -> d k h", contract=("embed",), part=Part("k", n, fused)),
                wv=param(D | K | H, qkv_name, "(k h) d -> d k h", contract=("embed",), part=Part("k", n + k, fused)),
                wo=param(N | H | D, at + "self_attn.o_proj.weight", "d (n h) -> n h d", contract=("heads", "head")),
            ),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            mlp=Mlp(
                gate=param(D | F, gate_up, "f d -> d f", contract=("embed",), part=Part("f", 0, 2 * c.hidden)),
                up=param(D | F, gate_up, "f d -> d f", contract=("embed",), part=Part("f", c.hidden, 2 * c.hidden)),
                down=param(F | D, at + "mlp.down_proj.weight", "d f -> f d", contract=("mlp",)),
            ),
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
    run = partial(block, c, c.rope.angles(step.positions))
    return stack(run, w.blocks, embed(tokens, w.embed), step, cache, (Kind(c.rope, c.window),) * c.layers)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
