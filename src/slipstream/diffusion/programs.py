"""The compiled functions of one size of pictures, which can be forgotten together: jit would keep each for good."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array

from slipstream.diffusion import slots
from slipstream.diffusion.pipeline import Family
from slipstream.kernels.ragged import Kernels


class Programs:
    """Functions of `slots` and of the autoencoder; each is compiled when it is first called with new shapes."""

    def __init__(self) -> None:
        changed: dict[str, Any] = {"donate_argnames": ("slots",)}
        model: dict[str, Any] = {"static_argnames": ("family", "kernels")}
        self.empty = _own(slots.empty, static_argnames=("rows", "height", "width", "channels", "extra", "sizes"))
        self.unit_noise = _own(slots.unit_noise, static_argnames=("shape",))
        self.refresh = _own(slots.refresh, **changed)
        self.admit = _own(slots.admit, **changed)
        self.admit_text = _own(slots.admit_text, **changed)
        self.latents_of = _own(slots.latents_of)
        self.denoise = _own(slots.denoise, **changed, **model)
        reusing: dict[str, Any] = {"donate_argnames": ("slots", "kept")}
        self.nothing_kept = _own(slots.nothing_kept, static_argnames=("rows", "tokens", "width"))
        self.denoise_reusing = _own(slots.denoise_reusing, **reusing, **model)
        self.coast = _own(slots.coast, **changed)
        self.encode = _own(_encode, **model)
        self.beside = _own(_beside, **model)
        self.decode = _own(_decode, static_argnames=("family", "kernels", "tile"))

    def forget(self) -> None:
        """Give back what was compiled. Nothing that it started may be under way."""
        for function in vars(self).values():
            function.clear_cache()


def _own(function: Callable[..., Any], **options: Any) -> Any:
    """The function compiled by its shapes, with a memory of its own: jit's is kept by the function object."""
    return jax.jit(partial(function), **options)


def _encode(family: Family, kernels: Kernels, weights: Any, pictures: Array) -> Array:
    return family.encode(weights, pictures, kernels)[0]


def _decode(family: Family, kernels: Kernels, tile: int | None, weights: Any, latents: Array) -> Array:
    return family.decode(weights, latents, kernels, tile)


def _beside(family: Family, kernels: Kernels, weights: Any, pictures: Array, mask: Array) -> Array:
    """What a model that repaints reads: of the pictures with grey where the mask is."""
    masked = family.encode(weights, pictures * (1 - mask) + 0.5 * mask, kernels)
    return family.beside(masked, mask)[0]
