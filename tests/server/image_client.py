"""An image engine in memory: a picture's pixels tell its request, its steps come when a test lets them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import numpy as np

from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest, Pixels
from slipstream.cluster.client import WorkerState

INFO = ImageEngineInfo(
    model="toy-images",
    family="flux",
    width=64,
    height=48,
    multiple=16,
    max_pixels=256 * 256,
    steps=4,
    max_steps=50,
    guidance=3.5,
    sampler="flow",
    samplers=("flow", "euler"),
    slots=4,
    weight_bytes=1 << 20,
    dtype="float32",
    platform="cpu",
    device="toy",
    num_devices=1,
    compile_seconds=0.0,
    num_shapes=1,
    true_guidance=True,
    negative=False,
)


def colour_of(request: ImageRequest) -> tuple[int, int, int]:
    """The colour of a request's picture: another one for another prompt or seed."""
    digest = hashlib.sha256(f"{request.prompt}/{request.negative_prompt}/{request.seed}/{request.steps}".encode())
    red, green, blue = digest.digest()[:3]
    return red, green, blue


def picture_of(request: ImageRequest) -> np.ndarray:
    """One colour; of an edit, only where the mask says so."""
    picture = np.empty((request.height, request.width, 3), np.uint8)
    picture[:] = colour_of(request)
    if request.image is None:
        return picture
    changed = np.full((request.height, request.width, 1), 255) if request.mask is None else request.mask.array
    return np.where(changed == 255, picture, request.image.array)


@dataclass
class ImageMemory:
    """`gate`: an event that must be set before each step. `broken`, `refuses`: prompts that the engine fails with."""

    info: ImageEngineInfo = INFO
    gate: asyncio.Event | None = None
    broken: str = "broken"
    refuses: str = "refused"
    start_error: Exception | None = None
    stats: ImageEngineStats = field(default_factory=ImageEngineStats)
    ready: bool = True
    failure: str | None = None
    restarts: int = 0
    requests: list[ImageRequest] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    most: int = 0
    closed: bool = False

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    @property
    def workers(self) -> list[WorkerState]:
        return []

    async def drain(self, index: int, timeout: float) -> int:
        raise AssertionError("there is no worker")

    async def reload(self, model: str | None, timeout: float, index: int | None = None) -> int:
        raise AssertionError("there is no worker")

    async def close(self) -> None:
        self.closed = True

    async def generate(self, request: ImageRequest) -> AsyncGenerator[ImageOutput, None]:
        self.requests.append(request)
        self.ends[request.id] = "running"
        self.most = max(self.most, list(self.ends.values()).count("running"))
        try:
            async for output in self._outputs(request):
                if output.finish_reason is not None:
                    self.ends[request.id] = "finished"
                yield output
        finally:
            if self.ends[request.id] == "running":
                self.ends[request.id] = "closed"

    async def _outputs(self, request: ImageRequest) -> AsyncGenerator[ImageOutput, None]:
        steps = request.steps or self.info.steps
        due = {steps * (i + 1) // (request.previews + 1) for i in range(request.previews)}
        for step in range(1, steps + 1):
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if request.prompt in (self.broken, self.refuses):
                refused = request.prompt == self.refuses
                why = "this cannot be drawn" if refused else "the engine is broken"
                yield ImageOutput(id=request.id, finish_reason="error", error=why, refused=refused)
                return
            preview = Pixels.of(picture_of(request)[::8, ::8]) if step in due else None
            queued = 0.25 if step == 1 else None
            yield ImageOutput(id=request.id, step=step, steps=steps, preview=preview, queue_seconds=queued)
        image = Pixels.of(picture_of(request))
        yield ImageOutput(id=request.id, step=steps, steps=steps, image=image, finish_reason="stop")
