"""The tensors of each GGUF architecture that is read, and Hugging Face's names for them.

A row says how the GGUF converter changed a tensor, so that the source can give it back as Hugging Face stores it:
`rotate` names the head count whose rows were permuted for interleaved rotary embedding (architectures llama and
granite), and `shift` is what was added to the values (Gemma's norms are stored as 1 + w).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Heads = Literal["query", "key"]


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its Hugging Face name (with `{}` for the layer) and what the converter did to it."""

    name: str
    rotate: Heads | None = None
    shift: float = 0.0


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


def _shifted(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The same, with 1 added to all norms, as in Gemma's files."""
    return {stem: replace(row, shift=1.0) if stem.endswith("norm") else row for stem, row in rows.items()}


TENSORS: Mapping[str, Mapping[str, Row]] = {
    "llama": _ENDS | _BEFORE | _ROTATED | _MLP,
    "granite": _ENDS | _BEFORE | _ROTATED | _MLP,
    "qwen2": _ENDS | _BEFORE | _ATTENTION | _MLP,
    "qwen3": _ENDS | _BEFORE | _ATTENTION | _HEAD_NORMS | _MLP,
    "gemma2": _shifted(_ENDS | _AROUND | _ATTENTION | _MLP),
    "gemma3": _shifted(_ENDS | _AROUND | _ATTENTION | _HEAD_NORMS | _MLP),
    "phi3": _ENDS | _BEFORE | _FUSED,
    "olmo2": _ENDS | _AFTER | _ATTENTION | _HEAD_NORMS | _MLP,
}

_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d{0,5})\.)?(?P<stem>[a-z_]+)\.(?P<end>weight|bias)")


def translate(architecture: str, name: str) -> Row | None:
    """The row of a GGUF tensor with its full Hugging Face name, or None for a tensor that is not in the table."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, stem, end = match["layer"], match["stem"], match["end"]
    row = TENSORS[architecture].get(stem if layer is None else f"blk.{{}}.{stem}")
    return row and replace(row, name=f"{row.name.format(layer)}.{end}")
