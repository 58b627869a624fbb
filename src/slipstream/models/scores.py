"""What a classifier's config.json says: its labels, and the activation that makes scores of its output.

With one label it is a reranker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import Array

from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.models.keys import Keys

SIGMOID: Final = "torch.nn.modules.activation.Sigmoid"
IDENTITY: Final = "torch.nn.modules.linear.Identity"
SOFTMAX: Final = "torch.nn.modules.activation.Softmax"
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    SIGMOID: jax.nn.sigmoid,
    IDENTITY: lambda x: x,
    SOFTMAX: partial(jax.nn.softmax, axis=-1),
    "torch.nn.modules.activation.Tanh": jnp.tanh,
    "torch.nn.modules.activation.ReLU": jax.nn.relu,
}
"""By the names that sentence-transformers writes."""

_BY_PROBLEM = {
    "single_label_classification": SOFTMAX,
    "multi_label_classification": SIGMOID,
    "regression": IDENTITY,
}
"""What transformers' `problem_type` makes of several labels."""

_SECTION, _OLDER = "sentence_transformers", "sbert_ce_default_activation_function"
SAID: Final = (_SECTION, _OLDER, "is_matryoshka", "matryoshka_dimensions", "num_labels")
"""Keys of config.json about what becomes of a model's states, not about the model."""


def labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of a classifier's labels, in order; None for what is no classifier. Raises CheckpointError."""
    if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return None
    named = config.get("id2label") or {f"{i}": f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    if not isinstance(named, Mapping) or {str(key) for key in named} != {str(i) for i in range(len(named))}:
        raise CheckpointError(f"config.json: id2label must name the labels from 0 on, got {named!r}")
    return tuple(str(named.get(f"{i}", named.get(i))) for i in range(len(named)))


def activation_of(config: Mapping[str, Any]) -> str:
    """The name of the activation. Raises UnsupportedModel for one that is not computed, UnknownConfigKeys."""
    keys = Keys({name: config[name] for name in (_SECTION, _OLDER) if name in config}, "reranker")
    section = keys.section(_SECTION)
    name = keys.optional(_OLDER, str)
    if section is not None:
        name = section.optional("activation_fn", str) or name
        section.ignore(("version",))
    keys.finish()
    if name is None:
        several = len(labels(config) or ()) > 1
        name = _BY_PROBLEM.get(config.get("problem_type") or "", SOFTMAX) if several else SIGMOID
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"config.json asks for scores by {name}; Slipstream computes {known}")
    return name
