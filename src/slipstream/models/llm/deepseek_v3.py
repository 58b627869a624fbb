"""DeepSeek V3, its predecessor V2, and Kimi K2: latent attention, and mixtures of experts beside shared ones.

Attention runs on the latent. A token's keys and values are products of one latent of z numbers, so the cache holds that
and the one rotated key, a single KV head for all; the products that make keys of it are moved to the query, those that
make values to the result (DeepSeek-AI 2024, arXiv:2405.04434).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.kernels.attention import attend
from slipstream.kernels.matmul import ALONE, Around, dot
from slipstream.kernels.norm import Norm
from slipstream.kernels.ragged import KVCache, Step
from slipstream.kernels.rotary import Angles, rotate, unpaired
from slipstream.models.keys import Keys
from slipstream.models.llm.blocks import embed, feed_forward, linear, linears, logits
from slipstream.models.llm.moe import Grouped, Moe, feed_forward_of_experts, plan_experts, plan_router, read_counts
from slipstream.models.llm.rope import Rope, read_only_rope
from slipstream.models.llm.stack import Kind, stack
from slipstream.models.llm.weights import Axes, Leaf, Mlp, Weights, plan_mlp, plan_model, plan_norm
from slipstream.spec.param import Axis, Part, param, stacked

NAMES = ("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight")
LATENT_EPS = 1e-6  # of the norms of latents, whatever rms_norm_eps says: transformers and the published code agree
# topk_method -> how many scores make a group's, and whether the choice is corrected; no groups where it is None.
METHODS: dict[str, tuple[int | None, bool]] = {
    "greedy": (None, False),
    "group_limited_greedy": (1, False),
    "noaux_tc": (2, True),
}


@dataclass(frozen=True)
class Config:
    """Sizes and switches.

    `heads` have keys of `plain` + `turned` numbers, of which the latter are rotated, and values of `value`. `paired`:
    rotated pairs are neighbours. `latent` and `query_latent`: the latents' sizes (None: queries have none). `hidden` is
    that of the first `dense` layers, `expert_hidden` that of an expert, `shared_hidden` that of all shared ones as one.
    `corrected`: experts are chosen by corrected scores.
    """

    vocab_size: int
    layers: int
    width: int
    hidden: int
    heads: int
    plain: int
    turned: int
    value: int
    latent: int
    query_latent: int | None
    max_position: int
    norm_eps: float
    tied: bool
    attention_bias: bool
    paired: bool
    rope: Rope
    dense: int
    experts: int
    expert_hidden: int
    shared_hidden: int
    choice: Grouped
    corrected: bool

    @property
    def kv_heads(self) -> int:
        """One for all heads."""
        return 1

    @property
    def head_dim(self) -> int:
        """What the cache holds of a token: its latent and the rotated key."""
        return self.latent + self.turned

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Config:
        """From config.json. Raises UnknownConfigKeys, UnsupportedModel or CheckpointError, naming the key."""
        second = config.get("model_type") == "deepseek_v2"
        keys = Keys(config, "deepseek_v2" if second else "deepseek_v3")
        heads, layers = keys.size("num_attention_heads"), keys.size("num_hidden_layers")
        keys.expect("num_key_value_heads", heads)
        length = keys.size("max_position_embeddings", 2048 if second else 4096)
        turned = keys.size("qk_rope_head_dim", 64)
        rope = read_only_rope(keys, head_dim=turned, max_position=length)
        experts, chosen = read_counts(keys, "n_routed_experts", 64 if second else 256, 8)
        shared = keys.take("n_shared_experts", int, 2 if second else 1)
        expert_hidden = keys.size("moe_intermediate_size", 1407 if second else 2048)
        choice, corrected = _choice(keys, experts, chosen, second)
        keys.expect("hidden_act", "silu")
        keys.expect("moe_layer_freq", 1)
        c = cls(
            vocab_size=keys.size("vocab_size"),
            layers=layers,
            width=keys.size("hidden_size"),
            hidden=keys.size("intermediate_size"),
            heads=heads,
            plain=keys.size("qk_nope_head_dim", 128),
            turned=turned,
            value=keys.size("v_head_dim", 128),
            latent=keys.size("kv_lora_rank", 512),
            query_latent=keys.nullable("q_lora_rank", int, 1536),
            max_position=rope.longest(length),
            norm_eps=keys.take("rms_norm_eps", float, 1e-6),
            tied=keys.take("tie_word_embeddings", bool, False),
            attention_bias=keys.take("attention_bias", bool, False),
            paired=second or keys.take("rope_interleave", bool, True),
            rope=rope,
            dense=min(keys.take("first_k_dense_replace", int, 0 if second else 3), layers),
            experts=experts,
            expert_hidden=expert_hidden,
            shared_hidden=shared * expert_hidden,
            choice=choice,
            corrected=corrected,
        )
        # Of training, and of the layers that predict the token after the next; head_dim is written and not read.
        keys.finish(
            ("aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp", "num_nextn_predict_layers", "num_mtp_layers",
             "output_router_logits", "router_aux_loss_coef", "head_dim", "qk_head_dim", "mlp_bias")
        )  # fmt: skip
        return c


def _choice(keys: Keys, experts: int, chosen: int, second: bool) -> tuple[Grouped, bool]:
    """How experts are chosen, and whether by corrected scores."""
    method = keys.take("topk_method", str, "greedy" if second else "noaux_tc")
    scoring = keys.take("scoring_func", str, "softmax" if second else "sigmoid")
    groups, open_groups = (
        keys.take("n_group", int, 1 if second else 8),
        keys.take("topk_group", int, 1 if second else 4),
    )
    if method not in METHODS or scoring not in ("softmax", "sigmoid"):
        raise UnsupportedModel(
            f"{keys.family} chooses experts by {', '.join(METHODS)} of sigmoid or softmax scores, "
            f"not by {method} of {scoring}"
        )
    best, corrected = METHODS[method]
    if best is None:
        groups, open_groups, best = 1, 1, 1
    if groups < 1 or experts % groups or not 0 < open_groups <= groups or open_groups * (experts // groups) < chosen:
        raise CheckpointError(
            f"config.json: {chosen} of {experts} experts (n_routed_experts) cannot be chosen from {open_groups} "
            f"(topk_group) of {groups} groups (n_group)"
        )
    # V2's code reads norm_topk_prob and never applies it.
    normalized = keys.take("norm_topk_prob", bool, not second) and not second
    scale = keys.take("routed_scaling_factor", float, 1.0 if second else 2.5)
    return Grouped(chosen, groups, open_groups, best, scoring == "sigmoid", normalized, scale), corrected


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Latent attention. `to_query` [d, a] and its norm, then `wq` [a, n, h]; or `wq` [d, n, h] alone.

    `to_latent` [d, z] and its norm, `to_turned` [d, r]. `wk` [n, h, z] and `wv` [n, z, o] stay arrays: packed
    and quantized leaves have no rules for products of each head with a matrix of its own.
    """

    to_query: Leaf | None
    query_norm: Leaf
    wq: Leaf
    to_latent: Leaf
    latent_norm: Leaf
    to_turned: Leaf
    wk: Leaf
    wv: Leaf
    wo: Leaf
    query_bias: Leaf | None = None
    latent_bias: Leaf | None = None
    turned_bias: Leaf | None = None
    bo: Leaf | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """The weights of one layer, or of several with a leading axis l.

    A dense layer has `mlp` alone. Others have experts, `mlp` for those that are shared by all tokens, if any, and the
    `correction` [e] of their choice.
    """

    attention_norm: Leaf
    attention: Attention
    mlp_norm: Leaf
    mlp: Mlp | None
    moe: Moe | None = None
    correction: Leaf | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """The first layers, which are dense, and the others; None where there are none of a kind."""

    dense: Block | None
    sparse: Block | None


