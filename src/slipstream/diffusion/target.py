"""The compiled functions of an image model, for accelerators that are not there: what they need, and whether they fit.

Everything comes from config files. What is compiled is what an engine compiles: reading a text, a denoising step of its
pool, decoding a picture. Nothing runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.random_source import RandomSource
from slipstream.diffusion import slots
from slipstream.diffusion.engine import read_text
from slipstream.diffusion.loading import DENOISERS, family_of, kernels_of, rounded, trained_tokens
from slipstream.diffusion.pipeline import Family, Text
from slipstream.diffusion.programs import Programs
from slipstream.diffusion.target_options import PictureOptions
from slipstream.diffusion.tiling import tile_for
from slipstream.errors import ConfigError, OutOfMemory
from slipstream.models.image.registry import Model, models_of, pipeline_of
from slipstream.parallel.ahead import Needs, bytes_on_device, compile_ahead
from slipstream.parallel.fit import check_share
from slipstream.parallel.mesh import make_mesh
from slipstream.parallel.rules import rules_of
from slipstream.parallel.spread import whole
from slipstream.spec.image import ImageCheckpoint

ADVICE = "take more devices (--target), --scheme int8, or lower --batch, --width or --height"


@dataclass(frozen=True)
class Part:
    """One compiled function of a pipeline. Bytes are of one device; `weights`: of the models that it runs."""

    name: str
    weights: int
    needs: Needs


@dataclass(frozen=True)
class ImageReport:
    """Whether a pipeline fits. Bytes are of one device, of which there are `tp`.

    `limit`: that may be used. `pool`: of the pictures that are denoised. `passes`: of the model in a step.
    """

    tp: int
    limit: int
    width: int
    height: int
    batch: int
    passes: int
    pool: int
    parts: tuple[Part, ...]

    @property
    def weights(self) -> int:
        """Of all models, which stay on the devices."""
        return sum(part.weights for part in self.parts)

    @property
    def temporaries(self) -> int:
        """Of the function that needs most, with its results: they run one after the other."""
        return max(part.needs.temporaries + part.needs.own for part in self.parts)

    @property
    def code(self) -> int:
        """Of all functions."""
        return sum(part.needs.code for part in self.parts)

    @property
    def free(self) -> int:
        """What is left; below 0 where it does not fit."""
        return self.limit - self.weights - self.pool - self.temporaries - self.code


@dataclass(frozen=True)
class Outlined:
    """A pipeline on devices that are not there: its functions can be compiled. `weights`: by part, shapes for data."""

    kind: str
    family: Family
    weights: dict[str, Any]
    mesh: Mesh
    tokens: tuple[int, ...]
    width: int
    height: int
    batch: int

    @classmethod
    def of(
        cls,
        checkpoint: ImageCheckpoint,
        options: PictureOptions,
        devices: Sequence[jax.Device],
        dtype: np.dtype,
        scheme: str | None,
    ) -> Outlined:
        """From config files. Raises ConfigError for sizes that the model or the devices cannot have."""
        models = models_of(checkpoint)
        kind = pipeline_of(checkpoint.pipeline).name
        family = family_of(kind, models, checkpoint)
        check_share(models[DENOISERS[kind]].plan, len(devices), rules_of())
        mesh = make_mesh(devices, len(devices))
        placement = Placement(devices[0], dtype, False, "exact", mesh, partial=True)
        wide = replace(placement, dtype=np.dtype(np.float32))
        weights = {name: _shapes(model, wide if name == "vae" else placement, scheme) for name, model in models.items()}
        traits = family.traits
        width, height = options.width or traits.side, options.height or traits.side
        for name, value in (("width", width), ("height", height)):
            if value % traits.multiple:
                raise ConfigError(f"--{name} {value} must be a multiple of {traits.multiple}")
        clip = models["text_encoder"].config.max_position
        tokens = (clip, (options.text_tokens or trained_tokens(family)) if kind == "flux" else clip)
        return cls(kind, family, weights, mesh, tokens, width, height, options.batch)

    @property
    def passes(self) -> int:
        """Of the model in a step: two for a picture with classifier-free guidance."""
        return self.batch * (1 if self.family.traits.true_guidance is None else 2)

    def read(self) -> Part:
        """Reading one text."""
        encoders = (self.weights["text_encoder"], self.weights["text_encoder_2"])
        inputs = self._ids(), self._whole((1, 0), jnp.float32)  # no adapters
        return self._part("text encoders", encoders, read_text, *inputs, static=(self.family, self._kernels))

    def denoise(self) -> Part:
        """A step of all passes."""
        numbers = self._whole((self.passes, slots.NUMBERS), jnp.float32)
        places = self._whole((self.passes, len(slots.Places._fields)), jnp.int32)
        return self._part(
            "denoising step", self.weights[DENOISERS[self.kind]], Programs().denoise, self.pool(), numbers, places,
            static=(self.family, self._kernels),
        )  # fmt: skip

    def decode(self) -> Part:
        """One picture from its latents, in the tiles that an engine would take."""
        tile = tile_for("auto", self.height, self.width, self.family.traits.factor)
        latents = self._whole((1, *self._latents, self.family.traits.channels), jnp.float32)
        static = self.family, self._kernels, tile
        return self._part("decoding", self.weights["vae"], Programs().decode, latents, static=static)

    def pool(self) -> slots.Slots:
        """The shapes of a pool's rows."""
        traits = self.family.traits
        encoders = (self.weights["text_encoder"], self.weights["text_encoder_2"])
        read = partial(self.family.read, kernels=self._kernels)
        text: Text = jax.eval_shape(read, encoders, self._ids())
        sizes = self.family.sizes(self.height, self.width).size
        shape = (*self._latents, traits.channels, traits.extra, sizes)
        made = jax.eval_shape(lambda: slots.empty(self.passes, *shape, text))
        return jax.tree.map(lambda leaf: self._whole(leaf.shape, leaf.dtype), made)

    @property
    def _kernels(self) -> Any:
        return kernels_of(None, self.mesh.devices.flat[0].platform, self.mesh.size)

    @property
    def _latents(self) -> tuple[int, int]:
        factor = self.family.traits.factor
        return self.height // factor, self.width // factor

    def _ids(self) -> tuple[Any, ...]:
        return tuple(self._whole((1, count), jnp.int32) for count in self.tokens)

    def _whole(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole(self.mesh))

    def _part(self, name: str, weights: Any, function: Any, *arguments: Any, static: tuple[Any, ...]) -> Part:
        held = sum(map(bytes_on_device, jax.tree.leaves(weights)))
        try:
            _, needs = compile_ahead(function, *static, weights, *arguments)
        except OutOfMemory as error:
            raise OutOfMemory(f"The {name} of {self.width}x{self.height} does not fit: {ADVICE}. {error}") from error
        return Part(name, held, needs)


def compile_images(
    checkpoint: ImageCheckpoint,
    options: PictureOptions,
    devices: Sequence[jax.Device],
    *,
    dtype: np.dtype,
    scheme: str | None,
    limit: int,
) -> ImageReport:
    """Compile a pipeline for `devices`, of each of which `limit` bytes may be used. Raises ConfigError, OutOfMemory."""
    outlined = Outlined.of(checkpoint, options, devices, dtype, scheme)
    parts = (outlined.read(), outlined.denoise(), outlined.decode())
    pool = sum(map(bytes_on_device, jax.tree.leaves(outlined.pool())))
    sizes = (outlined.width, outlined.height, outlined.batch, outlined.passes)
    return ImageReport(len(devices), limit, *sizes, pool, parts)


def _shapes(model: Model, placement: Placement, scheme: str | None) -> Any:
    """The weights of a model as they would be loaded."""
    return placement.abstract(model.plan, rounded(model, RandomSource(model.plan), scheme))
