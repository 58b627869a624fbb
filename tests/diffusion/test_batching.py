"""Pictures share steps: each as it is alone, none compiled for, rows free at once when one is cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.diffusion.engine import PictureEngine, Progressed
from slipstream.diffusion.pipeline import Text
from slipstream.diffusion.request import PictureRequest
from slipstream.diffusion.reuse import Reuse
from slipstream.diffusion.slots import unit_noise, words
from slipstream.errors import RequestError, UnsupportedModel
from slipstream.kernels.compiles import CompileCounter
from tests.diffusion.fakes import EMBEDDED, TRUE, engine, finished, request, run, tokenize

MIXED = (
    {"prompt": "a dog", "seed": 2, "steps": 4, "guidance": 7.0},
    {"prompt": "red apple", "negative_prompt": "green", "seed": 3, "steps": 9, "sampler": "dpmpp_2m_karras"},
    {"prompt": "", "seed": 2**63 + 5, "steps": 6, "sampler": "euler_ancestral", "guidance": 1.0},
    {"prompt": "a house", "seed": 3, "steps": 5, "sampler": "lcm", "guidance": 1.5},
    {"prompt": "a cat", "seed": 9, "steps": 7, "sampler": "ddim", "reuse": Reuse(every=3)},
    {"prompt": "smiling face", "seed": 1, "steps": 3, "sampler": "dpmpp_2m_sde"},
)
"""Requests of a model with true guidance that differ in everything."""


@pytest.fixture
def compiles() -> Iterator[CompileCounter]:
    counter = CompileCounter()
    yield counter
    counter.close()


def alone(fields: dict[str, Any], **options: Any) -> np.ndarray:
    """The latents of a request that has an engine for itself."""
    return run(engine(TRUE, **options), [request("one", **fields)])["one"].latents


def expected(engine: PictureEngine, request: PictureRequest) -> np.ndarray:
    """The latents [h, w, c] of a request from an engine's model, a picture and a pass at a time, as in a book."""
    job, family = engine.check(request), engine.family
    shape = (job.height // family.traits.factor, job.width // family.traits.factor, family.traits.channels)
    weights = engine._weights
    noise = np.asarray(unit_noise(words(job.seed), np.uint32(0), shape))
    x = noise * np.float32(job.schedule.pure)
    before = np.zeros_like(x)
    assert job.pure
    sizes = jnp.asarray(family.sizes(job.height, job.width))[None]

    def passed(x: np.ndarray, text: Text, time: float) -> np.ndarray:
        extra = jnp.zeros((1, *shape[:2], family.traits.extra))
        given = jnp.asarray(x)[None], extra, text, sizes, jnp.asarray([time]), jnp.asarray([job.embedded])
        return np.asarray(family.predict(weights.denoiser, *given, "reference"))[0]

    text = family.read(weights.encoders, tokenize(request.prompt), "reference")
    other = text if job.negative is None else family.read(weights.encoders, tokenize(job.negative), "reference")
    if job.negative is None:
        other = Text(*map(jnp.zeros_like, text))
    for row in job.schedule.rows:
        seen = passed(row.in_scale * x, text, row.time)
        if job.guidance > 1:
            without = passed(row.in_scale * x, other, row.time)
            seen = without + job.guidance * (seen - without)
        denoised = row.keep * x + row.gain * seen
        x, before = row.a * x + row.b * denoised + row.c * before, denoised
        assert row.fresh == 0
    return x


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"negative_prompt": "blue", "sampler": "dpmpp_2m", "steps": 8},
        {"guidance": 1.0, "sampler": "ddim"},
    ],
)
def test_the_steps_are_those_of_the_table(fields: dict[str, Any]) -> None:
    one = engine(TRUE)
    wanted = request("one", **fields)
    found = run(one, [wanted])["one"]
    reference = expected(one, wanted)
    assert np.abs(found.latents - reference).max() < 1e-5 * np.abs(reference).max()


def test_embedded_and_true_guidance() -> None:
    one = engine(EMBEDDED)
    for fields in ({"guidance": 2.0}, {"true_guidance": 3.0, "negative_prompt": "blue"}, {"true_guidance": 3.0}):
        wanted = request("one", **fields)
        reference = (
            expected(one, replace(wanted, negative_prompt=wanted.negative_prompt or ""))
            if "true_guidance" in fields
            else expected(one, wanted)
        )
        assert np.abs(run(one, [wanted])["one"].latents - reference).max() < 1e-5 * np.abs(reference).max()


