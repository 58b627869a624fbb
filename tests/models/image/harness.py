"""Parts of image models with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slipstream.checkpoint import RandomSource, load
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.renamed import Renamed
from slipstream.kernels.batched_attention import IMPLEMENTATIONS
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import clip, flux, t5
from slipstream.models.image.registry import Module, module_of
from slipstream.spec.source import Source
from tests.models.image.variants import KINDS, VARIANTS

TEXT = 13
"""Tokens of text that Flux is given."""
GRIDS = {"wide": (3, 5), "tall": (4, 2)}
"""Rows and columns of packed latents."""
POSITIONS = [0, 2, 38, 76]
"""Tokens of a text of 77 whose states are recorded."""
MAIN = {"clip": clip.encode, "t5": t5.encode, "flux": flux.forward}
"""What each module computes."""


def random_source(kind: str, config: Mapping[str, Any], seed: int = 0) -> RandomSource:
    """Weights under the plan's names; norms and biases far enough from 1 and 0 for a fault to show."""
    module = module_of(kind)
    return RandomSource(module.plan(module.from_diffusers(config)), seed, jitter=0.3)


@dataclass(frozen=True)
class Built:
    """A part with its weights, in float32."""

    module: Module
    config: Any
    weights: Any

    @classmethod
    def of(cls, kind: str, config: Mapping[str, Any], source: Source, place: Placement | None = None) -> Built:
        """From a checkpoint's tensors; on a mesh if `place` has one."""
        module = module_of(kind)
        place = place or Placement(jax.devices()[0], np.dtype(np.float32), False, "exact")
        c = module.from_diffusers(config)
        named = Renamed.of(source, module.rename)
        weights = load(
            module.plan(c),
            named,
            place.place,
            place_blocks=place.place_blocks,
            place_parts=place.place_parts,
            allowed_unused=module.unread,
        )
        return cls(module, c, weights)

    @classmethod
    def random(cls, name: str, place: Placement | None = None) -> Built:
        """A variant with random weights."""
        return cls.of(KINDS[name], VARIANTS[name], random_source(KINDS[name], VARIANTS[name]), place)

    def __call__(self, *inputs: Any, kernels: Kernels = "reference") -> Any:
        """What the module computes."""
        return jax.tree.map(np.asarray, self.compiled[kernels](self.weights, *map(_array, inputs)))

    @cached_property
    def compiled(self) -> dict[Kernels, Callable[..., Any]]:
        """The function that the module computes, by the kernels of it; compiled in a hurry."""

        def jitted(kernels: Kernels) -> Callable[..., Any]:
            def run(w: Any, *inputs: Any) -> Any:
                return MAIN[self.module.name](w, self.config, *inputs, kernels=kernels)

            return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})

        return {kernels: jitted(kernels) for kernels in IMPLEMENTATIONS}


def _array(x: Any) -> Any:
    return None if x is None else jnp.asarray(x)


def tokens_of(config: Mapping[str, Any], length: int, *, eos: int | None = None) -> np.ndarray:
    """int32 [3, length]: texts of unequal lengths, each with its end at another place, filled up with other tokens."""
    vocab = config["vocab_size"]
    tokens = np.random.default_rng(1).integers(3, vocab - 3, (3, length), dtype=np.int32)
    for row, at in zip(tokens, (2, length // 2, length - 1), strict=True):
        row[at] = vocab - 1 if eos is None else eos
        row[at + 1 :] = 1 if eos is None else eos
    return tokens


def clip_tokens(config: Mapping[str, Any]) -> np.ndarray:
    """Rows of 77; where the config names no end, it is the highest id."""
    return tokens_of(config, 77, eos=None if config["eos_token_id"] == 2 else config["eos_token_id"])


@dataclass(frozen=True)
class FluxInputs:
    """A batch, in the order of `flux.forward`'s arguments."""

    latents: np.ndarray
    text: np.ndarray
    pooled: np.ndarray
    time: np.ndarray
    guidance: np.ndarray | None
    text_ids: np.ndarray
    image_ids: np.ndarray

    @classmethod
    def of(cls, config: Mapping[str, Any], grid: str, count: int = 2) -> FluxInputs:
        """Random inputs at different steps with different guidances."""
        random = np.random.default_rng(2)
        rows, columns = GRIDS[grid]

        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal((count, *shape)).astype(np.float32)

        return cls(
            latents=normal(rows * columns, config["in_channels"]),
            text=normal(TEXT, config["joint_attention_dim"]),
            pooled=normal(config["pooled_projection_dim"]),
            time=np.linspace(1, 0.25, count, dtype=np.float32),
            guidance=np.linspace(3.5, 1, count, dtype=np.float32) if config["guidance_embeds"] else None,
            text_ids=np.zeros((TEXT, 3), np.float32),
            image_ids=ids_of(rows, columns),
        )

    @property
    def all(self) -> tuple[Any, ...]:
        """The arguments."""
        return (self.latents, self.text, self.pooled, self.time, self.guidance, self.text_ids, self.image_ids)


def ids_of(rows: int, columns: int) -> np.ndarray:
    """Coordinates of packed latents, float32 [rows * columns, 3]: (0, row, column)."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
    return np.pad(grid, ((0, 0), (1, 0))).astype(np.float32)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest number expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