def plan_attention(c: Config, axes: Axes, at: str) -> Attention:
    """The plan of a layer's attention, whose names begin with `at`."""
    D, N = axes.D, axes.N
    H, A = Axis("head", "h", c.plain + c.turned), Axis("query_latent", "a", c.query_latent or 1)
    Z, R = Axis("latent", "z", c.latent), Axis("turned", "r", c.turned)
    P, U = Axis("head", "h", c.plain), Axis("value", "o", c.value)
    both, in_head = c.latent + c.turned, c.plain + c.value
    down, up = at + "kv_a_proj_with_mqa", at + "kv_b_proj.weight"
    query, bias = c.query_latent is not None, c.attention_bias
    direct = param(D | N | H, at + "q_proj.weight", "(n h) d -> d n h", contract=("embed",))
    return Attention(
        to_query=param(D | A, at + "q_a_proj.weight", "a d -> d a", contract=("embed",)) if query else None,
        query_norm=param(A, at + "q_a_layernorm.weight", init="ones") if query else None,
        wq=param(A | N | H, at + "q_b_proj.weight", "(n h) a -> a n h", contract=("query_latent",))
        if query
        else direct,
        to_latent=param(D | Z, down + ".weight", "z d -> d z", contract=("embed",), part=Part("z", 0, both)),
        latent_norm=param(Z, at + "kv_a_layernorm.weight", init="ones"),
        to_turned=param(D | R, down + ".weight", "r d -> d r", contract=("embed",), part=Part("r", c.latent, both)),
        wk=param(N | P | Z, up, "(n h) z -> n h z", part=Part("h", 0, in_head)),
        wv=param(N | Z | U, up, "(n o) z -> n z o", part=Part("o", c.plain, in_head)),
        wo=param(N | U | D, at + "o_proj.weight", "d (n o) -> n o d", contract=("heads", "value")),
        query_bias=param(A, at + "q_a_proj.bias") if bias and query else None,
        latent_bias=param(Z, down + ".bias", part=Part("z", 0, both)) if bias else None,
        turned_bias=param(R, down + ".bias", part=Part("r", c.latent, both)) if bias else None,
        bo=param(D, at + "o_proj.bias") if bias else None,
    )


