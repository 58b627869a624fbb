"""What the pool of images asks of a family: text to conditioning, one pass of the model, latents to pictures and back.

Shapes: b pictures, s tokens of text, H and W pixels, h and w latents (H / factor), c channels of latents, e channels
that some models read beside them (see `Family.extra`). Everything is channels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.kernels.ragged import Kernels


class Text(NamedTuple):
    """What a text is to a model: `states` [b, s, d] of its tokens and `pooled` [b, p], one vector of the whole."""

    states: Array
    pooled: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """The weights of a pipeline's models: the one that denoises, the text encoders in order, the autoencoder."""

    denoiser: Any
    encoders: tuple[Any, ...]
    autoencoder: Any


@dataclass(frozen=True)
class Traits:
    """What is fixed about a model.

    `channels`: of latents. `extra`: channels beside them that tell which part of a known picture to repaint; 0 for a
    model that was not trained to. `factor`: pixels along a side for each latent. `multiple`: what width and height must
    be multiples of. `side`: the width and height that it was trained for. `embeds_guidance`: guidance is an input of
    the model. `true_guidance`: the guidance of a request that says nothing about it, None where only a request that
    asks for it gets a second pass. `zeros`: no negative prompt means zeros, not the encoded empty text. `steps`: of a
    request that does not say.
    """

    channels: int
    extra: int
    factor: int
    multiple: int
    side: int
    embeds_guidance: bool
    guidance: float | None
    true_guidance: float | None
    zeros: bool
    steps: int


NO_FIRST_BLOCK = "first-block caching is for transformers: a UNet (SDXL) has none, take step reuse"


class Kept(NamedTuple):
    """What rows keep of a pass for first-block caching, [b, t, d] each: what the first block added, and the rest."""

    first: Array
    rest: Array


class Family(Protocol):
    """A family's models as pure functions. Frozen and hashable: it is static in compiled functions."""

    @property
    def traits(self) -> Traits:
        """What is fixed about the model."""

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a picture of so many pixels."""

    def sizes(self, height: int, width: int) -> np.ndarray:
        """float32 [k]: what the model is told of a picture's size; k may be 0."""

    def begin(self, steps: int, strength: float) -> int:
        """How many steps are left out when a picture is changed with `strength` 0..1; `steps` of them: all."""

    def read(self, encoders: tuple[Any, ...], tokens: tuple[Array, ...], kernels: Kernels) -> Text:
        """Encode a text. `tokens`: int32 [b, s], for each encoder its own."""

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
        """What the model sees in latents `x` float32 [b, h, w, c], as float32 of that shape.

        `extra` [b, h, w, e]; `sizes` [b, k]; `time` [b] as a schedule has it; `guidance` [b], read where embedded.
        """

    def keeps(self, height: int, width: int) -> tuple[int, int] | None:
        """t and d of `Kept` for pictures of so many pixels; None where the model has no first block to go by."""

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
        """`predict`, in which a row whose first block adds about what `kept` says takes the rest from there.

        `limits` float32 [b]: about how much, relatively; 0 for a row that must compute. `real` bool [b]: rows that
        count. Also gives what is kept now, and bool [b]: which rows reused. Called where `keeps` is not None.
        """

    def encode(self, w: Any, pictures: Array, kernels: Kernels) -> Array:
        """Pictures float32 [b, H, W, 3] in 0..1 to the means of their latents [b, h, w, c], scaled for the model."""

    def decode(self, w: Any, latents: Array, kernels: Kernels, tile: int | None = None) -> Array:
        """Latents float32 [b, h, w, c] to pictures float32 [b, H, W, 3] in 0..1.

        `tile`: in overlapping tiles of so many latents a side, which takes the memory of one; None: whole.
        """

    def beside(self, masked: Array, mask: Array) -> Array:
        """What a model with `extra` channels reads: [b, h, w, e].

        `masked`: the latents [b, h, w, c] of the picture with its masked part grey. `mask`: [b, H, W, 1], 1 where it
        is to be repainted.
        """


def shrink(mask: Array, factor: int) -> Array:
    """A mask [b, H, W, 1] of latents: each takes the value of its first pixel."""
    return mask[:, ::factor, ::factor]


def to_unit(pictures: Array) -> Array:
    """What an autoencoder gives, in -1..1, as pictures in 0..1; what lies outside is cut off."""
    return jnp.clip(pictures.astype(jnp.float32) / 2 + 0.5, 0, 1)


def from_unit(pictures: Array) -> Array:
    """Pictures in 0..1 as an autoencoder takes them."""
    return pictures * 2 - 1
