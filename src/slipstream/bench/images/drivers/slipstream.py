"""Slipstream's denoisers in this process. Without native kernels XLA takes the threads that the process is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from slipstream.checkpoint import load as load_weights
from slipstream.checkpoint.placement import Placement
from slipstream.checkpoint.quantized.rounded import RoundedSource
from slipstream.kernels.native import library
from slipstream.kernels.ragged import Kernels
from slipstream.models.image import flux, unet
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.param import params
from slipstream.spec.source import Blocks

from .workloads import weight, workload


class Drawn:
    """A Source of the workload's weights."""

    def __init__(self, plan: Any) -> None:
        self._shapes = {name: param.stored_shape for _, param in params(plan) for name in param.names}

    def names(self) -> Collection[str]:
        """All names that the plan reads."""
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape."""
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        """The tensor."""
        return weight(name, self._shapes[name])

    def blocks(self, name: str) -> Blocks:
        """The tensor as floats in memory."""
        shape = self._shapes[name]
        return Blocks("F32", shape, lambda: self.read(name).view(np.uint8))


def load(settings: dict[str, Any]) -> tuple[Callable[[], np.ndarray], dict[str, str]]:
    """The step, and versions. `native`: products on the native kernels; `precision` fast: with weights of int8."""
    if not settings["native"]:
        os.environ[library.LIBRARY_VARIABLE] = os.devnull  # no library: nothing native, whatever a kernel would choose
    elif problem := library.reason():
        raise RuntimeError(problem)
    else:
        library.use_threads(settings["threads"])
    work = workload(settings["workload"], settings["size"], settings["narrow"])
    module, run = RUNS[work.kind]
    config = module.Config.from_diffusers(work.config)
    plan, precision = module.plan(config), settings["precision"]
    source: Any = Drawn(plan)
    if precision == "fast":
        source = RoundedSource(source, plan, SCHEMES["int8"])
    place = Placement(jax.local_devices()[0], np.dtype(np.float32), settings["native"], precision)
    weights = load_weights(plan, source, place.place, place_blocks=place.place_blocks)
    if work.kind == "UNet2DConditionModel":
        weights = unet.prepare(weights, config, work.inputs["sample"].shape[1:3])
    compiled = jax.jit(lambda w, x: run(w, config, x, "cpu"))
    inputs = dict(work.inputs)
    versions = {name: version(name) for name in ("slipstream", "jax")}
    return (lambda: np.asarray(compiled(weights, inputs))), versions


def _unet(w: Any, c: unet.Config, x: Any, kernels: Kernels) -> jax.Array:
    texts = x["encoder_hidden_states"], x["text_embeds"]
    return unet.forward(w, c, x["sample"], x["timestep"], *texts, x["time_ids"], kernels=kernels)


def _flux(w: Any, c: flux.Config, x: Any, kernels: Kernels) -> jax.Array:
    return flux.forward(
        w,
        c,
        x["hidden_states"],
        x["encoder_hidden_states"],
        x["pooled_projections"],
        x["timestep"],
        x["guidance"],
        x["txt_ids"],
        x["img_ids"],
        kernels=kernels,
    )


RUNS: dict[str, tuple[Any, Callable[[Any, Any, Any, Kernels], jax.Array]]] = {
    "UNet2DConditionModel": (unet, _unet),
    "FluxTransformer2DModel": (flux, _flux),
}
"""By diffusers' classes: the module, and a step of weights, config, inputs and kernels."""
