"""An image model as it is asked for: a folder, perhaps with parts out of a single file, perhaps with LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slipstream.checkpoint.image_folder import open_image_folder
from slipstream.checkpoint.image_single import open_image_file
from slipstream.checkpoint.lora import Lora, with_loras
from slipstream.spec.image import ImageCheckpoint


def open_images(
    folder: Path, *, variant: str | None = None, file: Path | None = None, loras: Sequence[Lora] = ()
) -> ImageCheckpoint:
    """Open a folder in diffusers' layout. No weights are read yet.

    `variant`: which set of them. `file`: a .safetensors file as the models were first published, whose parts take the
    place of the folder's. `loras`: changes to the weights. Raises CheckpointError and UnsupportedModel.
    """
    checkpoint = open_image_folder(folder, variant=variant)
    if file is not None:
        checkpoint = replace(checkpoint, parts={**checkpoint.parts, **open_image_file(file)})
    return with_loras(checkpoint, loras)