def test_a_picture_is_the_same_in_any_company() -> None:
    """Bit by bit, where a step has one size; whoever comes before, beside and after it."""
    together = run(engine(TRUE, batches=(12,)), [request(str(i), **fields) for i, fields in enumerate(MIXED)])
    for i, fields in enumerate(MIXED):
        np.testing.assert_array_equal(together[str(i)].latents, alone(fields, batches=(12,)))


def test_sizes_of_steps_change_roundings_at_most() -> None:
    """Within 1e-6 of the largest number, where a step's size follows the number of its rows."""
    sizes = {"batches": (1, 2, 5)}
    together = run(engine(TRUE, **sizes), [request(str(i), **fields) for i, fields in enumerate(MIXED)])
    for i, fields in enumerate(MIXED):
        expected = alone(fields, **sizes)
        assert np.abs(together[str(i)].latents - expected).max() <= 1e-6 * np.abs(expected).max()


def test_nothing_is_compiled_for_a_request(compiles: CompileCounter) -> None:
    """New prompts, samplers, guidances, numbers of steps, seeds, given noise, pictures: all are arrays."""
    one = engine(TRUE, batches=(1, 2, 4))
    one.warm_up(16, 16)
    grey = np.full((16, 16, 3), 0.5, np.float32)
    run(one, [request("first", picture=grey, mask=np.ones((16, 16), np.float32))])  # the autoencoder's other half
    compiles.mark_ready()
    for i, fields in enumerate(MIXED):
        one.add(request(str(i), **fields))
        finished(one.step())
    noise = np.random.default_rng(0).standard_normal((2, 8, 8), np.float32)
    mask = np.zeros((16, 16), np.float32)
    mask[4:9] = 1
    others = [
        request("given", "another", latents=noise),
        request("changed", "yet another", picture=grey * 0.3, strength=0.5),
        request("painted", "a third", picture=grey, mask=mask, reuse=Reuse()),
    ]
    found = run(one, others)
    assert {"given", "changed", "painted"} <= found.keys()
    assert compiles.total > 0
    assert compiles.after_ready == 0


def test_pictures_join_and_leave_between_steps() -> None:
    one = engine(EMBEDDED, batches=(2,))
    one.add(request("long", steps=6))
    one.step()
    one.step()
    one.add(request("short", steps=2))
    one.add(request("late", steps=1))  # no row is free until `short` has left
    assert one.counts().waiting == 2
    order = []
    while one.has_work:
        order += [(out.id, out.step) for out in one.step() if isinstance(out, Progressed)]
    assert order == [
        ("long", 2), ("long", 3), ("short", 1), ("long", 4), ("short", 2), ("long", 5), ("late", 1), ("long", 6)
    ]  # fmt: skip


def test_cancel_frees_rows_for_the_next_step() -> None:
    one = engine(TRUE, batches=(2,))
    one.add(request("held", steps=50))
    one.add(request("next", steps=1))
    for _ in range(3):
        one.step()
    assert (one.counts().running, one.counts().waiting) == (1, 1)
    assert one.abort("held")
    assert not one.abort("held")
    assert "next" in finished(one.step()) | finished(one.step())
    assert not one.has_work
    counts = one.counts()
    assert (counts.running, counts.waiting, counts.finished) == (0, 0, 1)


def test_cancelling_one_changes_no_other() -> None:
    one = engine(TRUE, batches=(8,))
    for i, fields in enumerate(MIXED[:3]):
        one.add(request(str(i), **fields))
    one.step()
    one.abort("1")
    found = run(one)
    assert found.keys() == {"0", "2"}
    for i in (0, 2):
        np.testing.assert_array_equal(found[str(i)].latents, alone(MIXED[i], batches=(8,)))


def test_a_queued_picture_is_cancelled_too() -> None:
    one = engine(EMBEDDED, batches=(1,))
    one.add(request("held"))
    one.add(request("queued"))
    assert one.abort("queued")
    assert run(one).keys() == {"held"}


