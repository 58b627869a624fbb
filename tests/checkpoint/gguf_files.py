"""Small GGUF files for the tests, written by the gguf package, and the same format by hand for hostile ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LLAMA = {
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.vocab_size": 12,
}
GEMMA3 = {
    "gemma3.block_count": 2,
    "gemma3.context_length": 128,
    "gemma3.embedding_length": 64,
    "gemma3.feed_forward_length": 96,
    "gemma3.attention.head_count": 2,
    "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": 32,
    "gemma3.attention.value_length": 32,
    "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
    "gemma3.rope.freq_base": 1e6,
    "gemma3.attention.sliding_window": 16,
}
TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "é", "日", "<0x0A>", "c"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 1, 1, 1, 1, 1, 6, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ '<|im_start|>' }}{{ messages[0]['content'] }}{{ '<|im_end|>' }}",
}
# Quantized by hand below, since the gguf package only writes the simpler types: bytes a block, numbers a block.
BLOCKS = {"Q4_K": (144, 256), "Q5_K": (176, 256), "Q6_K": (210, 256)}


def random_blocks(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Stored bytes of a K type: any bits, but scales that are ordinary numbers."""
    size, block = BLOCKS[kind]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
    scales = rng.uniform(0.001, 0.1, (len(data), 2)).astype("<f2").view(np.uint8)
    if kind == "Q6_K":
        data[:, -2:] = scales[:, :2]
    else:
        data[:, :4] = scales
    return data.reshape(*shape[:-1], shape[-1] // block * size)


def stored(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A random tensor's stored form, as GGUFWriter takes it."""
    if kind in BLOCKS:
        return random_blocks(kind, shape, seed)
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])


def llama_tensors(kind: str = "F32") -> dict[str, tuple[str, np.ndarray]]:
    """A two-layer llama: name -> (type, stored data). Matrices are of `kind`, norms F32."""
    d, f, n, k, h, v = 256, 512, 8, 4, 32, 12
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (v, d), "output_norm": (d,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (d,),
                "attn_q": (n * h, d),
                "attn_k": (k * h, d),
                "attn_v": (k * h, d),
                "attn_output": (d, n * h),
                "ffn_norm": (d,),
                "ffn_gate": (f, d),
                "ffn_up": (f, d),
                "ffn_down": (d, f),
            }.items()
        }
    return _stored(shapes, kind)


def gemma_tensors(kind: str = "F32") -> dict[str, tuple[str, np.ndarray]]:
    """A two-layer Gemma 3."""
    d, f, n, k, h, v = 64, 96, 2, 1, 32, 12
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (v, d), "output_norm": (d,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (d,),
                "attn_q": (n * h, d),
                "attn_k": (k * h, d),
                "attn_v": (k * h, d),
                "attn_output": (d, n * h),
                "attn_q_norm": (h,),
                "attn_k_norm": (h,),
                "post_attention_norm": (d,),
                "ffn_norm": (d,),
                "ffn_gate": (f, d),
                "ffn_up": (f, d),
                "ffn_down": (d, f),
                "post_ffw_norm": (d,),
            }.items()
        }
    return _stored(shapes, kind)


def _stored(shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, tuple[str, np.ndarray]]:
    found = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        one = kind if len(shape) > 1 else "F32"
        found[f"{name}.weight"] = one, stored(one, shape, seed)
    return found


def write(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, np.ndarray]]
) -> Path:
    """Write a GGUF file with the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama(path: Path, kind: str = "F32", **changes: Any) -> Path:
    """The tiny llama with its tokenizer; `changes` are metadata with "." written as "__"; None takes a key away."""
    metadata = LLAMA | TOKENIZER | {key.replace("__", "."): value for key, value in changes.items()}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return write(path, "llama", kept, llama_tensors(kind))


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, raw: bytes) -> bytes:
    """A metadata entry with its value's raw bytes."""
    return text(key) + struct.pack("<I", kind) + raw


def info(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's description; `shape` is in the file's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def by_hand(
    entries: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file from its pieces; `counts` (tensors, entries) may lie."""
    tensors, values = counts or (len(infos), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join(entries) + b"".join(infos)
    return head + b"\0" * (-len(head) % 32) + data
