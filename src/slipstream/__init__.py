"""Slipstream: an open inference stack on JAX, from a laptop to many hosts.

Its names are imported on first use, so that processes that only speak HTTP never load JAX.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slipstream.api.outputs import RequestOutput
    from slipstream.api.sampling import SamplingParams
    from slipstream.image import ImagePipeline
    from slipstream.llm import LLM

__version__ = version("slipstream")
__all__ = ["LLM", "ImagePipeline", "RequestOutput", "SamplingParams", "__version__"]

_HOMES = {
    "ImagePipeline": "slipstream.image",
    "LLM": "slipstream.llm",
    "RequestOutput": "slipstream.api.outputs",
    "SamplingParams": "slipstream.api.sampling",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
