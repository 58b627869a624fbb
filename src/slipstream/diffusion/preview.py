"""Cheap previews: colours of latents by a linear map that is fitted to the model's own decoder, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCKS, SIDE = 6, 4
"""Areas of one colour along a side of what is decoded to fit the map, and latents along a side of each."""


@dataclass(frozen=True)
class Colours:
    """`weights` float32 [c + 1, 3]: of latents and of 1, the last, to red, green and blue."""

    weights: np.ndarray

    @classmethod
    def fitted(cls, decode: Callable[[np.ndarray], np.ndarray], channels: int, factor: int) -> Colours:
        """From what `decode` makes of areas of equal latents: [1, h, w, c] to [1, h * factor, w * factor, 3] in 0..1.

        Colours are taken in the middle of each area, away from its neighbours.
        """
        draw = np.random.default_rng(0)
        areas = draw.standard_normal((BLOCKS, BLOCKS, channels), dtype=np.float32)
        pictures = decode(areas.repeat(SIDE, 0).repeat(SIDE, 1)[None])[0]
        # As 6-axis blocks: area, latent and pixel along both sides.
        parts = pictures.reshape(BLOCKS, SIDE, factor, BLOCKS, SIDE, factor, 3)[:, 1 : SIDE - 1, :, :, 1 : SIDE - 1]
        colours = parts.mean((1, 2, 4, 5)).reshape(-1, 3)
        inputs = np.concatenate([areas.reshape(-1, channels), np.ones((BLOCKS * BLOCKS, 1), np.float32)], 1)
        return cls(np.linalg.lstsq(inputs, colours, rcond=None)[0].astype(np.float32))

    def of(self, latents: np.ndarray) -> np.ndarray:
        """float32 [h, w, 3] in 0..1 of latents [h, w, c]."""
        return np.clip(latents @ self.weights[:-1] + self.weights[-1], 0, 1)
