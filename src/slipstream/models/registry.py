"""The table of families: which code serves which config.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final, Protocol, TypeVar

from jax import Array

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.encoder import bert
from slipstream.models.llm import (
    deepseek_v3,
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)


class ModelConfig(Protocol):
    """What the engine reads of any family's config. Frozen and hashable: it is static in a compiled step."""

    @property
    def vocab_size(self) -> int:
        """Tokens, which is also the width of the logits."""

    @property
    def layers(self) -> int:
        """Layers, each with keys and values."""

    @property
    def kv_heads(self) -> int:
        """Key/value heads of a layer."""

    @property
    def head_dim(self) -> int:
        """Size of one head."""

    @property
    def max_position(self) -> int:
        """Longest context, in tokens."""


@dataclass(frozen=True)
class Family:
    """A model family as functions.

    `from_hf(config)` -> its Config (a `ModelConfig`). `plan(c)` -> tree of Params. `forward(w, c, tokens i32[t], step,
    cache)` -> (states [t, d] after the last block, cache). `unembed(w, c, states [r, d], real)` -> logits float32
    [r, v], those of the first `real` rows (None: all), the final norm included: it is then computed for no more rows,
    and with the product where a kernel can. `model_types` and `architectures` are the names in config.json that it
    answers to. `unread`: patterns (of fnmatch) of tensors in its checkpoints that the plan does not ask for, as of an
    image tower. `norm_offset`: what is added to the final norm's weight; its epsilon is the config's `norm_eps`.
    `latent`: its KV cache holds keys alone, of which a first part is the value.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    from_hf: Callable[[Mapping[str, Any]], Any]
    plan: Callable[[Any], Any]
    forward: Callable[[Any, Any, Array, Step, KVCache], tuple[Array, KVCache]]
    unembed: Callable[..., Array]
    unread: tuple[str, ...] = ()
    norm_offset: float = 0.0
    latent: bool = False


class EncoderConfig(Protocol):
    """What the engine reads of any encoder's config. Frozen and hashable."""

    @property
    def vocab_size(self) -> int:
        """Tokens."""

    @property
    def width(self) -> int:
        """Numbers in a state."""

    @property
    def max_position(self) -> int:
        """Longest text, in tokens."""

    @property
    def score(self) -> object | None:
        """Set where the model is a classifier, or with one label a reranker."""


