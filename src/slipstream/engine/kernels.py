"""Which kernels an engine runs, and what they need of its KV cache: decided here, once, by the devices' platform."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.kernels.native import library
from slipstream.kernels.ragged import Kernels

logger = logging.getLogger(__name__)

_OF_PLATFORM: dict[str, Kernels] = {
    "cpu": "cpu",
    "tpu": "pallas_tpu",
    "gpu": "cudnn",
    "cuda": "cudnn",
    "rocm": "pallas_gpu",
}
"""What runs when nobody says, by JAX's name of the platform. A GPU that is only compiled for is called cuda."""

_RUNS_ON: dict[Kernels, tuple[str, ...]] = {
    "pallas_tpu": ("tpu",),
    "pallas_gpu": ("gpu", "cuda", "rocm"),
    "cudnn": ("gpu", "cuda"),
}
"""Platforms on which kernels are compiled; on others they are interpreted."""

SCALED_PAGES = 128
"""A TPU copies float32 numbers 128 at a time: pages of a cache with scales are a multiple of that."""


class Needs(NamedTuple):
    """`page`: tokens in a page when nobody says; what others must be a multiple of. `types`: of KV caches."""

    page: int
    multiple: int
    types: frozenset[str]


_ON_GPU = frozenset({"float32", "bfloat16", "float16", "int8", "float8_e4m3fn"})
_NEEDS: dict[Kernels, Needs] = {
    "reference": Needs(16, 1, frozenset({"float32", "bfloat16", "float16", "int8", "float8_e4m3fn"})),
    "cpu": Needs(16, 1, frozenset({"float32", "bfloat16", "float16", "int8"})),
    "pallas_tpu": Needs(64, 32, frozenset({"float32", "bfloat16", "int8", "float8_e4m3fn"})),
    "pallas_gpu": Needs(64, 1, _ON_GPU),
    "cudnn": Needs(64, 1, _ON_GPU),
}


class Chosen(NamedTuple):
    """The kernels of an engine. `interpreted`: on a platform that they are not for, where Pallas interprets them."""

    kernels: Kernels
    interpreted: bool = False

    @property
    def native(self) -> bool:
        """Whether weights are kept for the native CPU kernels."""
        return self.kernels == "cpu"

    def page_size(self, config: EngineConfig, held: np.dtype) -> int:
        """Tokens in a page of a KV cache of `held`. Raises ConfigError for a type or a size that the kernels refuse."""
        needs = _NEEDS[self.kernels]
        if held.name not in needs.types:
            types = ", ".join(sorted(needs.types))
            raise ConfigError(
                f"{self.kernels} kernels read KV caches of {types}, not of {held.name}: choose another --kv-dtype, or "
                "--kernels reference"
            )
        scaled = self.kernels == "pallas_tpu" and held == np.int8
        multiple = SCALED_PAGES if scaled else needs.multiple
        size = config.page_size or max(needs.page, multiple)
        if size % multiple:
            raise ConfigError(
                f"{self.kernels} kernels need pages of a multiple of {multiple} tokens for {held.name}, not of {size}: "
                f"leave --page-size out, or set it to {-(-size // multiple) * multiple}"
            )
        return size


def choose_kernels(config: EngineConfig, platform: str, count: int) -> Chosen:
    """The kernels of `count` devices of a platform.

    Raises ConfigError where the native ones or cuDNN's were asked for and cannot run; says so once where they would
    have been used and are not there, or not for so many devices or such a cache.
    """
    own = _OF_PLATFORM.get(platform, "reference")
    asked: Kernels = own if config.kernels == "auto" else config.kernels
    if asked == "cpu":
        return _native(config, platform, count)
    interpreted = asked != "reference" and platform not in _RUNS_ON[asked]
    if interpreted:
        logger.warning("%s kernels on a %s are interpreted, which is for tests: it is slow", asked, platform)
    if asked == "cudnn" and not interpreted:
        return _cudnn(config)
    return Chosen(asked, interpreted)


def _cudnn(config: EngineConfig) -> Chosen:
    from slipstream.kernels.cudnn import missing  # Pallas takes long to import, and most never need it.

    reason = missing()
    if reason is None:
        return Chosen("cudnn")
    if config.kernels == "cudnn":
        raise ConfigError(
            f"--kernels cudnn: {reason} Install cuDNN beside JAX's CUDA plugin (pip install nvidia-cudnn-cu12), or use "
            "--kernels pallas_gpu"
        )
    logger.info("%s Pallas computes the attention of prompts", reason)
    return Chosen("pallas_gpu")


def _native(config: EngineConfig, platform: str, count: int) -> Chosen:
    if platform != "cpu":
        raise ConfigError(f"--kernels cpu needs a CPU, this is a {platform}: use --kernels auto")
    unbuilt = missing = library.reason()
    if count > 1:
        missing = f"the native CPU kernels run on one device, --tp {config.tp} and --dp {config.dp} need {count}"
    elif missing is None and config.kv_dtype == "fp8":
        missing = "the native CPU kernels read no fp8 cache: choose --kv-dtype int8"
    if missing is None:
        return Chosen("cpu")
    if config.kernels == "cpu":
        raise ConfigError(missing)
    logger.warning("%s" if missing == unbuilt else "%s: XLA's own code runs", missing)
    return Chosen("reference")
