"""What a checkpoint of an image model holds, whatever files it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipstream.spec.source import Source
from slipstream.spec.tokenizer import TokenizerSpec


@dataclass(frozen=True)
class Component:
    """One model of several. `kind`: its class in diffusers or transformers. `config`: its config.json."""

    kind: str
    config: Mapping[str, Any]
    source: Source


@dataclass(frozen=True)
class ImageCheckpoint:
    """An opened checkpoint, in diffusers' terms.

    `pipeline`: its class. `parts` and `tokenizers`: by their names in model_index.json ("text_encoder_2"). `scheduler`:
    scheduler_config.json, empty where there is none. `settings`: what model_index.json says besides, such as
    force_zeros_for_empty_prompt. `defaults`: `steps` and `guidance` of a request that does not say, where the folder
    names them (under "_slipstream" in model_index.json, which diffusers passes over).
    """

    path: Path
    pipeline: str
    parts: Mapping[str, Component]
    tokenizers: Mapping[str, TokenizerSpec]
    scheduler: Mapping[str, Any]
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
