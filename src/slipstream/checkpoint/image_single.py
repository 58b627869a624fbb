"""Image models in one safetensors file, as they were first published: their components in diffusers' terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from slipstream.checkpoint import float8, flux_names, sdxl_names
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.image import Component
from slipstream.spec.source import Source


@dataclass(frozen=True)
class Layout:
    """A way to name and arrange tensors. `components(source)` gives them by their names in model_index.json."""

    name: str
    recognises: Callable[[Collection[str]], bool]
    components: Callable[[Source], Mapping[str, Component]]


LAYOUTS = (
    Layout("Flux.1 of Black Forest Labs", flux_names.recognises, flux_names.components),
    Layout("Stable Diffusion XL", sdxl_names.recognises, sdxl_names.components),
)


def open_image_file(path: Path) -> Mapping[str, Component]:
    """The components that one .safetensors file holds. Nothing but its header is read.

    Raises CheckpointError for a damaged file, UnsupportedModel for a layout that is not known.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is not a .safetensors file: other formats of one file are not read")
    source = float8.opened(SafetensorsSource([path]))
    for layout in LAYOUTS:
        if layout.recognises(source.names()):
            return layout.components(source)
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise UnsupportedModel(f"{path} holds no image model in a layout that is known: {known}")
