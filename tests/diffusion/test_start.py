"""The engine as a worker sees it: requests of the wire in, progress, previews and pixels out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slipstream.api.image_engine import ImageOutput, ImageRequest, Pixels
from slipstream.diffusion.config import ImageEngineConfig, size_of
from slipstream.diffusion.start import ImageEngine, batches_of, is_due, picture_of, ready
from slipstream.errors import ConfigError, RequestError
from slipstream.kernels.compiles import CompileCounter

from . import fakes


@pytest.fixture(scope="module")
def engine() -> ImageEngine:
    return ready(fakes.engine(batches=(1, 2, 4)), "toy", "flux", "float32", ("16x16", "24x16"), CompileCounter())


def wanted(id: str, **fields: Any) -> ImageRequest:
    return ImageRequest(id=id, **({"prompt": "a cat", "width": 16, "height": 16, "seed": 1} | fields))


def run(engine: ImageEngine, *requests: ImageRequest) -> dict[str, list[ImageOutput]]:
    found: dict[str, list[ImageOutput]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            found[output.id].append(output)
    return found


def test_what_it_is(engine: ImageEngine) -> None:
    info = engine.info
    assert (info.model, info.family, info.width, info.height, info.multiple) == ("toy", "flux", 16, 16, 4)
    assert (info.steps, info.guidance, info.negative, info.true_guidance) == (6, 3.5, False, True)
    assert (info.slots, info.num_shapes, info.samplers, info.sampler) == (4, 6, ("flow",), "flow")
    assert info.weight_bytes > 0 and info.min_side == 8
    other = ready(fakes.engine(fakes.TRUE), "toy", "sdxl", "float32", (), CompileCounter()).info
    assert (other.guidance, other.negative, other.true_guidance) == (5.0, True, False)
    assert "euler" in other.samplers


def test_pictures_with_progress_and_previews(engine: ImageEngine) -> None:
    requests = [wanted("a", previews=2), wanted("b", width=24, seed=2, steps=4), wanted("c", steps=9, guidance=1.0)]
    found = run(engine, *requests)
    for request in requests:
        *progress, last = found[request.id]
        steps = request.steps or 6
        assert [output.step for output in progress] == list(range(1, steps + 1))
        assert {output.steps for output in found[request.id]} == {steps}
        assert [output.queue_seconds is not None for output in progress] == [True] + [False] * (steps - 1)
        assert last.finish_reason == "stop" and last.image is not None
        assert last.image.array.shape == (request.height, request.width, 3)
        alone = fakes.run(fakes.engine(), [picture_of(request)])[request.id].picture
        assert alone is not None
        np.testing.assert_array_equal(last.image.array, (alone * 255).round().astype(np.uint8))
    previews = [output.preview for output in found["a"] if output.preview is not None]
    assert [one.array.shape for one in previews] == [(8, 8, 3)] * 2
    assert not any(output.preview for output in found["b"])


@pytest.mark.parametrize(("steps", "previews"), [(2, 1), (4, 3), (3, 3)])
def test_short_runs_have_their_previews_too(engine: ImageEngine, steps: int, previews: int) -> None:
    """All that were asked for where there are so many steps before the last, the last preview among them."""
    outputs = run(engine, wanted("short", steps=steps, previews=previews))["short"]
    assert [output.preview is not None for output in outputs].count(True) == min(previews, steps - 1)
    assert all(output.preview is None for output in outputs if output.image is not None)


def test_nothing_compiles_for_new_prompts_and_settings(engine: ImageEngine) -> None:
    run(engine, wanted("first", previews=1))
    before = engine.stats()
    run(engine, wanted("x", prompt="a dog", steps=5, guidance=7.0, previews=3), wanted("y", true_guidance=2.0))
    after = engine.stats()
    assert after.compiles == before.compiles
    assert after.images == before.images + 2 and after.steps > before.steps
    assert after.text_queries > after.text_hits and after.running == after.waiting == 0
    assert after.scheduled_slots - before.scheduled_slots == 5 + 2 * 6
    assert len(after.step_seconds) == after.steps - before.steps


def test_an_abort(engine: ImageEngine) -> None:
    for id in ("a", "b"):
        engine.add(wanted(id, steps=20, previews=3))
    engine.step()
    engine.step()
    assert engine.abort("a") and not engine.abort("a") and not engine.abort("nobody")
    outputs = engine.step()
    assert {output.id for output in outputs} == {"b"} and engine.stats().running == 1
    engine.abort("b")
    while engine.has_work:
        assert engine.step() == []


def test_an_edit(engine: ImageEngine) -> None:
    draw = np.random.default_rng(3)
    picture = Pixels.of(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[:8] = 255
    plain, masked = wanted("p", image=picture, strength=0.5), wanted("m", image=picture, mask=Pixels.of(mask))
    found = run(engine, plain, masked, wanted("n"))
    images = {id: outputs[-1].image for id, outputs in found.items()}
    assert found["p"][-1].steps == 3 and found["m"][-1].steps == 6
    assert len({image.data for image in images.values() if image is not None}) == 3
    inner = picture_of(masked)
    assert inner.mask is not None and inner.mask[0, 0] == 1 and inner.mask[15, 0] == 0
    assert inner.picture is not None and inner.picture.max() <= 1 and inner.strength == 1.0
    assert picture_of(wanted("n")).strength is None


@pytest.mark.parametrize(
    "fields",
    [{"sampler": "magic"}, {"width": 18}, {"steps": 0}, {"negative_prompt": "blur"}],
)
def test_what_it_refuses(engine: ImageEngine, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        engine.add(wanted("r", **fields))
    assert not engine.has_work


@pytest.mark.parametrize(("steps", "previews"), [(4, 1), (4, 3), (20, 3), (2, 3), (1, 3), (7, 0)])
def test_previews_are_spread(steps: int, previews: int) -> None:
    due = [step for step in range(1, steps) if is_due(step, steps, previews)]
    assert len(due) == min(previews, steps - 1)
    gaps = np.diff([0, *due, steps])
    assert gaps.max() - gaps.min() <= 1


def test_batches() -> None:
    assert [batches_of(slots) for slots in (1, 2, 4, 6)] == [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 6)]


def test_settings() -> None:
    assert size_of("1024x768") == (1024, 768)
    for wrong in ({"slots": 0}, {"sizes": ("large",)}, {"text_tokens": 513}, {"sizes": ("8x8",) * 5, "pools": 4}):
        with pytest.raises(ConfigError):
            ImageEngineConfig(**wrong)
