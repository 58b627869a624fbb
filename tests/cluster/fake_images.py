"""A worker's image engine over the small family of tests/diffusion. A worker imports it by name."""

from __future__ import annotations

import os
import signal

from slipstream.api.image_engine import ImageOutput, ImageRequest
from slipstream.cluster.config import Report, WorkerConfig
from slipstream.diffusion.start import ImageEngine, ready
from slipstream.kernels.compiles import CompileCounter
from tests.diffusion import fakes

FACTORY = "tests.cluster.fake_images:build"
DIES_ONCE = "the first worker dies of this"


class Mortal(ImageEngine):
    """Kills the first worker after three steps of a certain prompt."""

    incarnation = 1
    steps_of_death = 0
    prompts: tuple[str, ...] = ()

    def add(self, request: ImageRequest) -> None:
        super().add(request)
        self.prompts += (request.prompt,)

    def step(self) -> list[ImageOutput]:
        self.steps_of_death += DIES_ONCE in self.prompts
        if self.steps_of_death > 3 and self.incarnation == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step()


def build(config: WorkerConfig, report: Report) -> ImageEngine:
    compiles = CompileCounter()
    plain = ready(fakes.engine(), "toy", "flux", "float32", (), compiles, report)
    engine = Mortal(plain._engine, plain.info, compiles)
    engine.incarnation = config.incarnation
    return engine
