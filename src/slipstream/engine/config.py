"""The engine's settings. The command line's flags are these fields; each is read somewhere, a test holds that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slipstream.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
CpuKVDType = Literal["auto", "float32", "bfloat16", "float16", "int8"]  # what the native CPU kernels read
KVDType = Literal[CpuKVDType, "fp8"]
Quantization = Literal["int8", "int4-g128", "int4-g64", "int4-g32", "fp8"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one engine.

    Parameters
    ----------
    dtype
        Type of weights and activations. auto: float32 on a CPU, bfloat16 on an accelerator.
    quantization
        Round the matrices of layers to fewer bits when they are loaded, of a checkpoint that is not quantized. int8
        and fp8 have a scale for each output, int4-g128 one for each 128 inputs. None: as the checkpoint stores them.
    kv_dtype
        Type of the KV cache. auto: float16 on a CPU (half of float32, and as accurate), on an accelerator the same as
        dtype. int8: half of that again, with a scale for each token and head; `slipstream bench accuracy` measures it.
        fp8: as small, in e4m3 without scales, what is beyond 448 becomes that; not for the native CPU kernels.
    runner
        generate: continue texts; pooling: make vectors of them (embeddings), or scores with a reranker; auto: what the
        checkpoint was made for. A language model pools too: the last token's state.
    answers
        Score pairs of texts with a language model by how much likelier the first of two words, such as yes,no, follows
        the prompt of Qwen3-Reranker than the second. None: as the checkpoint's files say, which of newer rerankers do.
    max_seqs
        Most sequences that share a step.
    max_model_len
        Longest prompt plus reply, in tokens; of a model that pools, longest text. None: the model's own limit, lowered
        to what the KV cache holds.
    max_batched_tokens
        Most tokens in a step: a prefill chunk gets what decoding sequences leave.
    page_size
        Tokens in a KV page. None: what suits the kernels: 16, or 64 on a TPU or GPU (128 for an int8 cache on a TPU).
    kv_bytes
        Memory for the KV cache on each device, in bytes (suffixes such as 2GiB work on the command line). None: sized
        from what the compiled step leaves of the memory.
    memory_fraction
        Share of the device's memory that weights, temporaries and KV cache may use together.
    prefix_caching
        Keep finished prompts' KV pages and reuse them for prompts that start the same.
    policy
        Order of waiting requests: fcfs, or priority (lower numbers first).
    kernels
        Who computes attention and, on a CPU, products. auto: what the devices' platform has; reference: XLA alone;
        cpu: the native CPU kernels, which run on one device; pallas_tpu, pallas_gpu: Pallas, which elsewhere is
        interpreted, slowly, for tests; cudnn: NVIDIA's library for prompts, and pallas_gpu for the rest.
    cpu_precision
        How the native kernels round activations to multiply them with quantized weights. exact: 16 bits a number, as
        good as float32; fast: 8 bits, but for the logits.
    cpu_threads
        Threads that compute on a CPU. None: as many as the process may use, by its mask of processors and its control
        groups' limits.
    tp
        Tensor parallel: devices that one replica of the model is sharded over.
    dp
        Data parallel: replicas of the model, each on tp devices of its own. The other limits are those of each replica.
    ep
        Expert parallel: experts are whole, each on one of the tp devices, in place of a part of every expert on each.
    sp
        Sequence parallel: what lies between a block's products is split among the tp devices by tokens.
    compile_cache
        Folder for compiled steps; None: under the user's cache folder; an empty string turns it off.
    weight_cache
        Folder for weights packed for the native CPU kernels; None and an empty string as above.
    """

    dtype: DType = "auto"
    quantization: Quantization | None = None
    kv_dtype: KVDType = "auto"
    runner: Literal["auto", "generate", "pooling"] = "auto"
    answers: str | None = None
    max_seqs: int = 32
    max_model_len: int | None = None
    max_batched_tokens: int = 512
    page_size: int | None = None
    kv_bytes: int | None = None
    memory_fraction: float = 0.9
    prefix_caching: bool = True
    policy: Literal["fcfs", "priority"] = "fcfs"
    kernels: Literal["auto", "reference", "cpu", "pallas_tpu", "pallas_gpu", "cudnn"] = "auto"
    cpu_precision: Literal["exact", "fast"] = "exact"
    cpu_threads: int | None = None
    tp: int = 1
    dp: int = 1
    ep: bool = False
    sp: bool = False
    compile_cache: str | None = None
    weight_cache: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        for name in ("max_seqs", "max_batched_tokens", "tp", "dp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_model_len", "page_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.max_batched_tokens < self.max_seqs:
            raise ConfigError(
                f"max_batched_tokens ({self.max_batched_tokens}) must be at least max_seqs ({self.max_seqs}): "
                "a step must have room for a token of every sequence"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"memory_fraction must be over 0 and at most 1, got {self.memory_fraction}")
