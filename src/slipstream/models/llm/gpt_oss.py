"""gpt-oss: mixtures of experts, a sink in every head's attention, a sliding window in every second layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.kernels.attention import attend
from slipstream.kernels.experts import Clamped, Experts
from slipstream.kernels.matmul import Around
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles
from slipstream.models.keys import Keys
from slipstream.models.llm.blocks import embed, logits, output, qkv
from slipstream.models.llm.moe import Moe, feed_forward_of_experts, plan_router, read_counts, softmax_top_k
from slipstream.models.llm.rope import Rope, read_only_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.models.llm.weights import Attention, Axes, Leaf, Weights, plan_attention, plan_model, plan_norm
from slipstream.spec.param import Axis, Part, param, stacked

# transformers' rope_parameters where config.json has none.
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Config:
    """Sizes and switches. `hidden`: of an expert, of which each token gets `chosen`. `windows`: of each layer."""

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
    windows: tuple[int | None, ...]
    rope: Rope
    experts: int
    chosen: int
    activation: Clamped

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json. Raises UnknownConfigKeys, UnsupportedModel or CheckpointError, naming the key."""
        scaled = any(config.get(name) for name in ("rope_scaling", "rope_parameters"))
        keys = Keys(config if scaled else {**config, "rope_scaling": ROPE}, "gpt_oss")
        heads, layers = keys.size("num_attention_heads", 64), keys.size("num_hidden_layers", 36)
        head_dim = keys.size("head_dim", 64)
        length = keys.size("max_position_embeddings", 131_072)
        # The pretraining length stands twice in published files; the mapping's is the one that counts.
        keys.ignore(("initial_context_length",))
        rope = read_only_rope(keys, base=150_000.0, head_dim=head_dim, max_position=length)
        experts, chosen = read_counts(keys, "num_local_experts", 128, 4)
        keys.ignore(("experts_per_token",))  # num_experts_per_tok under its older name
        keys.expect("hidden_act", "silu")
        c = cls(
            vocab_size=keys.size("vocab_size", 201_088),
            layers=layers,
            width=keys.size("hidden_size", 2880),
            hidden=keys.size("intermediate_size", 2880),
            heads=heads,
            kv_heads=keys.share("num_key_value_heads", heads, 8),
            head_dim=head_dim,
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-5),
            tied=keys.take("tie_word_embeddings", bool, False),
            attention_bias=keys.take("attention_bias", bool, True),
            windows=_windows(keys, layers),
            rope=rope,
            experts=experts,
            chosen=chosen,
            activation=Clamped(keys.positive("swiglu_alpha", 1.702), keys.positive("swiglu_limit", 7.0)),
        )
        keys.finish(("output_router_logits", "router_aux_loss_coef"))
        return c


def _windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """The window of each layer: as listed, or every second one from the first on."""
    window = keys.nullable("sliding_window", int, 128)
    kinds = {"sliding_attention": window, "full_attention": None}
    listed = keys.strings("layer_types") or tuple(list(kinds)[i % 2] for i in range(layers))
    if len(listed) != layers:
        raise UnsupportedModel(f"layer_types lists {len(listed)} layers, num_hidden_layers says {layers}")
    if unknown := sorted(set(listed) - set(kinds)):
        raise UnsupportedModel(f"gpt_oss has layers of type {', '.join(kinds)}, not {', '.join(unknown)}")
    return tuple(kinds[kind] for kind in listed)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of all of them with a leading axis l. `sinks`: [n]."""

    attention_norm: Leaf
    attention: Attention
    sinks: Leaf
    mlp_norm: Leaf
    moe: Moe


def plan_moe(c: Config, axes: Axes, at: str) -> Moe:
    """The plan of a layer's experts, which are stored together; gate and up alternate in one tensor."""
    D, F, *_ = axes
    E = Axis("expert", "e", c.experts)
    gate, up = (Part("f", start, 2 * c.hidden, step=2) for start in range(2))
    both = at + "experts.gate_up_proj"
    return Moe(
        router=plan_router(axes, c.experts, at + "router.weight"),
        experts=Experts(
            gate=param(E | D | F, both, contract=("embed",), part=gate),
            up=param(E | D | F, both, contract=("embed",), part=up),
            down=param(E | F | D, at + "experts.down_proj", contract=("mlp",)),
            gate_bias=param(E | F, both + "_bias", part=gate),
            up_bias=param(E | F, both + "_bias", part=up),
            down_bias=param(E | D, at + "experts.down_proj_bias"),
        ),
        router_bias=param(Axis("choices", "e", c.experts), at + "router.bias"),
    )


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes, bias = Axes.of(c), c.attention_bias

    def layer(at: str) -> Block:
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm"),
            attention=plan_attention(axes, at + "self_attn.", bias=bias, out_bias=bias),
            sinks=param(axes.N, at + "self_attn.sinks"),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            moe=plan_moe(c, axes, at + "mlp."),
        )

    return plan_model(axes, stacked(c.layers, layer), tied=c.tied)


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]."""
    norm = partial(Norm, eps=c.norm_eps)
    q, k, v = qkv(w.attention, x, Around(norm(w.attention_norm), real=step.real))
    scale, window = c.head_dim**-0.5, kind.window
    y, cache = attend(cache, layer, q, k, v, step, scale=scale, window=window, angles=angles, sinks=w.sinks)
    x = output(w.attention, y, Around(add=x, real=step.real))
    # A softmax over the chosen logits alone is one over all of them whose shares are made to sum to 1.
    choose = partial(softmax_top_k, chosen=c.chosen, normalized=True)
    around = Around(norm(w.mlp_norm), add=x, real=step.real)
    return feed_forward_of_experts(w.moe, x, choose, c.activation, around), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys and values."""
    run = partial(block, c, c.rope.angles(step.positions))
    kinds = tuple(Kind(c.rope, window) for window in c.windows)
    return stack(run, w.blocks, embed(tokens, w.embed), step, cache, kinds)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
