"""What a request may ask for: refused before any work, with the field at fault and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slipstream.diffusion.request import PictureRequest
from slipstream.errors import Overloaded, RequestError
from tests.diffusion.fakes import EMBEDDED, TRUE, engine, request

GREY = np.full((16, 16, 3), 0.5, np.float32)
MASK = np.ones((16, 16), np.float32)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"width": 18}, "width", "not a multiple of 4: take 16 or 20"),
        ({"height": 0}, "height", "from 8 up"),
        ({"height": -16}, "height", "from 8 up"),
        ({"height": 16.0}, "height", "whole number"),
        ({"width": True}, "width", "whole number"),
        ({"width": 10_000, "height": 10_000}, "size", "100000000 pixels, at most 4194304"),
        ({"steps": 0}, "steps", "from 1 to 500"),
        ({"steps": 10**9}, "steps", "from 1 to 500"),
        ({"steps": 2.5}, "steps", "whole number"),
        ({"guidance": float("nan")}, "guidance", "must be a number"),
        ({"guidance": 1e9}, "guidance", "from 0 to 100"),
        ({"guidance": "7"}, "guidance", "must be a number"),
        ({"seed": -1}, "seed", "from 0 to"),
        ({"seed": 1 << 64}, "seed", "from 0 to"),
        ({"sampler": "dpmpp_2m"}, "sampler", "one of this model's: flow"),
        ({"prompt": None}, "prompt", "must be text"),
        ({"prompt": "x" * 60_000}, "prompt", "60000 characters"),
        ({"negative_prompt": "blue"}, "negative_prompt", "true_guidance over 1"),
        ({"strength": 0.5}, "strength", "needs an image"),
        ({"mask": MASK}, "mask", "needs an image"),
        ({"picture": GREY, "strength": 0.0}, "strength", "over 0"),
        ({"picture": GREY, "strength": 1.5}, "strength", "at most 1"),
        ({"picture": GREY, "strength": 0.01, "steps": 10}, "strength", "leaves none"),
        ({"picture": GREY, "width": 32}, "image", "must be [16, 32, 3]"),
        ({"picture": GREY, "mask": MASK[:8]}, "mask", "must be [16, 16]"),
        ({"latents": np.zeros((2, 8, 9), np.float32)}, "latents", "are [2, 8, 8]"),
        ({"latents": np.full((2, 8, 8), np.inf, np.float32)}, "latents", "finite"),
    ],
)
def test_refused(fields: dict[str, Any], param: str, words: str) -> None:
    one = engine(EMBEDDED)
    with pytest.raises(RequestError) as caught:
        one.add(request("bad", **fields))
    assert caught.value.param == param
    assert words in caught.value.message
    assert not one.has_work
    assert one.counts().pools == 0
    assert one.counts().text_misses == 0


def test_guidance_that_the_model_does_not_read() -> None:
    fast = engine(replace(EMBEDDED, embeds_guidance=False, guidance=None))
    assert fast.check(request("one", guidance=3.5)).guidance == 1
    assert fast.check(request("one", guidance=3.5, negative_prompt="")).guidance == 3.5
    with pytest.raises(RequestError, match="guidance over 1"):
        fast.check(request("one", negative_prompt="blue"))
    with pytest.raises(RequestError, match="use guidance"):
        engine(TRUE).check(request("one", true_guidance=3.0))
    with pytest.raises(RequestError, match="guidance over 1"):
        engine(TRUE).check(request("one", guidance=1.0, negative_prompt="blue"))
    with pytest.raises(RequestError, match="two passes"):
        engine(TRUE, batches=(1,)).check(request("one"))


def test_defaults_are_the_models() -> None:
    job = engine(TRUE).check(request("one"))
    assert (job.width, job.height, job.schedule.steps, job.guidance, job.negative) == (16, 16, 6, 5.0, None)
    job = engine(EMBEDDED).check(request("one"))
    assert (job.guidance, job.embedded) == (1.0, 3.5)
    assert engine(replace(TRUE, zeros=False)).check(request("one")).negative == ""
    few = engine(TRUE).check(request("one", sampler="lightning"))
    assert (few.schedule.steps, few.guidance) == (4, 1.0)
    assert (
        engine(TRUE).check(PictureRequest(id="a", prompt="")).seed
        != engine(TRUE).check(PictureRequest(id="a", prompt="")).seed
    )


def test_a_picture_gives_its_size() -> None:
    wide = np.zeros((21, 35, 3), np.float32)
    with pytest.raises(RequestError, match=r"must be \[20, 32, 3\]"):  # to which `ImagePipeline` scales it
        engine(EMBEDDED).check(request("one", picture=wide))


def test_a_model_that_repaints_needs_both() -> None:
    painting = replace(EMBEDDED, extra=3)
    with pytest.raises(RequestError, match="send image and mask"):
        engine(painting).check(request("one", picture=GREY))


def test_the_queue_is_bounded() -> None:
    one = engine(EMBEDDED, waiting=2, batches=(1,))
    one.add(request("a"))
    one.add(request("b"))
    with pytest.raises(Overloaded):
        one.add(request("c"))
    with pytest.raises(RequestError, match="already"):
        one.check(request("a"))
