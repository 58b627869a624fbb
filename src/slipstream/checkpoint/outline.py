"""Models without their weights: config.json alone, from a folder or from those that are known here by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from slipstream.checkpoint import folder
from slipstream.errors import ModelNotFound


@cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """config.json of published models by short names, without keys that change nothing."""
    configs: dict[str, dict[str, Any]] = json.loads(
        files("slipstream.checkpoint").joinpath("published.json").read_text(encoding="utf-8")
    )
    return configs


def outline(model: str) -> Mapping[str, Any]:
    """config.json of a known name, or of a folder, which need not hold weights.

    Raises ModelNotFound, which lists the names; CheckpointError for a folder without config.json.
    """
    if model in published():
        return published()[model]
    path = Path(model)
    if not path.exists():
        names = ", ".join(published())
        raise ModelNotFound(f"{model} is neither a folder with a config.json nor one of {names}")
    return folder.config_of(path.parent if path.name == "config.json" else path)
