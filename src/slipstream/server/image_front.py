"""What the endpoints of images work with: the image engine's client, who is let in, the files that URLs name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from slipstream.api.images import ImageModelLimits
from slipstream.cluster.client import ImageClient
from slipstream.server.admission import Admission
from slipstream.server.config import ServerConfig
from slipstream.server.families import Families
from slipstream.server.image_files import ImageFiles
from slipstream.server.image_metrics import ImageSeries
from slipstream.telemetry.record import ImageRecord

log = logging.getLogger("slipstream.server")
Result = TypeVar("Result")


@dataclass
class ImageFront:
    """The image side of the server's state. `model` and `series` are known once the engine is ready.

    Pictures are decoded and encoded in `pool`, in this process: the worker's one thread feeds the device and must not
    wait for a PNG, and only here is it known which format a client wants. Two at a time bound the memory they take.
    """

    client: ImageClient
    config: ServerConfig
    admission: Admission
    files: ImageFiles
    model: str = ""
    series: ImageSeries | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="images"))

    def open(self, families: Families) -> None:
        """Take requests: the engine is ready."""
        self.model = self.config.served_image_model_name or self.client.info.model
        self.series = ImageSeries(families, self.model)

    def follow(self, *, ready: bool) -> None:
        """Take the engine's newest statistics into the metrics."""
        if self.series is not None:
            self.series.follow(self.client.stats, ready=ready, restarts=self.client.restarts)

    def close(self) -> None:
        """Stop the threads and remove the files."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.files.close()

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, computed beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    @property
    def limits(self) -> ImageModelLimits:
        """What may be asked of the model."""
        info = self.client.info
        return ImageModelLimits(
            size=f"{info.width}x{info.height}",
            multiple=info.multiple,
            min_side=info.min_side,
            max_pixels=info.max_pixels,
            steps=info.steps,
            max_steps=info.max_steps,
            guidance=info.guidance,
            sampler=info.sampler,
            samplers=info.samplers,
            negative_prompt=info.negative,
            true_cfg_scale=info.true_guidance,
            edits=info.edits,
            masks=info.masks,
            loras=info.loras,
        )

    def report(self, record: ImageRecord) -> None:
        """Tell the log and the metrics of a request that has ended. Prompts are not told."""
        if self.series is not None:
            self.series.observe(record)
        log.info(
            "images",
            extra={
                "operation": record.operation,
                "response_id": record.response_id,
                "images": record.n,
                "size": f"{record.width}x{record.height}",
                "steps": record.steps,
                "e2e_ms": round(record.seconds * 1e3, 1),
                "finish_reasons": ",".join(record.finish_reasons) or None,
                "error": record.error,
            },
        )
