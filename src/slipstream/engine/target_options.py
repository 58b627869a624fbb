"""What to compile for a target. Plain: the command line reads it without loading JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SchemeName = Literal["none", "int8", "int4-g128", "int4-g64", "int4-g32", "fp8"]


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Settings of `slipstream compile`.

    Parameters
    ----------
    target
        Devices to compile for, such as v6e-8.
    scheme
        How the weights of layers are stored: none (as dtype says), or a scheme of `slipstream quantize`.
    dtype
        Type of weights that are not quantized, and of activations.
    kv_dtype
        Type of the KV cache; auto: the same as dtype; int8 and fp8 as for an engine.
    kernels
        Who computes attention, as for an engine; auto: what the target's platform has.
    tp
        Devices that one replica of the model is sharded over. None: all of the target.
    ep
        Expert parallel: experts are whole, each on one of the tp devices, in place of a part of every expert on each.
    sp
        Sequence parallel: what lies between a block's products is split among the tp devices by tokens.
    max_seqs
        Most sequences that share a step.
    max_model_len
        Longest prompt plus reply, in tokens. None: the model's own limit, or 8192 where that is longer.
    max_batched_tokens
        Most tokens in a step.
    page_size
        Tokens in a KV page. None: what suits the kernels.
    kv_bytes
        Memory for the KV cache on each device. None: for max_seqs sequences of max_model_len tokens, or what is left.
    memory_fraction
        Share of a device's memory that weights, temporaries and KV cache may use together.
    """

    target: str = "v6e-4"
    scheme: SchemeName = "none"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    kv_dtype: Literal["auto", "bfloat16", "float32", "int8", "fp8"] = "auto"
    kernels: Literal["auto", "reference", "pallas_tpu", "pallas_gpu", "cudnn"] = "auto"
    tp: int | None = None
    ep: bool = False
    sp: bool = False
    max_seqs: int = 64
    max_model_len: int | None = None
    max_batched_tokens: int = 1024
    page_size: int | None = None
    kv_bytes: int | None = None
    memory_fraction: float = 0.9
