"""A family of image models that compiles in no time, in which everything that a model reads changes what it says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from slipstream.diffusion.engine import Finished, Output, PictureEngine, PoolOptions
from slipstream.diffusion.pipeline import Kept, Text, Traits, Weights, from_unit, shrink, to_unit
from slipstream.diffusion.programs import Programs
from slipstream.diffusion.request import PictureRequest
from slipstream.diffusion.scheduler_config import SchedulerConfig, read
from slipstream.kernels.ragged import Kernels
from tests.diffusion.samplers import FLUX_DEV, SDXL

CHANNELS, FACTOR, WIDTH, LENGTH = 2, 2, 4, 6

EMBEDDED = Traits(
    channels=CHANNELS,
    extra=0,
    factor=FACTOR,
    multiple=4,
    side=16,
    embeds_guidance=True,
    guidance=3.5,
    true_guidance=None,
    zeros=False,
    steps=6,
)
TRUE = Traits(
    channels=CHANNELS,
    extra=0,
    factor=FACTOR,
    multiple=2,
    side=16,
    embeds_guidance=False,
    guidance=None,
    true_guidance=5.0,
    zeros=True,
    steps=6,
)


@dataclass(frozen=True)
class Fake:
    """See `slipstream.diffusion.pipeline.Family`."""

    traits: Traits

    def tokens(self, height: int, width: int) -> int:
        return height * width // 16

    def sizes(self, height: int, width: int) -> np.ndarray:
        return np.array([height, width], np.float32)

    def begin(self, steps: int, strength: float) -> int:
        return max(steps - int(steps * strength), 0)

    def read(self, encoders: tuple[Any, ...], tokens: tuple[Array, ...], kernels: Kernels) -> Text:
        states = encoders[0][tokens[0]]
        return Text(states, states.mean(1))

    def predict(
        self, w: Any, x: Array, extra: Array, text: Text, sizes: Array, time: Array, guidance: Array, kernels: Kernels
    ) -> Array:
        said = jnp.tanh(text.states.reshape(text.states.shape[0], -1) @ w["said"]) + text.pooled @ w["pooled"]
        said = said + jnp.stack([time / 1000, guidance, *(sizes.T / 100)], -1) @ w["numbers"]
        around = jnp.roll(x, 1, 1) + jnp.roll(x, 1, 2)
        seen = jnp.concatenate([x, around, extra], -1) @ w["seen"]
        return 0.3 * x + jnp.tanh(seen + said[:, None, None])

    def keeps(self, height: int, width: int) -> tuple[int, int] | None:
        """For models with embedded guidance, all that `predict` gives but a share of what goes in."""
        return ((height // FACTOR) * (width // FACTOR), CHANNELS) if self.traits.embeds_guidance else None

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
        """The first block: what goes in times a fifth."""
        first = x.reshape(len(x), -1, CHANNELS) / 5
        rest = (self.predict(w, x, extra, text, sizes, time, guidance, kernels) - x / 5).reshape(first.shape)
        size = jnp.abs(kept.first).mean((1, 2))
        reused = jnp.abs(first - kept.first).mean((1, 2)) < limits * size
        row = reused[:, None, None]
        kept = Kept(jnp.where(row, kept.first, first), jnp.where(row, kept.rest, rest))
        return (first + kept.rest).reshape(x.shape), kept, reused

    def encode(self, w: Any, pictures: Array, kernels: Kernels) -> Array:
        b, height, width, _ = pictures.shape
        blocks = from_unit(pictures).reshape(b, height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
        return blocks.mean((2, 4)) @ w["in"]

    def decode(self, w: Any, latents: Array, kernels: Kernels, tile: int | None = None) -> Array:
        return to_unit(jnp.repeat(jnp.repeat(latents, FACTOR, 1), FACTOR, 2) @ w["out"])

    def beside(self, masked: Array, mask: Array) -> Array:
        return jnp.concatenate([shrink(mask, FACTOR), masked], -1)


def weights(extra: int = 0) -> Weights:
    """Random weights, on the first device."""
    draw = np.random.default_rng(5)

    def one(*shape: int) -> Array:
        values = draw.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))
        return jax.device_put(values, jax.devices()[0])

    denoiser = {
        "said": one(LENGTH * WIDTH, CHANNELS),
        "pooled": one(WIDTH, CHANNELS),
        "numbers": one(4, CHANNELS),
        "seen": one(2 * CHANNELS + extra, CHANNELS),
    }
    return Weights(denoiser, (one(128, WIDTH),), {"in": one(3, CHANNELS), "out": one(CHANNELS, 3)})


def tokenize(text: str) -> tuple[np.ndarray, ...]:
    """The first characters as ids."""
    ids = np.zeros((1, LENGTH), np.int32)
    given = [ord(letter) % 128 for letter in text[:LENGTH]]
    ids[0, : len(given)] = given
    return (ids,)


@cache
def programs(height: int, width: int) -> Programs:
    """The compiled functions of a size, the same for all tests."""
    return Programs()


def engine(
    traits: Traits = EMBEDDED, config: SchedulerConfig | None = None, *, shared: bool = True, **options: Any
) -> PictureEngine:
    """An engine of a fake model: a flow with embedded guidance, or SDXL's noise with true guidance.

    `shared`: with compiled functions of other tests, where there are some.
    """
    config = config or read(FLUX_DEV if traits.true_guidance is None else SDXL)
    return PictureEngine(
        Fake(traits),
        weights(traits.extra),
        config,
        tokenize,
        options=PoolOptions(**options),
        programs=programs if shared else None,
    )


def request(id: str, prompt: str = "a cat", **fields: Any) -> PictureRequest:
    """A request of a small picture."""
    return PictureRequest(id=id, prompt=prompt, **({"seed": 1} | fields))


def run(engine: PictureEngine, requests: Iterable[PictureRequest] = ()) -> dict[str, Finished]:
    """Add requests and step until nothing is left."""
    for one in requests:
        engine.add(one)
    found: dict[str, Finished] = {}
    while engine.has_work:
        found |= finished(engine.step())
    return found


def finished(outputs: Iterable[Output]) -> dict[str, Finished]:
    """The pictures among outputs."""
    return {one.id: one for one in outputs if isinstance(one, Finished)}
