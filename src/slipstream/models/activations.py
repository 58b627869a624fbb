"""Activations by the names that config.json has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
from jax import Array

from slipstream.errors import UnsupportedModel
from slipstream.models.keys import Keys


def quick_gelu(x: Array) -> Array:
    """OpenAI's CLIP has a sigmoid in place of the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def read_activation(keys: Keys, name: str, default: str) -> str:
    """A key that names one of ACTIVATIONS. Raises UnsupportedModel for another name."""
    activation = keys.take(name, str, default)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"config.json sets {name} to {activation!r}; Slipstream computes {known}")
    return activation
