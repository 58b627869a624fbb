"""Pictures that start from another: by strength, and where a mask says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slipstream.diffusion.slots import unit_noise, words
from tests.diffusion.fakes import EMBEDDED, TRUE, engine, request, run, weights

SHADES = np.random.default_rng(1).random((16, 16, 3), np.float32)
LEFT = np.zeros((16, 16), np.float32)
LEFT[:, :8] = 1


def latents_of(picture: np.ndarray) -> np.ndarray:
    """What the fake autoencoder makes of a picture."""
    blocks = (picture * 2 - 1).reshape(8, 2, 8, 2, 3).mean((1, 3))
    return blocks @ np.asarray(weights().autoencoder["in"])


@pytest.mark.parametrize("traits", [EMBEDDED, TRUE])
def test_what_the_mask_leaves_stays(traits: object) -> None:
    one = engine(traits, batches=(4,))
    found = run(one, [request("one", picture=SHADES, mask=LEFT), request("other")])
    kept = latents_of(SHADES)
    np.testing.assert_allclose(found["one"].latents[:, 4:], kept[:, 4:], atol=1e-5)
    assert np.abs(found["one"].latents[:, :4] - kept[:, :4]).max() > 0.1
    # From noise alone, as strength 1 with a mask is; where all of it is repainted nothing of the picture is left.
    everywhere = run(one, [request("all", picture=SHADES, mask=np.ones_like(LEFT))])["all"]
    np.testing.assert_array_equal(everywhere.latents, found["other"].latents)


def test_little_strength_changes_little() -> None:
    one = engine(TRUE)
    kept = latents_of(SHADES)
    distances = []
    for strength in (0.05, 0.4, 1.0):
        found = run(one, [request("one", picture=SHADES, strength=strength, steps=20, guidance=1.0)])["one"]
        distances.append(float(np.abs(found.latents - kept).mean()))
        assert found.passes == round(strength * 20)
    assert distances == sorted(distances)
    assert distances[0] < 0.3 * distances[-1]


def test_it_starts_where_the_schedule_says() -> None:
    """With a model that sees what it is given, nothing but the start is left of the first step."""
    one = engine(TRUE)
    job = one.check(request("one", picture=SHADES, strength=0.5, guidance=1.0))
    assert not job.pure
    assert job.begin == 3
    start = job.schedule.picture * latents_of(SHADES) + job.schedule.noise * np.asarray(
        unit_noise(words(1), np.uint32(0), (8, 8, 2))
    )
    one.add(request("one", picture=SHADES, strength=0.5, guidance=1.0))
    pool = next(iter(one._pools.values()))
    pool._admit(pool._waiting.popleft())
    np.testing.assert_allclose(np.asarray(pool._slots.x[0]), start, rtol=1e-6, atol=1e-5)


def test_a_model_that_repaints_reads_the_mask_and_the_rest() -> None:
    painting = replace(EMBEDDED, extra=3)
    found = run(
        engine(painting), [request(str(i), picture=SHADES, mask=mask) for i, mask in enumerate((LEFT, 1 - LEFT))]
    )
    assert np.abs(found["0"].latents - found["1"].latents).max() > 0.01
    # It is told of the rest, and paints it anew: nothing is put back.
    assert np.abs(found["0"].latents[:, 4:] - latents_of(SHADES)[:, 4:]).max() > 1e-3


def test_a_preview_is_what_the_model_sees() -> None:
    one = engine(EMBEDDED)
    one.add(request("one", steps=9))
    for _ in range(8):
        one.step()
    preview = one.preview("one")
    assert preview is not None
    assert preview.shape == (8, 8, 3)
    picture = run(one)["one"].picture
    assert picture is not None
    assert np.abs(preview - picture[::2, ::2]).mean() < 0.1
    assert one.preview("one") is None
