"""Whole pipelines against diffusers', float32, from the same folder: the final latents within 1e-3 of the largest."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
import torch

from slipstream import ImagePipeline
from slipstream.diffusion import tiling
from slipstream.diffusion.slots import words
from tests.parity import image_pipelines as reference

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

TOLERANCE = 1e-3
PROMPTS = ["a red apple on a wooden table", "Ünïcode, and " + "a very long description of everything " * 12]
HEIGHT, WIDTH = 24, 40


@pytest.fixture(scope="module")
def open_pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """diffusers' pipeline of a kind and ours, from the folder that it wrote."""

    @cache
    def pair(kind: str) -> tuple[Any, ImagePipeline]:
        folder = tmp_path_factory.mktemp(kind)
        return reference.written(kind, folder), ImagePipeline(folder, dtype="float32")

    return pair


def noise(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Unit noise [n, 4, h, w]."""
    return np.random.default_rng(7).standard_normal((count, 4, height // 2, width // 2), dtype=np.float32)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3], and a mask [H, W] of a part of it."""
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[5:17, 3:22] = 1
    return np.random.default_rng(8).random((HEIGHT, WIDTH, 3), np.float32), mask


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    assert float(np.abs(ours - theirs).max()) < TOLERANCE * float(np.abs(theirs).max())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dev", "schnell"])
@pytest.mark.parametrize("true", [1.0, 3.0])
def test_flux(kind: str, true: float, open_pair: Any) -> None:
    """Two unequal prompts at once; embedded guidance or none; with a negative prompt beside it."""
    theirs, ours = open_pair(kind)
    latents = noise(2)
    negative = {"negative_prompt": ["green", "text"]} if true > 1 else {}
    embedded = {"guidance": 2.5} if kind == "dev" else {}
    expected = theirs(
        PROMPTS,
        true_cfg_scale=true,
        guidance_scale=2.5,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=4,
        latents=reference.packed(latents),
        max_sequence_length=reference.TEXT_TOKENS,
        output_type="latent",
        **negative,
    ).images
    given = {"height": HEIGHT, "width": WIDTH, "steps": 4, "latents": latents, "true_guidance": true}
    found = ours.generate(PROMPTS, output="latent", **given, **embedded, **negative)
    close(found, reference.unpacked(expected, HEIGHT, WIDTH))


@torch.no_grad()
def test_flux_pictures(open_pair: Any) -> None:
    theirs, ours = open_pair("schnell")
    latents = noise(1, 16, 16)
    expected = theirs(
        PROMPTS[0],
        height=16,
        width=16,
        num_inference_steps=2,
        latents=reference.packed(latents),
        max_sequence_length=reference.TEXT_TOKENS,
        output_type="np",
    ).images
    found = ours.generate(PROMPTS[0], steps=2, latents=latents, output="np")
    assert found.shape == (1, 16, 16, 3)
    close(found, expected)


@torch.no_grad()
def test_tiles(open_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture decoded in tiles is about what diffusers makes in tiles as large, and as near to the whole one.

    Equal they are not: here all tiles are of one size and fade evenly, there the last ones are cut off.
    """
    theirs, ours = open_pair("schnell")
    latents = noise(1, 64, 48)
    expected = []
    for tiled in (False, True):
        (theirs.vae.enable_tiling if tiled else theirs.vae.disable_tiling)()
        made = theirs(
            PROMPTS[0],
            height=64,
            width=48,
            num_inference_steps=1,
            latents=reference.packed(latents),
            max_sequence_length=reference.TEXT_TOKENS,
            output_type="np",
        ).images
        expected.append(made)
    theirs.vae.disable_tiling()
    whole, tiled_there = expected
    monkeypatch.setitem(tiling.SIDES, "always", theirs.vae.tile_sample_min_size)
    monkeypatch.setattr(ours.engine, "options", replace(ours.engine.options, tiling="always"))
    found = ours.generate(PROMPTS[0], steps=1, height=64, width=48, latents=latents, output="np")
    theirs_off = np.abs(tiled_there - whole).mean()
    assert 0 < np.abs(found - whole).mean() < 1.05 * theirs_off
    assert np.abs(found - tiled_there).mean() < 1.5 * theirs_off


@torch.no_grad()
@pytest.mark.parametrize("painted", [False, True])
def test_flux_from_a_picture(painted: bool, open_pair: Any) -> None:
    theirs, ours = open_pair("dev")
    image, mask = picture()
    given = {"mask_image": torch.from_numpy(mask)[None, None]} if painted else {}
    with reference.given_noise(noise(1)):
        expected = reference.as_class(theirs, "FluxInpaintPipeline" if painted else "FluxImg2ImgPipeline")(
            PROMPTS[0],
            image=image,
            strength=0.55,
            guidance_scale=3.5,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=5,
            max_sequence_length=reference.TEXT_TOKENS,
            output_type="latent",
            **given,
        ).images
    found = ours.generate(
        PROMPTS[0],
        image=image,
        mask=mask if painted else None,
        strength=0.55,
        steps=5,
        latents=noise(1),
        output="latent",
    )
    close(found, reference.unpacked(expected, HEIGHT, WIDTH))


@torch.no_grad()
def test_flux_fill(open_pair: Any) -> None:
    theirs, ours = open_pair("fill")
    image, mask = picture()
    with reference.given_noise(noise(1)):
        expected = theirs(
            PROMPTS[0],
            image=image,
            mask_image=torch.from_numpy(mask)[None, None],
            guidance_scale=30.0,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=3,
            max_sequence_length=reference.TEXT_TOKENS,
            output_type="latent",
        ).images
    found = ours.generate(PROMPTS[0], image=image, mask=mask, steps=3, latents=noise(1), output="latent")
    close(found, reference.unpacked(expected, HEIGHT, WIDTH))


@torch.no_grad()
@pytest.mark.parametrize(
    ("guidance", "negative", "sampler", "scheduler"),
    [
        (5.0, None, None, None),
        (1.0, None, None, None),
        (7.5, ["green", ""], "dpmpp_2m_karras", ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})),
        (3.0, ["", "blurry"], "ddim", ("DDIMScheduler", {})),
    ],
)
def test_sdxl(guidance: float, negative: Any, sampler: Any, scheduler: Any, open_pair: Any) -> None:
    """Two unequal prompts; no negative prompt is zeros; other samplers than the checkpoint's."""
    theirs, ours = open_pair("sdxl")
    latents = noise(2)
    parts = dict(theirs.components)
    if scheduler is not None:
        name, changes = scheduler
        theirs = reference.as_class(theirs, "StableDiffusionXLPipeline")
        theirs.scheduler = getattr(reference.diffusers, name).from_config(parts["scheduler"].config, **changes)
    expected = theirs(
        PROMPTS,
        negative_prompt=negative,
        guidance_scale=guidance,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=5,
        latents=torch.from_numpy(latents),
        output_type="latent",
    ).images
    found = ours.generate(
        PROMPTS,
        negative,
        guidance=guidance,
        height=HEIGHT,
        width=WIDTH,
        steps=5,
        sampler=sampler,
        latents=latents,
        output="latent",
    )
    close(found, expected.numpy())


@torch.no_grad()
@pytest.mark.parametrize(
    ("sampler", "name"), [("lcm", "LCMScheduler"), ("euler_ancestral", "EulerAncestralDiscreteScheduler")]
)
def test_sdxl_with_new_noise(sampler: str, name: str, open_pair: Any) -> None:
    """The noise of steps is ours, by the seed and the step, in both."""
    theirs, ours = open_pair("sdxl")
    made = reference.as_class(theirs, "StableDiffusionXLPipeline")
    made.scheduler = getattr(reference.diffusers, name).from_config(theirs.scheduler.config)
    key = jax.random.wrap_key_data(words(5))
    shape = (HEIGHT // 2, WIDTH // 2, 4)
    steps = [np.asarray(jax.random.normal(jax.random.fold_in(key, i + 1), shape)) for i in range(4)]
    with reference.given_noise(noise(1), [np.moveaxis(one, -1, 0)[None].copy() for one in steps]):
        expected = made(
            PROMPTS[0],
            guidance_scale=2.0,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=4,
            latents=torch.from_numpy(noise(1)),
            output_type="latent",
        ).images
    given = {"guidance": 2.0, "height": HEIGHT, "width": WIDTH, "steps": 4, "seed": 5, "latents": noise(1)}
    close(ours.generate(PROMPTS[0], sampler=sampler, output="latent", **given), expected.numpy())


@torch.no_grad()
def test_sdxl_pictures(open_pair: Any) -> None:
    theirs, ours = open_pair("sdxl")
    latents = noise(1, 16, 16)
    expected = theirs(PROMPTS[0], num_inference_steps=3, latents=torch.from_numpy(latents), output_type="np").images
    found = ours.generate(PROMPTS[0], steps=3, latents=latents, output="np")
    assert found.shape == (1, 16, 16, 3)
    close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize(("painted", "strength"), [(False, 0.55), (True, 0.7), (True, 1.0)])
def test_sdxl_from_a_picture(painted: bool, strength: float, open_pair: Any) -> None:
    theirs, ours = open_pair("sdxl")
    image, mask = picture()
    given = {"mask_image": torch.from_numpy(mask)[None, None], "height": HEIGHT, "width": WIDTH} if painted else {}
    kind = "Inpaint" if painted else "Img2Img"
    with reference.given_noise(noise(1)):
        expected = reference.as_class(theirs, f"StableDiffusionXL{kind}Pipeline")(
            PROMPTS[0],
            image=image,
            strength=strength,
            guidance_scale=4.0,
            num_inference_steps=6,
            output_type="latent",
            **given,
        ).images
    found = ours.generate(
        PROMPTS[0],
        image=image,
        mask=mask if painted else None,
        strength=strength,
        guidance=4.0,
        steps=6,
        latents=noise(1),
        output="latent",
    )
    close(found, expected.numpy())


@torch.no_grad()
def test_sdxl_that_repaints(open_pair: Any) -> None:
    theirs, ours = open_pair("sdxl-inpaint")
    image, mask = picture()
    with reference.given_noise(noise(1)):
        expected = theirs(
            PROMPTS[0],
            image=image,
            mask_image=torch.from_numpy(mask)[None, None],
            strength=1.0,
            guidance_scale=4.0,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=3,
            output_type="latent",
        ).images
    found = ours.generate(PROMPTS[0], image=image, mask=mask, guidance=4.0, steps=3, latents=noise(1), output="latent")
    close(found, expected.numpy())


def test_a_seed_gives_the_same_picture_in_any_batch(open_pair: Any) -> None:
    """The pictures of a call have the seeds that follow the first."""
    _, ours = open_pair("schnell")
    first = ours.generate(PROMPTS, seed=3, n=2, steps=2, output="np", height=16, width=24)
    again = ours.generate(PROMPTS[1], seed=6, steps=2, output="np", height=16, width=24)
    assert np.abs(first[3] - again[0]).max() < 1e-6