def plan(c: Config) -> Weights:
    """The weights' tree with a `Param` at each leaf."""
    axes = Axes.of(c)
    experts, shared = (axes._replace(F=Axis("mlp", "f", size)) for size in (c.expert_hidden, c.shared_hidden))

    def dense(at: str) -> Block:
        return Block(
            attention_norm=plan_norm(axes, at + "input_layernorm"),
            attention=plan_attention(c, axes, at + "self_attn."),
            mlp_norm=plan_norm(axes, at + "post_attention_layernorm"),
            mlp=plan_mlp(axes, at + "mlp."),
        )

    def sparse(at: str) -> Block:
        moe, choices = at + "mlp.", Axis("choices", "e", c.experts)
        correction = param(choices, moe + "gate.e_score_correction_bias", init="zeros", wide=True)
        return replace(
            dense(at),
            mlp=plan_mlp(shared, moe + "shared_experts.") if c.shared_hidden else None,
            moe=Moe(plan_router(axes, c.experts, moe + "gate.weight"), plan_experts(experts, c.experts, moe, NAMES)),
            correction=correction if c.corrected else None,
        )

    first, rest = range(c.dense), range(c.dense, c.layers)
    blocks = Blocks(
        dense=stacked(first, dense) if first else None,
        sparse=stacked(rest, sparse) if rest else None,
    )
    return plan_model(axes, blocks, tied=c.tied)


def attention(
    c: Config, angles: Angles, w: Attention, x: Array, step: Step, cache: KVCache, layer: Array, around: Around
) -> tuple[Array, KVCache]:
    """`x` [t, d] -> what each head mixed of the values [t, n, o], and the cache with the latents of these tokens."""
    inside = Around(real=step.real)
    down = (w.to_latent, w.to_turned), (w.latent_bias, w.turned_bias)
    if w.to_query is None:
        q, latent, turned = linears(
            ("td,dnh->tnh", "td,dz->tz", "td,dr->tr"), x, (w.wq, *down[0]), (None, *down[1]), around
        )
    else:
        weights, biases = (w.to_query, *down[0]), (w.query_bias, *down[1])
        queries, latent, turned = linears(("td,da->ta", "td,dz->tz", "td,dr->tr"), x, weights, biases, around)
        q = dot("ta,anh->tnh", queries, w.wq, replace(inside, norm=Norm(w.query_norm, LATENT_EPS)))
    plain, to_turn = q[..., : c.plain], q[..., c.plain :]
    turned = turned[:, None]
    if c.paired:
        to_turn, turned = unpaired(to_turn), unpaired(turned)
    key = jnp.concatenate((Norm(w.latent_norm, LATENT_EPS)(latent)[:, None], rotate(turned, angles)), axis=-1)
    query = jnp.concatenate((dot("tnh,nhz->tnz", plain, w.wk, ALONE), rotate(to_turn, angles)), axis=-1)
    scale = (c.plain + c.turned) ** -0.5 * c.rope.sharpness
    mixed, cache = attend(cache, layer, query, key, c.latent, step, scale=scale)
    return dot("tnz,nzo->tno", mixed, w.wv, ALONE), cache


def block(
    c: Config, angles: Angles, w: Block, x: Array, step: Step, cache: KVCache, layer: Array, kind: Kind
) -> tuple[Array, KVCache]:
    """One layer: `x` [t, d] -> [t, d]."""
    norm = partial(Norm, eps=c.norm_eps)
    before = Around(norm(w.attention_norm), real=step.real)
    y, cache = attention(c, angles, w.attention, x, step, cache, layer, before)
    x = linear("tno,nod->td", y, w.attention.wo, w.attention.bo, Around(add=x, real=step.real))
    around = Around(norm(w.mlp_norm), add=x, real=step.real)
    beside = x if w.mlp is None else feed_forward(w.mlp, x, "silu", around)
    if w.moe is None:
        return beside, cache
    choose = partial(c.choice, correction=w.correction)
    return feed_forward_of_experts(w.moe, x, choose, "silu", replace(around, add=beside)), cache


def forward(w: Weights, c: Config, tokens: Array, step: Step, cache: KVCache) -> tuple[Array, KVCache]:
    """Packed `tokens` i32[t] to the states [t, d] after the last block, and the cache with their keys."""
    run = partial(block, c, c.rope.angles(step.positions))
    dense, sparse = Kind(c.rope, form=0), Kind(c.rope, form=1)
    kinds = (dense,) * c.dense + (sparse,) * (c.layers - c.dense)
    return stack(run, (w.blocks.dense, w.blocks.sparse), embed(tokens, w.embed), step, cache, kinds)


def unembed(w: Weights, c: Config, x: Array, real: Array | None = None) -> Array:
    """Logits float32 [r, v] of states `x` [r, d], of which the first `real` i32[] are wanted (None: all)."""
    return logits(w, x, c.norm_eps, real)
