"""Stable Diffusion XL: the states of two CLIP encoders side by side, the second's vector, and the picture's size.

Podell et al. 2023 (arXiv:2307.01952).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.diffusion.pipeline import NO_FIRST_BLOCK, Kept, Text, Traits, from_unit, shrink, to_unit
from slipstream.diffusion.tiling import decoded
from slipstream.errors import UnsupportedModel
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import autoencoder, clip, unet


@dataclass(frozen=True)
class Sdxl:
    """The configs of the models (`first` and `second` read texts), and what is fixed about the whole."""

    denoiser: unet.Config
    first: clip.Config
    second: clip.Config
    vae: autoencoder.Config
    traits: Traits

    def tokens(self, height: int, width: int) -> int:
        """See `Family`. It has none: latents."""
        return (height // self.traits.factor) * (width // self.traits.factor)

    def sizes(self, height: int, width: int) -> np.ndarray:
        """The original's height and width, where it was cropped (nowhere), and the target's height and width."""
        return np.array([height, width, 0, 0, height, width], np.float32)

    def begin(self, steps: int, strength: float) -> int:
        """See `Family`. A step of which only a part is to be done is left out."""
        return max(steps - min(int(steps * strength), steps), 0)

    def read(self, encoders: tuple[Any, ...], tokens: tuple[Array, ...], kernels: Kernels) -> Text:
        """See `Family`."""
        first = clip.encode(encoders[0], self.first, tokens[0], kernels=kernels)
        second = clip.encode(encoders[1], self.second, tokens[1], kernels=kernels)
        return Text(jnp.concatenate([first.penultimate, second.penultimate], -1), second.pooled)

    def predict(
        self,
        w: Any,
        x: Array,
        extra: Array,
        text: Text,
        sizes: Array,
        time: Array,
        guidance: Array,
        kernels: Kernels,
    ) -> Array:
        """See `Family`."""
        out = unet.forward(
            w,
            self.denoiser,
            jnp.concatenate([x, extra], -1).astype(text.states.dtype),
            time,
            text.states,
            text.pooled,
            sizes,
            guidance=guidance if self.traits.embeds_guidance else None,
            kernels=kernels,
        )
        return out.astype(jnp.float32)

    def keeps(self, height: int, width: int) -> tuple[int, int] | None:
        """Nothing: what the first block of a UNet leaves goes past all others by the skips, which have no one sum."""
        return None

    def predict_reusing(
        self,
        w: Any,
        x: Array,
        extra: Array,
        text: Text,
        sizes: Array,
        time: Array,
        guidance: Array,
        kept: Kept,
        limits: Array,
        real: Array,
        kernels: Kernels,
    ) -> tuple[Array, Kept, Array]:
        """See `Family`: `keeps` says that this is not called."""
        raise UnsupportedModel(NO_FIRST_BLOCK)

    def encode(self, w: Any, pictures: Array, kernels: Kernels) -> Array:
        """See `Family`."""
        mean, _ = autoencoder.encode(w, self.vae, from_unit(pictures), kernels=kernels)
        return autoencoder.to_latent(self.vae, mean).astype(jnp.float32)

    def decode(self, w: Any, latents: Array, kernels: Kernels, tile: int | None = None) -> Array:
        """See `Family`."""
        return to_unit(decoded(w, self.vae, latents, kernels, tile))

    def beside(self, masked: Array, mask: Array) -> Array:
        """The mask of latents, then the masked picture's latents."""
        return jnp.concatenate([shrink(mask, self.traits.factor), masked], -1)
