"""A GGUF's metadata, consumed key by key, and the parts of it that all architectures share.

Every key of the architecture is consumed or refused: one that is dropped could change the model's answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slipstream.checkpoint.gguf_file import GgufFile, Value
from slipstream.errors import CheckpointError, UnknownConfigKeys, UnsupportedModel

# Facts about the training or the file, which the forward does not depend on.
_IGNORED = frozenset({"rope.scaling.finetuned", "tensor_data_layout"})


def shortest(value: int | float) -> float:
    """The shortest decimal that names this float32: 1e-05, not 9.99999974e-06. Other numbers stay as they are."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else float(value)


class Metadata:
    """The metadata of one architecture; remembers which keys were asked for."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.prefix = architecture + "."
        self._left = {key for key in file.metadata if key.startswith(self.prefix)}

    def raw(self, key: str) -> Value | None:
        """A value as the file has it."""
        self._left.discard(self.prefix + key)
        return self.file.metadata.get(self.prefix + key)

    def fail(self, key: str, what: str) -> CheckpointError:
        """The error to raise for a key."""
        return CheckpointError(f"{self.file.path}: {self.prefix}{key} {what}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 1 << 31) -> int:
        """An integer from `least` to below `most`. An array that holds one value for each layer is accepted where all
        are equal."""
        value = self.raw(key)
        if isinstance(value, np.ndarray) and value.size and bool((value == value[0]).all()):
            value = value[0].item()
        if value is None:
            if default is None:
                raise self.fail(key, "is missing: the file is not complete")
            return default
        if isinstance(value, np.ndarray):
            raise UnsupportedModel(f"{self.file.path}: {self.prefix}{key} differs from layer to layer: not served")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most:
            raise self.fail(key, f"is {value!r}, not a positive integer below {most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number (see `shortest`)."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(key, f"is {value!r}, not a number")
        return shortest(value)

    def text(self, key: str) -> str | None:
        """A text."""
        value = self.raw(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "is not a text")
        return value

    def finish(self) -> None:
        """End of reading. Raises UnknownConfigKeys naming what is left."""
        left = sorted(self._left - {self.prefix + key for key in _IGNORED})
        if left:
            raise UnknownConfigKeys(
                f"{self.file.path}: no code reads {', '.join(left)}; leaving them out could change the model's answers"
            )


def shared_keys(keys: Metadata, *, experts: bool = False) -> dict[str, Any]:
    """The keys of config.json that all architectures have in common; those of `experts` are left to the
    architecture."""
    file = keys.file
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: no token_embd.weight of two axes: this is not a whole language model")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    keys.raw("vocab_size")  # the embedding's own rows count: some files leave this key out or pad the tensor
    config = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count", most=len(file.tensors)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        "max_position_embeddings": keys.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if keys.raw("attention.causal") is False:
        raise UnsupportedModel(f"{file.path}: a model that reads both ways (for embeddings) is not served")
    for key in () if experts else ("expert_count", "expert_used_count"):
        count = keys.raw(key)
        if count is not None and not (isinstance(count, int) and count == 0):
            raise UnsupportedModel(f"{file.path}: a mixture of experts ({keys.prefix}{key}) is not served")
    return config


def whole_heads(keys: Metadata, default: int) -> int:
    """The elements of a head; raises UnsupportedModel where not all of them are rotated."""
    size, turned = head_sizes(keys, default)
    if turned != size:
        raise UnsupportedModel(f"{keys.file.path}: rotary embedding of a part of the head is not served")
    return size


def head_sizes(keys: Metadata, default: int) -> tuple[int, int]:
    """The elements of a head, and how many of them are rotated."""
    size = keys.integer("attention.key_length", default)
    if size < 1:
        raise keys.fail("attention.head_count", "is larger than the embedding")
    if keys.integer("attention.value_length", size) != size:
        raise UnsupportedModel(f"{keys.file.path}: keys and values of different sizes are not served")
    turned = keys.integer("rope.dimension_count", size)
    if turned > size:
        raise keys.fail("rope.dimension_count", f"is {turned}, more than the {size} elements of a head")
    return size, turned


def _yarn(keys: Metadata, factor: float) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
    }
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        value = keys.number("rope.scaling." + key)
        if value is not None:
            scaling[name] = value
    attention = keys.number("rope.scaling.attn_factor")
    if attention is not None:
        # llama.cpp multiplies its own magnitude by this; Hugging Face's key is the whole product.
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return scaling


def _linear(keys: Metadata, factor: float) -> dict[str, Any]:
    keys.raw("rope.scaling.original_context_length")  # the training length, which linear scaling does not use
    return {"rope_type": "linear", "factor": factor}


_SCALINGS: Mapping[str, Callable[[Metadata, float], dict[str, Any]]] = {"linear": _linear, "yarn": _yarn}


def _rope_scaling(keys: Metadata, head_dim: int) -> dict[str, Any] | None:
    """The rotary scaling, from the metadata or from the factors that Llama 3.1's converter wrote as a tensor."""
    kind = keys.text("rope.scaling.type")
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear") or 1.0
    if kind is None and factor != 1.0:
        kind = "linear"
    if kind is not None and kind in _SCALINGS:
        return _SCALINGS[kind](keys, factor)
    if kind not in (None, "none"):
        raise UnsupportedModel(f"{keys.file.path}: rotary scaling {kind!r} is not served")
    for name in ("original_context_length", "attn_factor"):
        keys.raw("rope.scaling." + name)  # without a scaling type these have no effect
    factors = rope_factors(keys, "rope_freqs.weight", head_dim)
    return None if factors is None else {"rope_type": "factors", "factors": factors}


def rope_factors(keys: Metadata, name: str, turned: int) -> list[float] | None:
    """A tensor of divisors, one for each pair of a head's `turned` elements; None where the file has none."""
    info = keys.file.tensors.get(name)
    if info is None:
        return None
    if info.kind.name != "F32" or info.shape != (turned // 2,):
        raise CheckpointError(f"{keys.file.path}: {name} is {info.kind.name} {info.shape}")
    values = keys.file.bytes_of(name).view("<f4")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise CheckpointError(f"{keys.file.path}: {name} has values that are not positive numbers")
    return [float(value) for value in values]


def rope_keys(keys: Metadata, head_dim: int, base: float = 10_000.0) -> dict[str, Any]:
    """The rotary table's keys."""
    return {"rope_theta": keys.number("rope.freq_base", base), "rope_scaling": _rope_scaling(keys, head_dim)}
