"""What a reranker's config.json says of its score: one label, and the activation that makes a score of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.models.keys import Keys

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "torch.nn.modules.activation.Sigmoid": jax.nn.sigmoid,
    "torch.nn.modules.linear.Identity": lambda x: x,
}
"""By the names that sentence-transformers writes; the first is its choice where it wrote none."""

_SECTION, _OLDER = "sentence_transformers", "sbert_ce_default_activation_function"
SAID: Final = (_SECTION, _OLDER, "is_matryoshka", "matryoshka_dimensions")
"""Keys of config.json about what becomes of a model's states, not about the model."""


def scores(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is a classifier's. Raises UnsupportedModel for one of several labels."""
    if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return False
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if labels != 1:
        raise UnsupportedModel(f"this model classifies by {labels} labels; Slipstream serves rerankers, which have one")
    return True


def activation_of(config: Mapping[str, Any]) -> str:
    """The name of the activation. Raises UnsupportedModel for one that is not computed, UnknownConfigKeys."""
    keys = Keys({name: config[name] for name in (_SECTION, _OLDER) if name in config}, "reranker")
    section = keys.section(_SECTION)
    name = keys.optional(_OLDER, str)
    if section is not None:
        name = section.optional("activation_fn", str) or name
        section.ignore(("version",))
    keys.finish()
    name = name or next(iter(ACTIVATIONS))
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"config.json asks for scores by {name}; Slipstream computes {known}")
    return name
