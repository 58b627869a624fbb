"""Gemma 3 text models, alone or as the language part of the multimodal checkpoints (images are not read)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.kernels.attention import attend
from slipstream.kernels.matmul import Around, dot, dots, gated_mlp
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles
from slipstream.models.keys import Keys
from slipstream.models.llm.blocks import QKV, Leaf, embed, soft_cap
from slipstream.models.llm.rope import Rope, read_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.spec.param import Axis, param, stacked


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `kinds`: rotary table and window of each layer. `prefix`: of all tensor names."""

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
    prefix: str

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json, whose defaults are transformers'. Raises an error of `errors` that names the key."""
        outer = Keys(config, "gemma3")
        text = outer.section("text_config")
        keys = text or outer
        heads = keys.size("num_attention_heads", 8)
        layers, length = keys.size("num_hidden_layers", 26), keys.size("max_position_embeddings", 131_072)
        head_dim, types = keys.size("head_dim", 256), _layer_types(keys, layers)
        full, local = _ropes(keys, head_dim, length)
        kinds = {"full_attention": Kind(full), "sliding_attention": Kind(local, keys.size("sliding_window", 4096))}
        if unknown := sorted(set(types) - set(kinds)):
            raise UnsupportedModel(f"gemma3 has layers of type {', '.join(kinds)}, not {', '.join(unknown)}")
        for name in ("hidden_activation", "hidden_act"):
            keys.expect(name, "gelu_pytorch_tanh")
        keys.expect("use_bidirectional_attention", False)
        keys.expect("attention_bias", False)
        c = cls(
            vocab_size=keys.size("vocab_size", 262_208),
            layers=layers,
            width=keys.size("hidden_size", 2304),
            hidden=keys.size("intermediate_size", 9216),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, 4),
            head_dim=head_dim,
            max_position=length,
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, True),
            score_scale=keys.positive("query_pre_attn_scalar", 256.0) ** -0.5,
            score_cap=keys.optional("attn_logit_softcapping", float),
            logit_cap=keys.optional("final_logit_softcapping", float),
            kinds=tuple(kinds[t] for t in types),
            prefix="language_model." if text else "",
        )
        keys.finish()
        if text:
            outer.expect("tie_word_embeddings", c.tied)
            outer.finish(("vision_config", "mm_tokens_per_image", *_IMAGE_TOKENS))
        return c


_IMAGE_TOKENS = tuple(f"{name}_token_{end}" for name in ("boi", "eoi", "image") for end in ("id", "index"))


def _layer_types(keys: Keys, layers: int) -> tuple[str, ...]:
    """The type of each layer: as listed, or every `sliding_window_pattern`th one full, the others sliding."""
    every = keys.size("_sliding_window_pattern", 6)
    every = keys.size("sliding_window_pattern", every)
    listed = keys.strings("layer_types")
    if listed is not None and len(listed) != layers:
        raise UnsupportedModel(f"layer_types lists {len(listed)} layers, num_hidden_layers says {layers}")
    return listed or tuple("sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers))


def _ropes(keys: Keys, head_dim: int, length: int) -> tuple[Rope, Rope]:
    """Rotary tables of full and of sliding layers. `rope_scaling` is for the full ones alone."""
    nested = keys.section("rope_parameters")
    full, local = (nested and nested.section(name) for name in ("full_attention", "sliding_attention"))
    base, local_base = keys.positive("rope_theta", 1e6), keys.positive("rope_local_base_freq", 1e4)
    return (
        read_rope(keys.section("rope_scaling") or full, base=base, head_dim=head_dim, max_position=length),
        read_rope(local, base=local_base, head_dim=head_dim, max_position=length),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l. Norms are stored as w - 1."""

    attention_norm: Leaf
    wq: Leaf
    wk: Leaf
    wv: Leaf
    q_norm: Leaf
    k_norm: Leaf
    wo: Leaf
    attention_out_norm: Leaf
    mlp_norm: Leaf
    gate: Leaf
    up: Leaf
    down: Leaf
    mlp_out_norm: Leaf


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

    def layer(at: str) -> Block:
        attn, ffn = at + "self_attn.", at + "mlp."
        return Block(
            attention_norm=param(D, at + "input_layernorm.weight", init="zeros"),
            wq=param(D | N | H, attn + "q_proj.weight", "(n h) d -> d n h", contract=("embed",)),
            wk=param(D | K | H, attn + "k_proj.weight", "(k h) d -> d k h", contract=("embed",)),
            wv=param(D | K | H, attn + "v_proj.weight", "(k h) d -> d k h", contract=("embed",)),
            q_norm=param(H, attn + "q_norm.weight", init="zeros"),
            k_norm=param(H, attn + "k_norm.weight", init="zeros"),
            wo=param(N | H | D, attn + "o_proj.weight", "d (n h) -> n h d", contract=("heads", "head")),
            attention_out_norm=param(D, at + "post_attention_layernorm.weight", init="zeros"),
            mlp_norm=param(D, at + "pre_feedforward_layernorm.weight", init="zeros"),
            gate=param(D | F, ffn + "gate_proj.weight", "f d -> d f", contract=("embed",)),
            up=param(D | F, ffn + "up_proj.weight", "f d -> d f", contract=("embed",)),
            down=param(F | D, ffn + "down_proj.weight", "d f -> f d", contract=("mlp",)),
            mlp_out_norm=param(D, at + "post_feedforward_layernorm.weight", init="zeros"),
        )

    return Weights(
        embed=param(V | D, c.prefix + "model.embed_tokens.weight", contract=("embed",)),
        blocks=stacked(c.layers, layer, c.prefix + "model.layers.{}."),
        final_norm=param(D, c.prefix + "model.norm.weight", init="zeros"),
        head=None if c.tied else param(V | D, c.prefix + "lm_head.weight", contract=("embed",)),
    )


def block(
    c: Config, angles: Mapping[Rope, Angles], w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]. Norms before and after both halves; queries and keys are normed a head."""
    norm = partial(Norm, eps=c.norm_eps, offset=1.0)
    q, k, v = dots(QKV, x, (w.wq, w.wk, w.wv), Around(norm(w.attention_norm), real=step.real))
    attention = partial(attend, scale=c.score_scale, window=kind.window, soft_cap=c.score_cap)
    heads = norm(w.q_norm), norm(w.k_norm)
    y, cache = attention(cache, layer, q, k, v, step, angles=angles[kind.rope], qk_norm=heads)
    x = dot("tnh,nhd->td", y, w.wo, Around(after=norm(w.attention_out_norm), add=x, real=step.real))
    mlp = Around(norm(w.mlp_norm), norm(w.mlp_out_norm), add=x, real=step.real)
    return gated_mlp(x, w.gate, w.up, w.down, "gelu_tanh", mlp), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    x = embed(tokens, w.embed)
    x = x * jnp.asarray(c.width**0.5, x.dtype)  # Rounded to the weights' type first, as in training.
    angles = {rope: rope.angles(step.positions) for rope in dict.fromkeys(kind.rope for kind in c.kinds)}
    return stack(partial(block, c, angles), w.blocks, x, step, cache, c.kinds)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    around = Around(Norm(w.final_norm, c.norm_eps, 1.0), real=real)
    logits = dot("rd,vd->rv", x, w.embed if w.head is None else w.head, around, dtype=jnp.float32)
    return soft_cap(logits, c.logit_cap)
