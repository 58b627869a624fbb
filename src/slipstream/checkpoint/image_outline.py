"""Image models without their weights: a folder's config files alone, or one of those that are known here by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from slipstream.checkpoint.image_folder import is_image_folder, open_image_folder
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.spec.image import Component, ImageCheckpoint


@cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """By short names: `pipeline`, and for each of `parts` its class and config, without keys that say the default."""
    models: dict[str, dict[str, Any]] = json.loads(
        files("slipstream.checkpoint").joinpath("published_images.json").read_text(encoding="utf-8")
    )
    return models


def image_outline(model: str) -> ImageCheckpoint | None:
    """An image model by a known name, or of a folder in diffusers' layout, which need not hold weights.

    Its parts have no tensors and there are no tokenizers. None for what is neither. Raises CheckpointError for a folder
    whose files are damaged.
    """
    if model in published():
        found = published()[model]
        parts = {
            name: Component(part["class"], part["config"], SafetensorsSource([]))
            for name, part in found["parts"].items()
        }
        return ImageCheckpoint(Path(model), found["pipeline"], parts, {}, {}, {})
    path = Path(model)
    return open_image_folder(path, outline=True) if is_image_folder(path) else None
