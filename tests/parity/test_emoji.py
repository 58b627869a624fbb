"""The embedded image model is diffusers' to read, and draws the same there."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from slipstream import ImagePipeline
from slipstream.checkpoint.builtin import EMBEDDED
from tests.parity.image_pipelines import packed

SIDE, TEXT_TOKENS = 64, 16
TOLERANCE = 1e-3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
@torch.no_grad()
def test_diffusers_draws_the_same_apple() -> None:
    theirs = diffusers.FluxPipeline.from_pretrained(EMBEDDED["emoji-flux"].path).to(torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = ImagePipeline("emoji-flux", dtype="float32")
    traits = ours.engine.family.traits
    latents = np.random.default_rng(7).standard_normal((1, 16, SIDE // 8, SIDE // 8), dtype=np.float32)
    expected = theirs(
        "red apple",
        negative_prompt="",
        true_cfg_scale=traits.true_guidance,
        height=SIDE,
        width=SIDE,
        num_inference_steps=traits.steps,
        latents=packed(latents),
        max_sequence_length=TEXT_TOKENS,
        output_type="latent",
    ).images
    wanted = diffusers.FluxPipeline._unpack_latents(expected, SIDE, SIDE, 8).numpy()
    found = ours.generate("red apple", latents=latents, output="latent")
    assert isinstance(found, np.ndarray) and found.shape == wanted.shape
    assert float(np.abs(found - wanted).max()) < TOLERANCE * float(np.abs(wanted).max())
