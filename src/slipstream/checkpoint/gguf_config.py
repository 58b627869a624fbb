"""A GGUF's metadata as the config.json that Hugging Face would have for the same model.

Every key of the architecture is consumed or refused: one that is dropped could change the model's answers. The values
that GGUF leaves out are those that llama.cpp fills in when it loads the file.
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


class _Keys:
    """The metadata of one architecture; remembers which keys were asked for."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.prefix = architecture + "."
        self._left = {key for key in file.metadata if key.startswith(self.prefix)}

    def raw(self, key: str) -> Value | None:
        self._left.discard(self.prefix + key)
        return self.file.metadata.get(self.prefix + key)

    def fail(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: {self.prefix}{key} {what}")

    def integer(self, key: str, default: int | None = None, *, most: int = 1 << 31) -> int:
        """A positive integer. An array that holds one value for each layer is accepted where all are equal."""
        value = self.raw(key)
        if isinstance(value, np.ndarray) and value.size and bool((value == value[0]).all()):
            value = value[0].item()
        if value is None:
            if default is None:
                raise self.fail(key, "is missing: the file is not complete")
            return default
        if isinstance(value, np.ndarray):
            raise UnsupportedModel(f"{self.file.path}: {self.prefix}{key} differs from layer to layer: not served")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < most:
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
        value = self.raw(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "is not a text")
        return value

    def finish(self) -> None:
        left = sorted(self._left - {self.prefix + key for key in _IGNORED})
        if left:
            raise UnknownConfigKeys(
                f"{self.file.path}: no code reads {', '.join(left)}; leaving them out could change the model's answers"
            )


def _shared(keys: _Keys) -> dict[str, Any]:
    """The keys that all architectures of this file have in common."""
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
    for key in ("expert_count", "expert_used_count"):
        count = keys.raw(key)
        if count is not None and not (isinstance(count, int) and count == 0):
            raise UnsupportedModel(f"{file.path}: a mixture of experts ({keys.prefix}{key}) is not served")
    return config


def _head_dim(keys: _Keys, default: int) -> int:
    size = keys.integer("attention.key_length", default)
    if size < 1:
        raise keys.fail("attention.head_count", "is larger than the embedding")
    if keys.integer("attention.value_length", size) != size:
        raise UnsupportedModel(f"{keys.file.path}: keys and values of different sizes are not served")
    if keys.integer("rope.dimension_count", size) != size:
        raise UnsupportedModel(f"{keys.file.path}: rotary embedding of a part of the head is not served")
    return size


def _yarn(keys: _Keys, factor: float) -> dict[str, Any]:
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


def _linear(keys: _Keys, factor: float) -> dict[str, Any]:
    keys.raw("rope.scaling.original_context_length")  # the training length, which linear scaling does not use
    return {"rope_type": "linear", "factor": factor}


_SCALINGS: Mapping[str, Callable[[_Keys, float], dict[str, Any]]] = {"linear": _linear, "yarn": _yarn}


def _rope_scaling(keys: _Keys, head_dim: int) -> dict[str, Any] | None:
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
    factors = keys.file.tensors.get("rope_freqs.weight")
    if factors is None:
        return None
    if factors.kind.name != "F32" or factors.shape != (head_dim // 2,):
        raise CheckpointError(f"{keys.file.path}: rope_freqs.weight is {factors.kind.name} {factors.shape}")
    values = keys.file.bytes_of("rope_freqs.weight").view("<f4")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise CheckpointError(f"{keys.file.path}: rope_freqs.weight has values that are not positive numbers")
    return {"rope_type": "factors", "factors": values.tolist()}


def _llama(keys: _Keys) -> dict[str, Any]:
    shared = _shared(keys)
    head_dim = _head_dim(keys, shared["hidden_size"] // shared["num_attention_heads"])
    window = keys.integer("attention.sliding_window", 0)
    tensors = keys.file.tensors
    kind = ("mistral", "MistralForCausalLM") if window else ("llama", "LlamaForCausalLM")
    config = shared | {
        "model_type": kind[0],
        "architectures": [kind[1]],
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys, head_dim),
    }
    if window:
        return config | {"sliding_window": window}
    return config | {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


# Gemma 3 27B alone scales its scores by the embedding's size over the heads. llama.cpp knows it by its layers as well.
_GEMMA3_27B_LAYERS = 62


def _gemma3(keys: _Keys) -> dict[str, Any]:
    shared = _shared(keys)
    layers = shared["num_hidden_layers"]
    head_dim = _head_dim(keys, 256)
    per_head = shared["hidden_size"] // shared["num_attention_heads"]
    return shared | {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": keys.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),
        "rope_scaling": _rope_scaling(keys, head_dim),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": _layer_types(keys, layers),
        "query_pre_attn_scalar": per_head if layers == _GEMMA3_27B_LAYERS else head_dim,
        "attention_bias": False,
        "attn_logit_softcapping": keys.number("attn_logit_softcapping"),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
    }


def _layer_types(keys: _Keys, layers: int) -> list[str]:
    """Which layers attend in the window: a flag for each layer, or a period whose last layer sees everything."""
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if pattern.shape != (layers,):
            raise keys.fail("attention.sliding_window_pattern", f"has {pattern.size} entries for {layers} layers")
        local = [bool(flag) for flag in pattern]
    else:
        period = keys.integer("attention.sliding_window_pattern", 6)
        local = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in local]


_ARCHITECTURES: Mapping[str, Callable[[_Keys], dict[str, Any]]] = {"llama": _llama, "gemma3": _gemma3}


def architecture_of(file: GgufFile) -> str:
    """`general.architecture`. Raises UnsupportedModel for one that has no table here."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedModel(f"{file.path}: GGUF architecture {name!r} is not served; those that are: {known}")
    parts = file.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedModel(f"{file.path} is one part of a split GGUF: join them with `llama-gguf-split --merge`")
    return name


def config_of(file: GgufFile) -> dict[str, Any]:
    """The metadata as config.json's keys. Raises CheckpointError (UnsupportedModel, UnknownConfigKeys)."""
    architecture = architecture_of(file)
    keys = _Keys(file, architecture)
    config = _ARCHITECTURES[architecture](keys)
    keys.finish()
    return config