@dataclass(frozen=True)
class Encoder:
    """A family of encoders as functions, as `Family` is.

    `forward(w, c, tokens i32[t], types i32[t], step)` -> states [t, d]; each row of the step is a whole text, and
    `types` tells the second text of a pair (1) from the first (0). `score(w, c, states [s, d])` -> float32 [s, o], a
    classifier's output for the first tokens' states, where the config has a `score`. `renames`: patterns in tensors'
    names, each with what takes its place, that make the plan's names of them.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    from_hf: Callable[[Mapping[str, Any]], Any]
    plan: Callable[[Any], Any]
    forward: Callable[[Any, Any, Array, Array, Step], Array]
    score: Callable[[Any, Any, Array], Array]
    renames: tuple[tuple[str, str], ...]
    unread: tuple[str, ...] = ()

    def rename(self, name: str) -> str:
        """The plan's name of a checkpoint's tensor."""
        for old, new in self.renames:
            name = re.sub(old, new, name)
        return name


def _family(
    module: Any,
    model_types: tuple[str, ...],
    architectures: tuple[str, ...],
    unread: tuple[str, ...] = (),
    norm_offset: float = 0.0,
    latent: bool = False,
) -> Family:
    name = module.__name__.rpartition(".")[2]
    functions = (module.Config.from_hf, module.plan, module.forward, module.unembed)
    return Family(name, model_types, architectures, *functions, unread, norm_offset, latent)


# LLaMAForCausalLM is how the first conversions spelled it.
_LLAMA: Final = _family(llama, ("llama",), ("LlamaForCausalLM", "LLaMAForCausalLM"))

FAMILIES: Final = (
    _LLAMA,
    replace(
        _LLAMA,
        name="mistral",
        model_types=("mistral",),
        architectures=("MistralForCausalLM",),
        from_hf=llama.Config.of_mistral,
    ),
    _family(qwen2, ("qwen2",), ("Qwen2ForCausalLM",)),
    _family(qwen3, ("qwen3",), ("Qwen3ForCausalLM",)),
    _family(gemma2, ("gemma2",), ("Gemma2ForCausalLM",), norm_offset=1.0),
    _family(
        gemma3,
        ("gemma3_text", "gemma3"),
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        unread=("vision_tower.*", "multi_modal_projector.*", "language_model.lm_head.weight"),
        norm_offset=1.0,
    ),
    _family(phi3, ("phi3",), ("Phi3ForCausalLM",)),
    _family(olmo2, ("olmo2",), ("Olmo2ForCausalLM",)),
    _family(granite, ("granite",), ("GraniteForCausalLM",)),
    _family(mixtral, ("mixtral",), ("MixtralForCausalLM",)),
    _family(qwen3_moe, ("qwen3_moe",), ("Qwen3MoeForCausalLM",)),
    _family(gpt_oss, ("gpt_oss",), ("GptOssForCausalLM",)),
    _family(
        deepseek_v3,
        ("deepseek_v2", "deepseek_v3", "kimi_k2"),
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
        unread=("model.layers.61.*",),  # V3's layer that predicts the token after the next
        latent=True,
    ),
)


def _bert(name: str, model_types: tuple[str, ...], classes: tuple[str, ...], prefix: str) -> Encoder:
    """`classes`: prefixes of the architectures' names. Heads and poolers of other tasks stay unread."""
    tasks = ("Model", "ForMaskedLM", "ForSequenceClassification")
    return Encoder(
        name,
        model_types,
        tuple(f"{one}{task}" for one in classes for task in tasks),
        bert.Config.from_hf,
        bert.plan,
        bert.forward,
        bert.score,
        # The first checkpoints called a norm's weight gamma and its bias beta.
        renames=(
            (f"^{prefix}\\.", ""),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
        unread=("*position_ids", "*token_type_ids", "pooler.dense.*", "cls.*", "lm_head.*"),
    )


ENCODERS: Final = (
    _bert("bert", ("bert",), ("Bert",), "bert"),
    _bert("roberta", ("roberta", "xlm-roberta"), ("Roberta", "XLMRoberta"), "roberta"),
)


Row = TypeVar("Row", Family, Encoder)
_HEADLESS = re.compile(r"(Model|ForSequenceClassification)$")


def encoder(config: Mapping[str, Any]) -> Encoder | None:
    """The encoders that serve a config.json; None for what is none of them."""
    return _row(config, ENCODERS)


def of_language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json, that of a decoder saved without its language model's head as that of the whole model.

    Qwen3Model and Qwen3ForSequenceClassification become Qwen3ForCausalLM.
    """
    names = config.get("architectures") or ()
    return {**config, "architectures": [_HEADLESS.sub("ForCausalLM", str(name)) for name in names]}


def is_headless(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a decoder saved without its language model's head."""
    return any(_HEADLESS.search(str(name)) for name in config.get("architectures") or ())


def family(config: Mapping[str, Any]) -> Family:
    """The family that serves a config.json, by `model_type` and, where it is stated, `architectures`.

    Raises UnsupportedModel, which lists what is served and names the nearest; CheckpointError where neither key is set.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures") or ()
    if not model_type and not architectures:
        raise CheckpointError("config.json has neither model_type nor architectures: it does not say what this is")
    found = _row(config, FAMILIES)
    if found is not None:
        return found
    rows = (*FAMILIES, *ENCODERS)
    asked = ", ".join(str(name) for name in (*architectures, model_type) if name)
    served = [name for row in rows for name in (*row.model_types, *row.architectures)]
    near = [match for name in (*architectures, model_type) if name for match in get_close_matches(str(name), served, 1)]
    hint = f"; the nearest is {near[0]}" if near else ""
    table = "; ".join(f"{row.name} ({', '.join(row.model_types + row.architectures)})" for row in rows)
    raise UnsupportedModel(f"{asked} is not a model that Slipstream serves{hint}. It serves: {table}")


def _row(config: Mapping[str, Any], rows: Sequence[Row]) -> Row | None:
    model_type, architectures = config.get("model_type"), config.get("architectures") or ()
    for row in rows:
        if not (model_type or architectures) or (model_type and model_type not in row.model_types):
            continue
        if not architectures or any(name in row.architectures for name in architectures):
            return row
    return None
