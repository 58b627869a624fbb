"""The reader of Stable Diffusion XL's single file against diffusers' own conversion of the same tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from slipstream.checkpoint import sdxl_names
from slipstream.spec.source import Source
from tests.checkpoint import sdxl_file


class InMemory:
    """A Source of arrays."""

    def __init__(self, tensors: sdxl_file.Tensors) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def blocks(self, name: str) -> None:
        return None


def assert_equal(source: Source, converted: dict[str, Any]) -> None:
    assert set(source.names()) == converted.keys()
    for name, tensor in converted.items():
        np.testing.assert_array_equal(source.read(name), tensor.numpy(), err_msg=name)


def test_conversion() -> None:
    tensors = sdxl_file.single(sdxl_file.folder())
    parts = sdxl_names.components(InMemory(tensors))
    checkpoint = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}
    found = single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), sdxl_file.UNET)
    assert_equal(parts["unet"].source, found)
    found = single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), sdxl_file.AUTOENCODER)
    assert_equal(parts["vae"].source, found)
    # A model of any size: only its class and its config's projection are read.
    model = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1))
    # diffusers splits by the projection's size, which is the width in every published model.
    square = {**tensors, "conditioner.embedders.1.model.text_projection": np.zeros((sdxl_file.SECOND_WIDTH,) * 2, "f4")}
    parts = sdxl_names.components(InMemory(square))
    checkpoint = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in square.items()}
    prefix = "conditioner.embedders.1.model."
    found = single_file_utils.convert_open_clip_checkpoint(model, checkpoint, prefix)
    assert_equal(parts["text_encoder_2"].source, found)
