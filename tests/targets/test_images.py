"""Image models of real size, compiled by XLA for TPUs and GPUs that are not here: memory, and talk among devices."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from slipstream.checkpoint.image_outline import image_outline
from slipstream.diffusion.target import Outlined
from slipstream.diffusion.target_options import PictureOptions
from slipstream.errors import ConfigError
from slipstream.hardware.profile import target_of
from slipstream.parallel.topology import devices_of

GIB = 2**30


def outlined(model: str, target: str, **asked: int) -> Outlined:
    """A published model in bfloat16, for all devices of a target."""
    checkpoint = image_outline(model)
    assert checkpoint is not None
    devices = devices_of(target_of(target))
    return Outlined.of(checkpoint, PictureOptions(**asked), devices, jnp.dtype(jnp.bfloat16), None)


# model, target, pictures; GiB of the denoiser's weights, and at most of a step's temporaries.
STEPS = [
    ("flux-dev", "v6e-4", 1, 5.56, 0.25),
    ("flux-dev", "h100-1", 1, 22.17, 1.0),
    ("sdxl", "h100-1", 8, 4.78, 3.5),
    ("sdxl", "v6e-4", 8, 1.35, 3.0),
]


@pytest.mark.long
@pytest.mark.parametrize(("model", "target", "batch", "weights", "temporaries"), STEPS)
def test_a_denoising_step(model: str, target: str, batch: int, weights: float, temporaries: float) -> None:
    """Pictures of 1024 x 1024."""
    found = outlined(model, target, width=1024, height=1024, batch=batch)
    part = found.denoise()
    needs = part.needs
    print(f"weights {part.weights / GIB:.2f} GiB, temporaries {needs.temporaries / GIB:.2f} GiB on each device")
    assert part.weights / GIB == pytest.approx(weights, abs=0.01)
    assert needs.temporaries < temporaries * GIB
    pool = sum(leaf.size * leaf.dtype.itemsize for leaf in (found.pool().x, found.pool().denoised))
    assert needs.donated > pool, "the pool of pictures is changed in place"
    if model == "flux-dev" and target == "v6e-4":
        looped = {"all-reduce": 2 + 1, "all-gather": 2 + 1}
        assert needs.collectives.looped == looped, "of a double block and a single one"


def test_reading_a_text() -> None:
    part = outlined("sdxl", "h100-1").read()
    assert part.weights / GIB == pytest.approx(1.52, abs=0.01)
    assert part.needs.temporaries < 0.1 * GIB


def test_what_does_not_go_together() -> None:
    with pytest.raises(ConfigError, match="--width 1001 must be a multiple of 16"):
        outlined("flux-dev", "v6e-4", width=1001)
    with pytest.raises(ConfigError, match="--batch must be at least 1, got 0"):
        PictureOptions(batch=0)