def test_sizes_run_side_by_side() -> None:
    one = engine(EMBEDDED)
    found = run(one, [request("wide", height=8, width=12), request("square")])
    assert [found[id].latents.shape for id in ("wide", "square")] == [(4, 6, 2), (8, 8, 2)]
    assert one.counts().pools == 2


def test_idle_pools_make_room() -> None:
    one = engine(EMBEDDED, pools=2)
    for i, side in enumerate((8, 12, 16, 8)):
        one.add(request(str(i), height=side, width=side))
        assert one.abort(str(i))
    assert one.counts().pools == 2


def test_sizes_that_are_long_not_asked_for_are_forgotten() -> None:
    """Compiled functions of at most so many sizes are kept; those of the others leave jit's cache."""
    client = jax.devices()[0].client
    one = engine(EMBEDDED, shared=False, pools=2, sizes=2, batches=(1, 2))
    one.warm_up(8, 8)
    one.preview("nobody")

    def made(side: int) -> int:
        counter = CompileCounter()
        run(one, [request("one", height=side, width=side, steps=2, picture=np.zeros((side, side, 3), np.float32))])
        counter.close()
        return counter.total

    first = [made(8), made(12)]
    kept = len(client.live_executables())
    assert all(count > 0 for count in first) and made(8) == made(12) == 0
    for side in (16, 20, 24):
        assert made(side) > 0
        assert one.counts().sizes == one.counts().pools == 2
        assert len(client.live_executables()) <= kept
    assert made(20) == made(24) == 0
    assert made(8) > 0


def test_a_size_with_work_is_kept() -> None:
    one = engine(EMBEDDED, shared=False, sizes=1)
    one.add(request("small", height=8, width=8, steps=6))
    one.step()
    one.add(request("large", height=16, width=16, steps=2))
    assert one.counts().sizes == 2
    assert run(one).keys() == {"small", "large"}
    assert one.counts().sizes == 1


def test_noise_is_of_the_seed_and_the_step() -> None:
    drawn = [np.asarray(unit_noise(words(seed), np.uint32(step), (8, 8, 2))) for seed in range(60) for step in (0, 1)]
    drawn.append(np.asarray(unit_noise(words(2**32), np.uint32(0), (8, 8, 2))))
    flat = np.stack(drawn).reshape(len(drawn), -1)
    assert abs(flat.mean()) < 0.03
    assert abs(flat.std() - 1) < 0.03
    alike = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(alike).max() < 0.45  # of 128 numbers each


def test_first_block_caching() -> None:
    """Rows decide each for itself; one that may not reuse is as without caching, beside others that do."""
    limits = (None, 0.0, 0.6)
    asked = [request(str(i), seed=i, steps=12, first_block=limit) for i, limit in enumerate(limits)]
    plain = run(engine(EMBEDDED, batches=(4,)), [replace(one, first_block=None) for one in asked])
    cached = engine(EMBEDDED, batches=(4,), first_block=0.3)
    found = run(cached, asked)
    assert [found[str(i)].passes for i in (0, 1, 2)] == [found["0"].passes, 12, found["2"].passes]
    assert 2 <= found["2"].passes < found["0"].passes < 12
    np.testing.assert_allclose(found["1"].latents, plain["1"].latents, atol=1e-5)
    errors = [np.abs(found[id].latents - plain[id].latents).max() for id in ("0", "2")]
    assert errors[0] > 1e-4 and errors[1] < np.abs(plain["2"].latents).max()
    counts = cached.counts()
    assert counts.rows_reused == 36 - sum(one.passes for one in found.values()) and counts.steps_short == 0
    again = run(cached, [asked[2]])["2"]
    assert again.passes == found["2"].passes and cached.counts().steps_short == 12 - again.passes
    np.testing.assert_allclose(again.latents, found["2"].latents, atol=1e-5)


def test_first_block_caching_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="UNet"):
        engine(TRUE, first_block=0.1)
    with pytest.raises(RequestError, match="not turned on"):
        engine(EMBEDDED).check(request("one", first_block=0.1))
    with pytest.raises(RequestError, match="from 0 to 1"):
        engine(EMBEDDED, first_block=0.1).check(request("one", first_block=2.0))
