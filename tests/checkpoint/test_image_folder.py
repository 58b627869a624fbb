"""Folders in diffusers' layout: what is read of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint.image_folder import is_image_folder, open_image_folder
from slipstream.errors import CheckpointError

INDEX: dict[str, Any] = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.36.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "force_zeros_for_empty_prompt": True,
    "add_watermarker": None,
}
VOCAB = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}


def write(folder: Path, files: dict[str, Any]) -> None:
    """Texts as they are, arrays as safetensors, the rest as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".safetensors"):
            save_file(content, path)
        else:
            path.write_text(json.dumps(content))


def tensor(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full(2, value, np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "model_index.json": INDEX,
            "scheduler/scheduler_config.json": {"shift": 3.0},
            "text_encoder/config.json": {"model_type": "clip_text_model"},
            "text_encoder/model.safetensors": tensor(1),
            "tokenizer/vocab.json": VOCAB,
            "tokenizer/merges.txt": "#version: 0.2\n",
            "tokenizer/tokenizer_config.json": {"pad_token": "<|endoftext|>", "model_max_length": 77},
            "transformer/config.json": {"num_layers": 1},
            "transformer/diffusion_pytorch_model.safetensors": tensor(2),
        },
    )
    return tmp_path


def value_of(folder: Path, part: str = "transformer", variant: str | None = None) -> float:
    return float(open_image_folder(folder, variant=variant).parts[part].source.read("a")[0])


def test_all_that_a_folder_holds(folder: Path) -> None:
    assert is_image_folder(folder) and not is_image_folder(folder / "transformer")
    found = open_image_folder(folder)
    assert (found.path, found.pipeline) == (folder, "FluxPipeline")
    assert {name: part.kind for name, part in found.parts.items()} == {
        "text_encoder": "CLIPTextModel",
        "transformer": "FluxTransformer2DModel",
    }
    assert found.parts["transformer"].config == {"num_layers": 1}
    assert found.scheduler == {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert found.settings == {"force_zeros_for_empty_prompt": True}
    tokenizer = found.tokenizers["tokenizer"]
    assert tokenizer.clip is not None and dict(tokenizer.clip.ids) == VOCAB
    assert (tokenizer.special, tokenizer.max_length) == ({"pad": "<|endoftext|>"}, 77)
    assert value_of(folder) == 2 and value_of(folder, "text_encoder") == 1


def test_weights_in_several_files(folder: Path) -> None:
    inside = folder / "transformer"
    (inside / "diffusion_pytorch_model.safetensors").unlink()
    name = "diffusion_pytorch_model-00001-of-00002.safetensors"
    write(inside, {name: tensor(3), "diffusion_pytorch_model-00002-of-00002.safetensors": {"b": np.ones(1)}})
    index = {"a": name, "b": name.replace("00001-", "00002-")}
    write(inside, {"diffusion_pytorch_model.safetensors.index.json": {"weight_map": index}})
    assert value_of(folder) == 3
    write(inside, {"diffusion_pytorch_model.safetensors.index.json": {"weight_map": {"a": "../text_encoder/x"}}})
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        open_image_folder(folder)


def test_variants(folder: Path) -> None:
    """The one without a name unless another is asked for; a named one where it is alone."""
    inside = folder / "transformer"
    write(inside, {"diffusion_pytorch_model.fp16.safetensors": tensor(4)})
    assert value_of(folder) == 2
    (inside / "diffusion_pytorch_model.safetensors").unlink()
    assert value_of(folder) == 4
    with pytest.raises(
        CheckpointError, match="text_encoder has no weights of the variant fp16; it has weights without a"
    ):
        open_image_folder(folder, variant="fp16")
    write(folder / "text_encoder", {"model.fp16.safetensors": tensor(5)})
    assert (value_of(folder, variant="fp16"), value_of(folder, "text_encoder", "fp16")) == (4, 5)
    write(inside, {"diffusion_pytorch_model.bf16-00001-of-00001.safetensors": tensor(6)})
    files = {"weight_map": {"a": "diffusion_pytorch_model.bf16-00001-of-00001.safetensors"}}
    write(inside, {"diffusion_pytorch_model.safetensors.index.bf16.json": files})
    with pytest.raises(CheckpointError, match=r"weights in several variants \(bf16, fp16\): choose one"):
        open_image_folder(folder)
    write(folder / "text_encoder", {"model.bf16.safetensors": tensor(7)})
    assert value_of(folder, variant="bf16") == 6


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        open_image_folder(folder / "transformer")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        open_image_folder(folder)
    write(folder, {"transformer/diffusion_pytorch_model.bin": "x"})
    with pytest.raises(CheckpointError, match="as pickle only"):
        open_image_folder(folder)
    write(folder, {"model_index.json": {**INDEX, "transformer": ["diffusers"]}})
    with pytest.raises(CheckpointError, match="'transformer' must be a library and a class"):
        open_image_folder(folder)
    write(folder, {"model_index.json": {"../x": ["diffusers", "AutoencoderKL"], **INDEX}})
    with pytest.raises(CheckpointError, match=r"'\.\./x' must be a library and a class"):
        open_image_folder(folder)
    write(folder, {"model_index.json": {}})
    with pytest.raises(CheckpointError, match="names no pipeline"):
        open_image_folder(folder)
