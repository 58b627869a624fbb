"""Flux and SDXL from checkpoints of random weights: what their parts are joined to, and what does not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slipstream.diffusion import flux, sdxl
from slipstream.diffusion.engine import PictureEngine, PoolOptions
from slipstream.diffusion.loading import load_engine
from slipstream.errors import CheckpointError, UnsupportedModel
from slipstream.spec.image import ImageCheckpoint
from slipstream.spec.tokenizer import TokenizerSpec
from tests.diffusion.fakes import request, run
from tests.diffusion.samplers import SDXL
from tests.diffusion.tiny import checkpoint, tokenizer_in


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


def load(found: ImageCheckpoint) -> PictureEngine:
    return load_engine(found, dtype=np.dtype(np.float32))


def test_flux(tokenizer: TokenizerSpec) -> None:
    engine = load(checkpoint("FluxPipeline", tokenizer))
    assert (engine.family.traits.side, engine.family.traits.multiple, engine.family.traits.guidance) == (8, 4, 3.5)
    asked = {
        "one": {},
        "same": {},
        "text": {"prompt": "green apple"},
        "guided": {"guidance": 9.0},
        "against": {"true_guidance": 4.0, "negative_prompt": "red"},
    }
    found = run(engine, [request(id, **({"prompt": "red apple", "steps": 2} | asked[id])) for id in asked])
    first = found["one"].latents
    assert first.shape == (4, 4, 4)
    assert found["one"].picture is not None
    assert found["one"].picture.shape == (8, 8, 3)
    assert np.abs(found["same"].latents - first).max() < 1e-5
    for id in ("text", "guided", "against"):
        assert np.abs(found[id].latents - first).max() > 1e-3, id


def test_sdxl(tokenizer: TokenizerSpec) -> None:
    engine = load(checkpoint("StableDiffusionXLPipeline", tokenizer))
    assert (engine.family.traits.side, engine.family.traits.multiple, engine.family.traits.zeros) == (8, 2, True)
    asked = {
        "zeros": {},
        "empty": {"negative_prompt": ""},
        "red": {"negative_prompt": "red"},
        "alone": {"guidance": 1.0},
        "odd": {"height": 10, "width": 14},
    }
    found = run(engine, [request(id, **({"prompt": "green apple", "steps": 2} | asked[id])) for id in asked])
    for id in ("empty", "red", "alone"):
        assert np.abs(found[id].latents - found["zeros"].latents).max() > 1e-3, id
    assert found["odd"].latents.shape == (5, 7, 4)


def test_packing() -> None:
    latents = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = np.asarray(flux.pack(latents))
    assert tokens.shape == (2, 6, 12)
    # Token 4 is row 1, column 1 of squares; in it a channel's four latents follow one another.
    np.testing.assert_array_equal(tokens[1, 4], latents[1, 2:4, 2:4].transpose(2, 0, 1).ravel())
    np.testing.assert_array_equal(flux.unpack(tokens, 2, 3), latents)
    np.testing.assert_array_equal(flux.places(2, 3)[4], [0, 1, 1])


def test_steps_that_strength_leaves_out() -> None:
    """Of 10 steps at 0.55, SDXL takes 5 and Flux 6, as in diffusers."""
    assert sdxl.Sdxl.begin(None, 10, 0.55) == 5  # type: ignore[arg-type]
    assert flux.Flux.begin(None, 10, 0.55) == 4  # type: ignore[arg-type]
    assert sdxl.Sdxl.begin(None, 10, 1.0) == flux.Flux.begin(None, 10, 1.0) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("FluxPipeline", {"transformer": {"in_channels": 24}}, "24 inputs"),
        ("FluxPipeline", {"transformer": {"in_channels": 48}}, "48 inputs and 48 outputs"),
        ("StableDiffusionXLPipeline", {"unet": {"in_channels": 5}}, "5 inputs"),
    ],
)
def test_parts_that_do_not_fit(kind: str, changes: Mapping[str, Any], words: str, tokenizer: TokenizerSpec) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        load(checkpoint(kind, tokenizer, **changes))


def test_models_that_repaint(tokenizer: TokenizerSpec) -> None:
    fill = load(checkpoint("FluxPipeline", tokenizer, transformer={"in_channels": 48, "out_channels": 16}))
    assert (fill.family.traits.extra, fill.family.traits.guidance) == (8, 30.0)
    inpaint = load(checkpoint("StableDiffusionXLPipeline", tokenizer, unet={"in_channels": 9}))
    assert inpaint.family.traits.extra == 5


def test_checkpoints_that_lack_something(tokenizer: TokenizerSpec) -> None:
    whole = checkpoint("FluxPipeline", tokenizer)
    with pytest.raises(CheckpointError, match="no tokenizer_2"):
        load(replace(whole, tokenizers={"tokenizer": tokenizer}))
    with pytest.raises(CheckpointError, match="no scheduler_config"):
        load(replace(whole, scheduler={}))
    with pytest.raises(UnsupportedModel, match="cannot be sampled by EulerDiscreteScheduler"):
        load(replace(whole, scheduler=SDXL))
    with pytest.raises(UnsupportedModel, match="refiner"):
        load(replace(checkpoint("StableDiffusionXLPipeline", tokenizer), settings={"requires_aesthetics_score": True}))


def test_texts_are_as_long_as_the_checkpoint_says(tokenizer: TokenizerSpec) -> None:
    for guided, longest, wanted in ((True, None, 512), (False, None, 256), (True, 20, 20)):
        found = checkpoint("FluxPipeline", tokenizer, transformer={"guidance_embeds": guided})
        long = replace(tokenizer, max_length=longest)
        engine = load(replace(found, tokenizers={"tokenizer": tokenizer, "tokenizer_2": long}))
        assert [ids.shape for ids in engine._tokenize("a red apple")] == [(1, 12), (1, wanted)]


def test_flux_with_first_block_caching(tokenizer: TokenizerSpec) -> None:
    """Without a limit as without caching; with one that all steps meet, only the first of them computes all blocks."""
    found = checkpoint("FluxPipeline", tokenizer, transformer={"num_layers": 2})
    options = {"batches": (2,)}
    asked = [request(str(i), prompt, steps=4, height=8, width=8) for i, prompt in enumerate(("a red apple", "green"))]
    plain = run(load_engine(found, dtype=np.dtype(np.float32), options=PoolOptions(**options)), asked)
    cached = load_engine(found, dtype=np.dtype(np.float32), options=PoolOptions(**options, first_block=0.0))
    same = run(cached, asked)
    for id, one in plain.items():
        np.testing.assert_allclose(same[id].latents, one.latents, atol=1e-6 * np.abs(one.latents).max())
    assert cached.counts().rows_reused == 0
    mixed = run(cached, [replace(asked[0], first_block=1.0), asked[1]])
    assert [mixed[id].passes for id in "01"] == [1, 4] and cached.counts().steps_short == 0
    np.testing.assert_allclose(mixed["1"].latents, plain["1"].latents, atol=1e-5)
    short = run(cached, [replace(one, first_block=1.0) for one in asked])
    assert [short[id].passes for id in "01"] == [1, 1] and cached.counts().steps_short == 3
    np.testing.assert_allclose(short["0"].latents, mixed["0"].latents, atol=1e-5)
    assert np.abs(short["0"].latents - plain["0"].latents).max() > 1e-3
    with pytest.raises(UnsupportedModel, match="UNet"):
        load_engine(
            checkpoint("StableDiffusionXLPipeline", tokenizer),
            dtype=np.dtype(np.float32),
            options=PoolOptions(first_block=0.1),
        )
