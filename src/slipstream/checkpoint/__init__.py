"""From a model's name to its weights: names, downloads, safetensors, GGUF, loading over a plan."""

from __future__ import annotations

from slipstream.checkpoint.loading import check, load
from slipstream.checkpoint.names import CachedModel, cached_models, resolve
from slipstream.checkpoint.opening import open_checkpoint, why_no_tokenizer
from slipstream.checkpoint.progress import Progress
from slipstream.checkpoint.random_source import RandomSource
from slipstream.checkpoint.write import save_checkpoint

__all__ = [
    "CachedModel",
    "Progress",
    "RandomSource",
    "cached_models",
    "check",
    "load",
    "open_checkpoint",
    "resolve",
    "save_checkpoint",
    "why_no_tokenizer",
]
