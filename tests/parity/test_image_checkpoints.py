"""Folders that diffusers writes, and the names of single files as diffusers reads them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.numpy import load_file, save_file

from slipstream.checkpoint.image_folder import open_image_folder
from slipstream.checkpoint.image_single import open_image_file
from slipstream.models.image.registry import module_of
from tests.checkpoint.test_flux_file import CONFIG, original, tensors_of
from tests.models.image.harness import Built, FluxInputs, clip_tokens, random_source, relative, tokens_of
from tests.models.image.variants import CLIP, CLIPS, FLUX, T5
from tests.parity import images as reference

TOLERANCE = 1e-4
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "text_encoder": ("CLIPTextModel", CLIP),
    "text_encoder_2": ("T5EncoderModel", T5),
    "transformer": ("FluxTransformer2DModel", FLUX),
}


@pytest.mark.parametrize(("variant", "shard"), [(None, "10GB"), ("fp16", "20KB")])
def test_a_folder_that_diffusers_wrote(variant: str | None, shard: str, tmp_path: Path) -> None:
    """Single files and many, with and without a variant: configs, tensors, and what each part computes of them."""
    models = {name: reference.filled(kind, config) for name, (kind, config) in MODELS.items()}
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        tokenizer=None,
        tokenizer_2=None,
        **models,
    )
    pipeline.save_pretrained(tmp_path, variant=variant, max_shard_size=shard)
    found = open_image_folder(tmp_path)
    assert (found.pipeline, found.tokenizers) == ("FluxPipeline", {})
    assert found.scheduler["shift"] == 3.0
    assert {name: part.kind for name, part in found.parts.items()} == {name: kind for name, (kind, _) in MODELS.items()}
    if shard == "20KB":
        assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    inputs = {
        "text_encoder": (clip_tokens(CLIPS["clip"]),),
        "text_encoder_2": (tokens_of(T5, 20),),
        "transformer": FluxInputs.of(FLUX, "tall").all,
    }
    outputs = {
        "text_encoder": reference.clip(models["text_encoder"], *inputs["text_encoder"])["hidden"],
        "text_encoder_2": reference.t5(models["text_encoder_2"], *inputs["text_encoder_2"]),
        "transformer": reference.flux(models["transformer"], FluxInputs.of(FLUX, "tall")),
    }
    for name, part in found.parts.items():
        ours = Built.of(part.kind, part.config, part.source)(*inputs[name])
        assert relative(ours.hidden if name == "text_encoder" else ours, outputs[name]) < TOLERANCE


def test_a_single_file_as_diffusers_reads_it(tmp_path: Path) -> None:
    """diffusers' converter with the width of this model in place of FLUX.1's, which it has as a constant."""
    tensors = original(tensors_of(random_source("FluxTransformer2DModel", CONFIG)))
    save_file(tensors, tmp_path / "flux.safetensors")
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    source = inspect.getsource(convert)
    assert "inner_dim = 3072" in source
    scope = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", "inner_dim = 128"), scope)
    loaded = {name: torch.from_numpy(tensor) for name, tensor in load_file(tmp_path / "flux.safetensors").items()}
    expected = scope[convert.__name__](loaded)
    part = open_image_file(tmp_path / "flux.safetensors")["transformer"]
    assert set(part.source.names()) == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(part.source.read(name), tensor.numpy(), err_msg=name)
    model = reference.empty("FluxTransformer2DModel", CONFIG)
    model.load_state_dict(expected)
    inputs = FluxInputs.of(CONFIG, "tall")
    ours = Built.of(part.kind, part.config, part.source)(*inputs.all)
    assert relative(ours, reference.flux(model, inputs)) < TOLERANCE
    assert module_of(part.kind).name == "flux"
