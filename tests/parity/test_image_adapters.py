"""LoRAs beside the weights against diffusers' set_adapters: final latents within 1e-3 of the largest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slipstream import ImagePipeline
from tests.parity import image_pipelines as reference
from tests.parity.test_image_lora import Change, written
from tests.parity.test_image_pipelines import PROMPTS, close, noise

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers on NumPy 2
]

PARTS: Mapping[str, Mapping[str, list[Change]]] = {
    "schnell": {
        "transformer": [
            (f"transformer.{module}", (module,))
            for module in (
                "transformer_blocks.0.attn.to_k",
                "transformer_blocks.0.ff_context.net.2",
                "single_transformer_blocks.1.proj_out",
                "single_transformer_blocks.0.norm.linear",
            )
        ],
        "text_encoder": [
            (f"text_encoder.{module}", (module,)) for module in ("text_model.encoder.layers.1.self_attn.v_proj",)
        ],
    },
    "sdxl": {
        "unet": [
            (f"unet.{module}", (module,))
            for module in (
                "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0",
                "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
                "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            )
        ],
        "text_encoder_2": [
            (f"text_encoder_2.{module}", (module,)) for module in ("text_model.encoder.layers.1.self_attn.out_proj",)
        ],
    },
}
USES: tuple[Mapping[str, float], ...] = ({"ink": 0.1, "face": -0.05}, {"face": 0.1})


@torch.no_grad()
@pytest.mark.parametrize("kind", PARTS)
def test_adapters_are_those_of_diffusers(kind: str, tmp_path: Path) -> None:
    theirs = reference.written(kind, tmp_path / "model")
    parts = PARTS[kind]
    files = {
        name: written(tmp_path / f"{name}.safetensors", seed, theirs, ("lora_B.weight", "lora_A.weight"), parts)
        for seed, name in enumerate(("ink", "face"))
    }
    ours = ImagePipeline(tmp_path / "model", dtype="float32", loras=files)
    for name, file in files.items():
        theirs.load_lora_weights(str(file), adapter_name=name)
    latents = noise(1, 16, 16)
    given: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "latent"}
    if kind == "schnell":
        given |= {"latents": reference.packed(latents), "max_sequence_length": reference.TEXT_TOKENS}
    else:
        given |= {"latents": torch.from_numpy(latents), "guidance_scale": 3.0, "negative_prompt": "green"}
    found = []
    for uses in USES:
        theirs.set_adapters(list(uses), list(uses.values()))
        expected = theirs(PROMPTS[0], **given).images
        made = ours.generate(
            PROMPTS[0],
            steps=3,
            latents=latents,
            loras=uses,
            output="latent",
            **({} if kind == "schnell" else {"guidance": 3.0, "negative_prompt": "green"}),
        )
        assert isinstance(made, np.ndarray)
        close(made, reference.unpacked(expected, 16, 16) if kind == "schnell" else expected.numpy())
        found.append(made)
    assert np.abs(found[0] - found[1]).max() > 0.01 * np.abs(found[0]).max()
