"""When a picture is decoded in tiles, and how large they are: the autoencoder's memory grows with what it decodes."""

from __future__ import annotations

from typing import Any, Final

from jax import Array

from slipstream.diffusion.config import Tiling
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import autoencoder

LARGEST_WHOLE: Final = 1024 * 1024
"""Pixels of a picture that "auto" decodes whole. In float32 that takes some 4 GiB with the published autoencoders."""

SIDES: Final[dict[Tiling, int]] = {"auto": 1024, "always": 512}
"""Pixels along a tile's side: no more memory than `LARGEST_WHOLE`, or a quarter of that."""

SHARED: Final = 4
"""Neighbouring tiles share one in so many of their latents."""


def tile_for(tiling: Tiling, height: int, width: int, factor: int) -> int | None:
    """Latents along a side of the tiles for a picture of so many pixels, `factor` to a latent; None: all at once."""
    if tiling == "never" or (tiling == "auto" and height * width <= LARGEST_WHOLE):
        return None
    side = SIDES[tiling]
    return None if max(height, width) <= side else side // factor


def decoded(w: Any, c: autoencoder.Config, latents: Array, kernels: Kernels, tile: int | None) -> Array:
    """What a denoiser made as the autoencoder's picture, about -1..1: whole, or in tiles of so many latents."""
    raw = autoencoder.from_latent(c, latents)
    if tile is None:
        return autoencoder.decode(w, c, raw, kernels=kernels)
    return autoencoder.decode_tiled(w, c, raw, tile=tile, overlap=tile // SHARED, kernels=kernels)
