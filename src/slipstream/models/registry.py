"""The table of families: which code serves which config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final, Protocol

from jax import Array

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.kernels.ragged import KVCache, Step
from slipstream.models.llm import gemma2, gemma3, granite, llama, mixtral, olmo2, phi3, qwen2, qwen3, qwen3_moe


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
    image tower.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    from_hf: Callable[[Mapping[str, Any]], Any]
    plan: Callable[[Any], Any]
    forward: Callable[[Any, Any, Array, Step, KVCache], tuple[Array, KVCache]]
    unembed: Callable[..., Array]
    unread: tuple[str, ...] = ()


def _family(
    module: Any, model_types: tuple[str, ...], architectures: tuple[str, ...], unread: tuple[str, ...] = ()
) -> Family:
    name = module.__name__.rpartition(".")[2]
    functions = (module.Config.from_hf, module.plan, module.forward, module.unembed)
    return Family(name, model_types, architectures, *functions, unread)


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
    _family(gemma2, ("gemma2",), ("Gemma2ForCausalLM",)),
    _family(
        gemma3,
        ("gemma3_text", "gemma3"),
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        unread=("vision_tower.*", "multi_modal_projector.*", "language_model.lm_head.weight"),
    ),
    _family(phi3, ("phi3",), ("Phi3ForCausalLM",)),
    _family(olmo2, ("olmo2",), ("Olmo2ForCausalLM",)),
    _family(granite, ("granite",), ("GraniteForCausalLM",)),
    _family(mixtral, ("mixtral",), ("MixtralForCausalLM",)),
    _family(qwen3_moe, ("qwen3_moe",), ("Qwen3MoeForCausalLM",)),
)


def family(config: Mapping[str, Any]) -> Family:
    """The family that serves a config.json, by `model_type` and, where it is stated, `architectures`.

    Raises UnsupportedModel, which lists what is served and names the nearest; CheckpointError where neither key is set.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures") or ()
    if not model_type and not architectures:
        raise CheckpointError("config.json has neither model_type nor architectures: it does not say what this is")
    for row in FAMILIES:
        if model_type and model_type not in row.model_types:
            continue
        if not architectures or any(name in row.architectures for name in architectures):
            return row
    asked = ", ".join(str(name) for name in (*architectures, model_type) if name)
    served = [name for row in FAMILIES for name in (*row.model_types, *row.architectures)]
    near = [match for name in (*architectures, model_type) if name for match in get_close_matches(str(name), served, 1)]
    hint = f"; the nearest is {near[0]}" if near else ""
    table = "; ".join(f"{row.name} ({', '.join(row.model_types + row.architectures)})" for row in FAMILIES)
    raise UnsupportedModel(f"{asked} is not a model that Slipstream serves{hint}. It serves: {table}")
