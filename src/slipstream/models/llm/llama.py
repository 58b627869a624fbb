"""Llama 1 to 3.3 and those built like it: SmolLM2, TinyLlama, Mistral."""

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
from slipstream.spec.param import stacked


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
    attention_bias: bool
    mlp_bias: bool
    window: int | None
    rope: Rope

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json. Raises UnknownConfigKeys, UnsupportedModel or CheckpointError, naming the key."""
        keys = Keys(config, "llama")
        keys.expect("rope_interleaved", False)
        biases = (keys.take("attention_bias", bool, False), keys.take("mlp_bias", bool, False))
        c = cls._read(keys, biases=biases, window=None, kv_heads=None, length=2048)
        # pretraining_tp cuts products into slices whose results are joined again; the others are notes.
        keys.finish(("pretraining_tp", "max_sequence_length", "is_llama_config"))
        return c

    @classmethod
    def of_mistral(cls, config: Mapping[str, Any]) -> Config:
        """Mistral has no biases, and a window of 4096 unless config.json says null. Raises as `from_hf`."""
        keys = Keys(config, "mistral")
        for name in ("attention_bias", "mlp_bias"):
            keys.expect(name, False)
        window = keys.nullable("sliding_window", int, 4096)
        c = cls._read(keys, biases=(False, False), window=window, kv_heads=8, length=131_072)
        keys.finish()
        return c

    @classmethod
    def _read(
        cls, keys: Keys, *, biases: tuple[bool, bool], window: int | None, kv_heads: int | None, length: int
    ) -> Config:
        """What both have. `kv_heads` and `length` are transformers' where config.json leaves them out."""
        heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
        head_dim = keys.size("head_dim", width // heads)
        length = keys.size("max_position_embeddings", length)
        rope = read_only_rope(keys, head_dim=head_dim, max_position=length)
        keys.expect("hidden_act", "silu")
        return cls(
            vocab_size=keys.size("vocab_size"),
            layers=keys.size("num_hidden_layers"),
            width=width,
            hidden=keys.size("intermediate_size"),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, kv_heads),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, False),
            attention_bias=biases[0],
            mlp_bias=biases[1],
            window=window,
            rope=rope,
        )


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
            attention=plan_attention(axes, at + "self_attn.", bias=c.attention_bias, out_bias=c.attention_bias),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            mlp=plan_mlp(axes, at + "mlp.", bias=c.mlp_bias),
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
