"""The tensors of each GGUF architecture that is read, and Hugging Face's names for them.

A row says how the GGUF converter changed a tensor, so that the source can give it back as Hugging Face stores it:
`rotate` names the head count whose rows were permuted for interleaved rotary embedding (architectures llama and
granite), and `shift` is what was added to the values (Gemma's norms are stored as 1 + w). A layer's experts are one
tensor in a GGUF. Two tensors of a GGUF that are one in Hugging Face's files are in JOINS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Heads = Literal["query", "key"]


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its Hugging Face name (with `{}` for the layer) and what the converter did to it.

    `ends`: what follows the name for a weight and for a bias. `turned`: the last two axes are the other way round. A
    name that has braces left after that of the layer is a tensor for each index of the GGUF's first axis, an expert's.
    """

    name: str
    rotate: Heads | None = None
    shift: float = 0.0
    ends: tuple[str, str] = (".weight", ".bias")
    turned: bool = False


@dataclass(frozen=True)
class Join:
    """Two tensors of a GGUF that are one in Hugging Face's files, by the ends of their names.

    `values(first, second)` and `shape(first, second)`: the one of the two, and its shape of theirs.
    """

    first: str
    second: str
    whole: str
    values: Callable[[np.ndarray, np.ndarray], np.ndarray]
    shape: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...]]


_LAYER = "model.layers.{}."

_ENDS = {
    "token_embd": Row("model.embed_tokens"),
    "output_norm": Row("model.norm"),
    "output": Row("lm_head"),
}
_ATTENTION = {
    "blk.{}.attn_q": Row(_LAYER + "self_attn.q_proj"),
    "blk.{}.attn_k": Row(_LAYER + "self_attn.k_proj"),
    "blk.{}.attn_v": Row(_LAYER + "self_attn.v_proj"),
    "blk.{}.attn_output": Row(_LAYER + "self_attn.o_proj"),
}
_ROTATED = _ATTENTION | {
    "blk.{}.attn_q": Row(_LAYER + "self_attn.q_proj", rotate="query"),
    "blk.{}.attn_k": Row(_LAYER + "self_attn.k_proj", rotate="key"),
}
_HEAD_NORMS = {
    "blk.{}.attn_q_norm": Row(_LAYER + "self_attn.q_norm"),
    "blk.{}.attn_k_norm": Row(_LAYER + "self_attn.k_norm"),
}
_MLP = {
    "blk.{}.ffn_gate": Row(_LAYER + "mlp.gate_proj"),
    "blk.{}.ffn_up": Row(_LAYER + "mlp.up_proj"),
    "blk.{}.ffn_down": Row(_LAYER + "mlp.down_proj"),
}
_FUSED = {
    "blk.{}.attn_qkv": Row(_LAYER + "self_attn.qkv_proj"),
    "blk.{}.attn_output": Row(_LAYER + "self_attn.o_proj"),
    "blk.{}.ffn_up": Row(_LAYER + "mlp.gate_up_proj"),
    "blk.{}.ffn_down": Row(_LAYER + "mlp.down_proj"),
}
_BEFORE = {
    "blk.{}.attn_norm": Row(_LAYER + "input_layernorm"),
    "blk.{}.ffn_norm": Row(_LAYER + "post_attention_layernorm"),
}
_AFTER = {
    "blk.{}.post_attention_norm": Row(_LAYER + "post_attention_layernorm"),
    "blk.{}.post_ffw_norm": Row(_LAYER + "post_feedforward_layernorm"),
}
_AROUND = _BEFORE | _AFTER | {"blk.{}.ffn_norm": Row(_LAYER + "pre_feedforward_layernorm")}


def _experts(of_layer: str, gate: str, up: str, down: str) -> dict[str, Row]:
    """A router and experts, each a tensor of its own in Hugging Face's files: `gate`, `up` and `down` are their
    names."""
    at = _LAYER + of_layer
    names = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    rows = {f"blk.{{}}.{stem}": Row(f"{at}.experts.{{{{}}}}.{name}") for stem, name in names.items()}
    return {"blk.{}.ffn_gate_inp": Row(at + ".gate"), **rows}


