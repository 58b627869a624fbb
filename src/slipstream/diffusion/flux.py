"""Flux.1: CLIP's vector and T5's states of a text, latents packed two by two (black-forest-labs/flux)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from slipstream.diffusion.pipeline import Kept, Text, Traits, from_unit, to_unit
from slipstream.diffusion.tiling import decoded
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import autoencoder, clip, flux, t5

PATCH = 2
"""Latents along a side that make a token."""

Inputs = tuple[Array, Array, Array, Array, Array | None, Array, Array]
"""Tokens, states of the text, its vector, time, guidance, and the places of text and picture."""


@dataclass(frozen=True)
class Flux:
    """The configs of the models (`first` and `second` read texts), and what is fixed about the whole."""

    transformer: flux.Config
    first: clip.Config
    second: t5.Config
    vae: autoencoder.Config
    traits: Traits

    def tokens(self, height: int, width: int) -> int:
        """See `Family`."""
        side = self.traits.factor * PATCH
        return (height // side) * (width // side)

    def sizes(self, height: int, width: int) -> np.ndarray:
        """Nothing: the places of its tokens say it."""
        return np.zeros(0, np.float32)

    def begin(self, steps: int, strength: float) -> int:
        """See `Family`. A step of which a part is to be done is done as a whole."""
        return int(max(steps - min(steps * strength, steps), 0))

    def read(self, encoders: tuple[Any, ...], tokens: tuple[Array, ...], kernels: Kernels) -> Text:
        """See `Family`."""
        first, second = encoders
        pooled = clip.encode(first, self.first, tokens[0], kernels=kernels).pooled
        return Text(t5.encode(second, self.second, tokens[1], kernels=kernels), pooled)

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
        given = self._inputs(x, extra, text, time, guidance)
        out = flux.forward(w, self.transformer, *given, kernels=kernels)
        return self._unpacked(out, x)

    def keeps(self, height: int, width: int) -> tuple[int, int] | None:
        """See `Family`."""
        return self.tokens(height, width), self.transformer.width

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
        """See `Family`."""
        given = self._inputs(x, extra, text, time, guidance)
        out, left, reused = flux.forward_reusing(
            w, self.transformer, *given, flux.Kept(*kept), limits, real, kernels=kernels
        )
        return self._unpacked(out, x), Kept(*left), reused

    def _inputs(self, x: Array, extra: Array, text: Text, time: Array, guidance: Array) -> Inputs:
        """What the transformer takes, in its order."""
        height, width = x.shape[1] // PATCH, x.shape[2] // PATCH
        # Channels are the slowest part of a token, so that latents and what lies beside them pack as one.
        packed = pack(jnp.concatenate([x, extra], -1)).astype(text.states.dtype)
        return (
            packed,
            text.states,
            text.pooled,
            time / 1000,
            guidance if self.traits.embeds_guidance else None,
            jnp.zeros((text.states.shape[1], 3), jnp.float32),
            jnp.asarray(places(height, width)),
        )

    def _unpacked(self, out: Array, x: Array) -> Array:
        """Tokens that came out as latents of the form of `x`."""
        return unpack(out, x.shape[1] // PATCH, x.shape[2] // PATCH).astype(jnp.float32)

    def encode(self, w: Any, pictures: Array, kernels: Kernels) -> Array:
        """See `Family`."""
        mean, _ = autoencoder.encode(w, self.vae, from_unit(pictures), kernels=kernels)
        return autoencoder.to_latent(self.vae, mean).astype(jnp.float32)

    def decode(self, w: Any, latents: Array, kernels: Kernels, tile: int | None = None) -> Array:
        """See `Family`."""
        return to_unit(decoded(w, self.vae, latents, kernels, tile))

    def beside(self, masked: Array, mask: Array) -> Array:
        """The masked picture's latents, and of the mask all pixels of a latent as channels."""
        side = self.traits.factor
        pixels = rearrange(mask, "b (h p) (w q) 1 -> b h w (p q)", p=side, q=side)
        return jnp.concatenate([masked, pixels], -1)


def pack(latents: Array) -> Array:
    """[b, h, w, c] to tokens [b, (h / 2) (w / 2), 4 c], row by row."""
    return rearrange(latents, "b (h p) (w q) c -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Array, height: int, width: int) -> Array:
    """The inverse of `pack`; `height` and `width` count tokens."""
    return rearrange(tokens, "b (h w) (c p q) -> b (h p) (w q) c", h=height, w=width, p=PATCH, q=PATCH)


def places(height: int, width: int) -> np.ndarray:
    """float32 [height * width, 3]: 0, row and column of each token of a picture."""
    grid = np.zeros((height, width, 3), np.float32)
    grid[..., 1] = np.arange(height)[:, None]
    grid[..., 2] = np.arange(width)
    return grid.reshape(-1, 3)
