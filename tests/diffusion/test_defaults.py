"""What a folder says a request gets that does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipstream.diffusion.loading import with_defaults
from slipstream.diffusion.pipeline import Traits
from slipstream.errors import CheckpointError
from slipstream.spec.image import ImageCheckpoint

PLAIN = Traits(
    channels=16,
    extra=0,
    factor=8,
    multiple=16,
    side=64,
    embeds_guidance=False,
    guidance=None,
    true_guidance=None,
    zeros=False,
    steps=4,
)


def folder(defaults: dict[str, Any]) -> ImageCheckpoint:
    return ImageCheckpoint(Path("folder"), "FluxPipeline", {}, {}, {}, {}, defaults)


def test_steps_and_guidance_are_the_folders() -> None:
    assert with_defaults(PLAIN, folder({})) == PLAIN
    found = with_defaults(PLAIN, folder({"steps": 20, "guidance": 3}))
    assert (found.steps, found.true_guidance, found.guidance) == (20, 3.0, None)


def test_embedded_guidance_stays_the_models_input() -> None:
    found = with_defaults(replace(PLAIN, embeds_guidance=True, guidance=3.5), folder({"guidance": 2.0}))
    assert (found.steps, found.guidance, found.true_guidance) == (4, 2.0, None)


@pytest.mark.parametrize(
    "defaults",
    [{"steps": 0}, {"steps": 2.5}, {"steps": True}, {"guidance": "3"}, {"guidance": 101}, {"seed": 1}],
)
def test_what_is_no_default_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="default"):
        with_defaults(PLAIN, folder(defaults))