_QWEN_EXPERTS = _experts("mlp", "gate_proj", "up_proj", "down_proj")
_GPT_OSS = {
    "blk.{}.attn_sinks": Row(_LAYER + "self_attn.sinks", ends=("", "")),
    "blk.{}.ffn_gate_inp": Row(_LAYER + "mlp.router"),
    "blk.{}.ffn_gate_exps": Row(_LAYER + "mlp.experts.gate_proj", ends=("", "_bias")),
    "blk.{}.ffn_up_exps": Row(_LAYER + "mlp.experts.up_proj", ends=("", "_bias")),
    "blk.{}.ffn_down_exps": Row(_LAYER + "mlp.experts.down_proj", ends=("", "_bias"), turned=True),
}
_DEEPSEEK = {
    "blk.{}.attn_q": Row(_LAYER + "self_attn.q_proj"),
    "blk.{}.attn_q_a": Row(_LAYER + "self_attn.q_a_proj"),
    "blk.{}.attn_q_a_norm": Row(_LAYER + "self_attn.q_a_layernorm"),
    "blk.{}.attn_q_b": Row(_LAYER + "self_attn.q_b_proj"),
    "blk.{}.attn_kv_a_mqa": Row(_LAYER + "self_attn.kv_a_proj_with_mqa"),
    "blk.{}.attn_kv_a_norm": Row(_LAYER + "self_attn.kv_a_layernorm"),
    "blk.{}.attn_kv_b": Row(_LAYER + "self_attn.kv_b_proj"),
    "blk.{}.attn_k_b": Row(_LAYER + "self_attn.k_b_proj"),
    "blk.{}.attn_v_b": Row(_LAYER + "self_attn.v_b_proj"),
    "blk.{}.attn_output": Row(_LAYER + "self_attn.o_proj"),
    "blk.{}.exp_probs_b": Row(_LAYER + "mlp.gate.e_score_correction_bias", ends=("", "")),
    "blk.{}.ffn_gate_shexp": Row(_LAYER + "mlp.shared_experts.gate_proj"),
    "blk.{}.ffn_up_shexp": Row(_LAYER + "mlp.shared_experts.up_proj"),
    "blk.{}.ffn_down_shexp": Row(_LAYER + "mlp.shared_experts.down_proj"),
}


def _shifted(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The same, with 1 added to all norms, as in Gemma's files."""
    return {stem: replace(row, shift=1.0) if stem.endswith("norm") else row for stem, row in rows.items()}


TENSORS: Mapping[str, Mapping[str, Row]] = {
    "llama": _ENDS | _BEFORE | _ROTATED | _MLP | _experts("block_sparse_moe", "w1", "w3", "w2"),
    "granite": _ENDS | _BEFORE | _ROTATED | _MLP,
    "qwen2": _ENDS | _BEFORE | _ATTENTION | _MLP,
    "qwen3": _ENDS | _BEFORE | _ATTENTION | _HEAD_NORMS | _MLP,
    "qwen3moe": _ENDS | _BEFORE | _ATTENTION | _HEAD_NORMS | _QWEN_EXPERTS,
    "gemma2": _shifted(_ENDS | _AROUND | _ATTENTION | _MLP),
    "gemma3": _shifted(_ENDS | _AROUND | _ATTENTION | _HEAD_NORMS | _MLP),
    "phi3": _ENDS | _BEFORE | _FUSED,
    "olmo2": _ENDS | _AFTER | _ATTENTION | _HEAD_NORMS | _MLP,
    "deepseek2": _ENDS | _BEFORE | _DEEPSEEK | _MLP | _QWEN_EXPERTS,
    "gpt-oss": _ENDS | _BEFORE | _AFTER | _ATTENTION | _GPT_OSS,
}


def _alternate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rows of [e, f, ...] in turn, as [e, 2f] or [e, d, 2f]."""
    both = np.stack((first, second), 2).reshape(first.shape[0], -1, *first.shape[2:])
    return both.swapaxes(1, 2) if both.ndim == 3 else both


def _alternate_shape(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return first[0], *first[2:], 2 * first[1]


def _in_heads(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each head what makes keys, [n, z, h], then what makes values, [n, o, z], as [n (h + o), z]."""
    return np.concatenate((keys.swapaxes(1, 2), values), 1).reshape(-1, keys.shape[1])


def _in_heads_shape(keys: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    return keys[0] * (keys[2] + values[1]), keys[1]


_GATE, _UP, _GATE_UP = (f"mlp.experts.{name}" for name in ("gate_proj", "up_proj", "gate_up_proj"))
JOINS: Mapping[str, tuple[Join, ...]] = {
    "deepseek2": (Join("k_b_proj.weight", "v_b_proj.weight", "kv_b_proj.weight", _in_heads, _in_heads_shape),),
    "gpt-oss": tuple(
        Join(_GATE + end, _UP + end, _GATE_UP + end, _alternate, _alternate_shape) for end in ("", "_bias")
    ),
}
"""By architecture. Those of rows serve numbers and scales alike."""

_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d{0,5})\.)?(?P<stem>[a-z_]+)\.(?P<end>weight|bias)")


def translate(architecture: str, name: str) -> Row | None:
    """The row of a GGUF tensor with its full Hugging Face name, or None for a tensor that is not in the table."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, stem, end = match["layer"], match["stem"], match["end"]
    row = TENSORS[architecture].get(stem if layer is None else f"blk.{{}}.{stem}")
    if row is None:
        return None
    bias = end == "bias"
    return replace(row, name=row.name.format(layer) + row.ends[bias], turned=row.turned and not bias)
