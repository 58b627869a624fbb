"""Flux against diffusers, in float32, from the same random tiny weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.models.image.harness import GRIDS, Built, FluxInputs, ids_of, relative
from tests.models.image.variants import FLUX, FLUXES
from tests.parity import images as reference

TOLERANCE = 1e-4

model_of = cache(reference.model_of)
ours_of = cache(Built.random)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", FLUXES)
def test_velocity(name: str, grid: str) -> None:
    """Two prompts at different steps with different guidances, on grids that are not square."""
    inputs = FluxInputs.of(FLUXES[name], grid)
    assert relative(ours_of(name)(*inputs.all), reference.flux(model_of(name), inputs)) < TOLERANCE


def test_more_tokens_than_a_block_of_queries() -> None:
    """A grid of 36 x 32, with positions as large as they are in pictures of 576 pixels."""
    inputs = FluxInputs.of(FLUX, "wide", 1)
    latents = np.random.default_rng(5).standard_normal((1, 36 * 32, FLUX["in_channels"])).astype(np.float32)
    inputs = FluxInputs(**{**vars(inputs), "latents": latents, "image_ids": ids_of(36, 32)})
    expected = reference.flux(model_of("dev"), inputs)
    for kernels in ("reference", "cpu"):
        assert relative(ours_of("dev")(*inputs.all, kernels=kernels), expected) < TOLERANCE


def test_two_pictures_in_a_row() -> None:
    """Kontext: the tokens of a picture that is given follow, with 1 as their first coordinate."""
    inputs = FluxInputs.of(FLUX, "wide")
    given = ids_of(2, 3)
    given[:, 0] = 1
    more = np.random.default_rng(6).standard_normal((2, 6, FLUX["in_channels"])).astype(np.float32)
    both: dict[str, Any] = {
        "latents": np.concatenate((inputs.latents, more), axis=1),
        "image_ids": np.concatenate((inputs.image_ids, given)),
    }
    inputs = FluxInputs(**{**vars(inputs), **both})
    assert relative(ours_of("dev")(*inputs.all), reference.flux(model_of("dev"), inputs)) < TOLERANCE
