"""Pictures through worker processes: in order, the same after a worker's death, freed when nobody waits."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from slipstream.api.image_engine import ImageOutput, ImageRequest, Pixels
from slipstream.cluster.cargo import IMAGES
from slipstream.cluster.config import RestartPolicy
from slipstream.cluster.image_stream import ImageStream
from slipstream.cluster.worker_client import WorkerClient
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.diffusion.start import picture_of
from slipstream.errors import RequestFailed
from tests.diffusion import fakes

from .conftest import until
from .fake_images import DIES_ONCE, FACTORY


def wanted(id: str, **fields: Any) -> ImageRequest:
    return ImageRequest(id=id, **({"prompt": "a cat", "width": 16, "height": 16, "seed": 1} | fields))


def alone(request: ImageRequest) -> np.ndarray:
    picture = fakes.run(fakes.engine(), [picture_of(request)])[request.id].picture
    assert picture is not None
    return (picture * 255).round().astype(np.uint8)


async def outputs_of(client: Any, request: ImageRequest) -> list[ImageOutput]:
    return [output async for output in client.generate(request)]


async def test_pictures_a_death_and_a_cancel() -> None:
    policy = RestartPolicy(delays=(0.0,))
    client = WorkerClient(IMAGES, "", ImageEngineConfig(), policy=policy, engine_factory=FACTORY)
    try:
        await client.start()
        assert (client.info.model, client.info.width) == ("toy", 16)
        requests = [wanted(str(i), seed=i, steps=6 + i, previews=1) for i in range(3)]
        for request, outputs in zip(
            requests, await asyncio.gather(*(outputs_of(client, one) for one in requests)), strict=True
        ):
            steps = [output.step for output in outputs]
            assert steps == sorted(steps) and {output.id for output in outputs} == {request.id}
            assert outputs[-1].finish_reason == "stop" and outputs[-1].image is not None
            np.testing.assert_array_equal(outputs[-1].image.array, alone(request))
        assert client.stats.images == 3

        [refused] = await outputs_of(client, wanted("r", sampler="magic"))
        assert refused.refused and refused.error is not None and "magic" in refused.error

        endless = client.generate(wanted("e", steps=400))
        await anext(endless)
        await endless.aclose()
        await until(lambda: client.stats.running == 0 and client.stats.waiting == 0)

        request = wanted("d", prompt=DIES_ONCE, steps=12)
        outputs = await outputs_of(client, request)
        steps = [output.step for output in outputs]
        assert steps == sorted(steps) and outputs[-1].image is not None
        np.testing.assert_array_equal(outputs[-1].image.array, alone(request))
        assert client.restarts == 1 and client.replayed == 1
        assert client.stats.images == 4, "the first worker's count goes on"
    finally:
        await client.close()
    with pytest.raises(RequestFailed):
        await outputs_of(client, wanted("late"))


async def test_a_slow_reader_gets_every_preview_before_the_picture() -> None:
    stream = ImageStream(wanted("x"))
    stream.submit("0:x")
    pixels = [Pixels.of(np.full((1, 1, 3), i, np.uint8)) for i in range(4)]
    for step in (1, 2, 3):
        stream.push(ImageOutput(id="0:x", step=step, steps=4, preview=pixels[step]))
    stream.push(ImageOutput(id="0:x", step=4, steps=4))
    stream.push(ImageOutput(id="0:x", step=4, steps=4, image=pixels[0], finish_reason="stop"))
    taken = [await stream.take() for _ in range(4)]
    assert [one.preview for one in taken] == [*pixels[1:], None]
    assert [one.image for one in taken] == [None, None, None, pixels[0]]


async def test_a_slow_reader_gets_the_newest() -> None:
    stream = ImageStream(wanted("x"))
    pixels = [Pixels.of(np.full((1, 1, 3), i, np.uint8)) for i in range(3)]
    stream.submit("0:x")
    assert not stream.advanced
    stream.push(ImageOutput(id="0:x", step=1, steps=9, preview=pixels[0], queue_seconds=0.5))
    stream.push(ImageOutput(id="0:x", step=2, steps=9))
    first = await stream.take()
    assert (first.id, first.step, first.steps, first.preview, first.queue_seconds) == ("x", 2, 9, pixels[0], 0.5)
    stream.orphan()
    assert stream.fruitless == 0
    stream.submit("1:x")
    stream.push(ImageOutput(id="0:x", step=1, steps=9, preview=pixels[1], queue_seconds=0.1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.take(), 0.01)
    stream.push(ImageOutput(id="0:x", step=3, steps=9, preview=pixels[1]))
    stream.push(ImageOutput(id="0:x", step=9, steps=9, image=pixels[2], finish_reason="stop"))
    told, last = await stream.take(), await stream.take()
    assert (told.step, told.preview, told.finish_reason) == (9, pixels[1], None)
    assert (last.step, last.preview, last.image, last.queue_seconds) == (9, None, pixels[2], None)
    assert stream.finished and last.finish_reason == "stop"
    other = ImageStream(wanted("y"))
    other.orphan()
    assert other.fruitless == 1
    other.fail(RequestFailed("no worker"))
    with pytest.raises(RequestFailed):
        await other.take()
