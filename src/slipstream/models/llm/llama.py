"""Llama 1 to 3.3 and those built like it: SmolLM2, TinyLlama, Mistral (with its sliding window)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.kernels.attention import attend
from slipstream.kernels.matmul import Around, dot, gated_mlp
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles
from slipstream.models.keys import Keys
from slipstream.models.llm.blocks import QKV, Leaf, embed, linear, linears
from slipstream.models.llm.rope import Rope, read_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.spec.param import Axis, param, stacked


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
        heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
        head_dim = keys.size("head_dim", width // heads)
        length = keys.size("max_position_embeddings", 2048)
        rope = read_rope(
            keys.section("rope_scaling") or keys.section("rope_parameters"),
            base=keys.positive("rope_theta", 10_000.0),
            head_dim=head_dim,
            max_position=length,
            original=keys.optional("original_max_position_embeddings", int),
        )
        # transformers' Mistral has a window of 4096 unless config.json says null; its Llama has none.
        window = keys.nullable("sliding_window", int, 4096) if config.get("model_type") == "mistral" else None
        keys.expect("hidden_act", "silu")
        keys.expect("rope_interleaved", False)
        keys.expect("partial_rotary_factor", 1.0)
        c = cls(
            vocab_size=keys.size("vocab_size"),
            layers=keys.size("num_hidden_layers"),
            width=width,
            hidden=keys.size("intermediate_size"),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, heads),
            head_dim=head_dim,
            max_position=length if rope.growth is None else int(length * rope.growth.factor),
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, False),
            attention_bias=keys.take("attention_bias", bool, False),
            mlp_bias=keys.take("mlp_bias", bool, False),
            window=window,
            rope=rope,
        )
        # pretraining_tp cuts products into slices whose results are joined again; the others are notes.
        keys.finish(("pretraining_tp", "max_sequence_length", "is_llama_config"))
        return c


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l. A bias that the config turns off is None."""

    attention_norm: Leaf
    wq: Leaf
    wk: Leaf
    wv: Leaf
    wo: Leaf
    bq: Leaf | None
    bk: Leaf | None
    bv: Leaf | None
    bo: Leaf | None
    mlp_norm: Leaf
    gate: Leaf
    up: Leaf
    down: Leaf
    gate_bias: Leaf | None
    up_bias: Leaf | None
    down_bias: Leaf | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights. `head` is None where the embedding is also the output layer."""

    embed: Leaf
    blocks: Block
    final_norm: Leaf
    head: Leaf | None


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    D, F, V = Axis("embed", "d", c.width), Axis("mlp", "f", c.hidden), Axis("vocab", "v", c.vocab_size)
    N, K, H = Axis("heads", "n", c.heads), Axis("kv_heads", "k", c.kv_heads), Axis("head", "h", c.head_dim)
    qkvo, mlp = (param if on else (lambda *_, **__: None) for on in (c.attention_bias, c.mlp_bias))

    def layer(at: str) -> Block:
        attn, ffn = at + "self_attn.", at + "mlp."
        return Block(
            attention_norm=param(D, at + "input_layernorm.weight", init="ones"),
            wq=param(D | N | H, attn + "q_proj.weight", "(n h) d -> d n h", contract=("embed",)),
            wk=param(D | K | H, attn + "k_proj.weight", "(k h) d -> d k h", contract=("embed",)),
            wv=param(D | K | H, attn + "v_proj.weight", "(k h) d -> d k h", contract=("embed",)),
            wo=param(N | H | D, attn + "o_proj.weight", "d (n h) -> n h d", contract=("heads", "head")),
            bq=qkvo(N | H, attn + "q_proj.bias", "(n h) -> n h"),
            bk=qkvo(K | H, attn + "k_proj.bias", "(k h) -> k h"),
            bv=qkvo(K | H, attn + "v_proj.bias", "(k h) -> k h"),
            bo=qkvo(D, attn + "o_proj.bias"),
            mlp_norm=param(D, at + "post_attention_layernorm.weight", init="ones"),
            gate=param(D | F, ffn + "gate_proj.weight", "f d -> d f", contract=("embed",)),
            up=param(D | F, ffn + "up_proj.weight", "f d -> d f", contract=("embed",)),
            down=param(F | D, ffn + "down_proj.weight", "d f -> f d", contract=("mlp",)),
            gate_bias=mlp(F, ffn + "gate_proj.bias"),
            up_bias=mlp(F, ffn + "up_proj.bias"),
            down_bias=mlp(D, ffn + "down_proj.bias"),
        )

    return Weights(
        embed=param(V | D, "model.embed_tokens.weight", contract=("embed",)),
        blocks=stacked(c.layers, layer),
        final_norm=param(D, "model.norm.weight", init="ones"),
        head=None if c.tied else param(V | D, "lm_head.weight", contract=("embed",)),
    )


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]."""
    norm = partial(Norm, eps=c.norm_eps)
    before = Around(norm(w.attention_norm), real=step.real)
    q, k, v = linears(QKV, x, (w.wq, w.wk, w.wv), (w.bq, w.bk, w.bv), before)
    y, cache = attend(cache, layer, q, k, v, step, scale=c.head_dim**-0.5, window=kind.window, angles=angles)
    x = linear("tnh,nhd->td", y, w.wo, w.bo, Around(add=x, real=step.real))
    mlp = Around(norm(w.mlp_norm), add=x, real=step.real)
    if w.down_bias is None:
        return gated_mlp(x, w.gate, w.up, w.down, "silu", mlp), cache
    opened, y = linears(("td,df->tf",) * 2, x, (w.gate, w.up), (w.gate_bias, w.up_bias), replace(mlp, add=None))
    return linear("tf,fd->td", jax.nn.silu(opened) * y, w.down, w.down_bias, replace(mlp, norm=None)), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.rope.angles(step.positions))
    return stack(run, w.blocks, embed(tokens, w.embed), step, cache, (Kind(c.rope, c.window),) * c.layers)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    around = Around(Norm(w.final_norm, c.norm_eps), real=real)
    return dot("rd,vd->rv", x, w.embed if w.head is None else w.head, around, dtype=jnp.float32)
