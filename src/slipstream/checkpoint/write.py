"""Writing a checkpoint in Hugging Face's layout, so that a random model can be served or compared like a real one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from slipstream.checkpoint.safetensors_source import SINGLE_NAME
from slipstream.spec.source import Source


def save_checkpoint(source: Source, folder: Path, config: Mapping[str, Any]) -> Path:
    """Write all tensors of `source` as model.safetensors, and `config` as config.json; returns the folder.

    Holds all tensors in memory at once. A file of these names in the folder is replaced.
    """
    tensors = {name: np.ascontiguousarray(source.read(name)) for name in source.names()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SINGLE_NAME, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    return folder
