"""Stable Diffusion XL in one file: bit for bit what a folder of diffusers has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint import sdxl_names
from slipstream.checkpoint.image_single import open_image_file
from slipstream.checkpoint.loading import check
from slipstream.errors import CheckpointError
from slipstream.models.image import autoencoder, unet
from slipstream.models.image.registry import model_of
from tests.checkpoint import sdxl_file


def written(tensors: sdxl_file.Tensors, folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path


def test_a_file_is_bit_equal_to_its_folder(tmp_path: Path) -> None:
    models = sdxl_file.folder()
    parts = open_image_file(written(sdxl_file.single(models), tmp_path))
    assert parts.keys() == models.keys()
    for name, tensors in models.items():
        source = parts[name].source
        assert set(source.names()) == tensors.keys()
        for tensor, expected in tensors.items():
            found = source.read(tensor)
            assert found.dtype == expected.dtype
            assert source.shape(tensor) == found.shape
            np.testing.assert_array_equal(found, expected, err_msg=tensor)
    for part in parts.values():
        check(model_of(part).plan, part.source)


def test_configs_follow_from_shapes(tmp_path: Path) -> None:
    parts = open_image_file(written(sdxl_file.single(sdxl_file.folder()), tmp_path))
    found = unet.Config.from_diffusers(parts["unet"].config)
    assert found == unet.Config.from_diffusers(sdxl_file.UNET)
    found_too = autoencoder.Config.from_diffusers(parts["vae"].config)
    assert found_too == autoencoder.Config.from_diffusers(sdxl_file.AUTOENCODER)
    second = parts["text_encoder_2"].config
    assert {name: second[name] for name in ("hidden_size", "intermediate_size", "projection_dim", "hidden_act")} == {
        "hidden_size": sdxl_file.SECOND_WIDTH,
        "intermediate_size": 3 * sdxl_file.SECOND_WIDTH,
        "projection_dim": sdxl_file.PROJECTED,
        "hidden_act": "gelu",
    }
    first = parts["text_encoder"].config
    assert (first["num_hidden_layers"], first["max_position_embeddings"], first["hidden_act"]) == (2, 7, "quick_gelu")


def test_a_refiner_has_the_second_encoder_alone(tmp_path: Path) -> None:
    tensors = sdxl_file.single(sdxl_file.folder())
    renamed = {
        name.replace("embedders.1.model", "embedders.0.model"): tensor
        for name, tensor in tensors.items()
        if "embedders.0." not in name
    }
    parts = open_image_file(written(renamed, tmp_path))
    assert parts.keys() == {"unet", "vae", "text_encoder_2"}


def test_tensors_that_nobody_knows(tmp_path: Path) -> None:
    tensors = sdxl_file.single(sdxl_file.folder())
    more = tensors | {"control_model.weight": np.zeros(1, np.float32)}
    with pytest.raises(CheckpointError, match=r"1 tensors are of none of the file's models, such as 'control_model"):
        open_image_file(written(more, tmp_path))
    more = tensors | {"model.diffusion_model.input_blocks.1.0.in_layers.5.weight": np.zeros(1, np.float32)}
    part = open_image_file(written(more, tmp_path))["unet"]
    with pytest.raises(CheckpointError, match=r"not read by the model:\n *down_blocks\.0\.resnets\.0\.in_layers\.5"):
        check(model_of(part).plan, part.source)
    less = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.encoder")}
    with pytest.raises(CheckpointError, match=r"the file has no 'encoder.conv_in.weight'"):
        open_image_file(written(less, tmp_path))


def test_names() -> None:
    assert sdxl_names.unet_name("input_blocks.3.0.op.bias", 3) == "down_blocks.0.downsamplers.0.conv.bias"
    assert sdxl_names.unet_name("output_blocks.2.2.conv.weight", 3) == "up_blocks.0.upsamplers.0.conv.weight"
    assert sdxl_names.unet_name("output_blocks.5.1.proj_in.weight", 3) == "up_blocks.1.attentions.2.proj_in.weight"
    assert sdxl_names.unet_name("middle_block.2.out_layers.3.bias", 3) == "mid_block.resnets.1.conv2.bias"
    assert sdxl_names.autoencoder_name("decoder.up.0.block.2.nin_shortcut.weight", 3) == (
        "decoder.up_blocks.3.resnets.2.conv_shortcut.weight"
    )
