"""A worker's image engine: a `PictureEngine` that takes and gives what crosses the worker's socket."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jax
import ml_dtypes
import numpy as np

from slipstream.api.image_engine import (
    ImageEngineInfo,
    ImageEngineStats,
    ImageOutput,
    ImageRequest,
    Pixels,
)
from slipstream.checkpoint.adapters import parse_all
from slipstream.checkpoint.image_opening import open_images
from slipstream.checkpoint.lora import parse
from slipstream.checkpoint.progress import Progress, silent
from slipstream.diffusion.config import ImageEngineConfig, size_of
from slipstream.diffusion.engine import Finished, PictureEngine, PoolOptions, Progressed
from slipstream.diffusion.loading import load_engine
from slipstream.diffusion.request import Limits, PictureRequest
from slipstream.diffusion.schedule import samplers
from slipstream.kernels.compiles import CompileCounter, use_compile_cache
from slipstream.kernels.native import library
from slipstream.models.image.registry import pipeline_of

DTYPES: Final = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def start(path: Path, config: ImageEngineConfig, report: Progress = silent) -> ImageEngine:
    """An engine that can take requests. `report` gets the stages "load" (weights) and "compile" (sizes of pictures).

    Raises UnsupportedModel, CheckpointError, ConfigError or OutOfMemory.
    """
    use_compile_cache(config.compile_cache)
    counter = CompileCounter()
    library.use_threads(None)  # before XLA starts its own
    platform = jax.default_backend()
    dtype = ("float32" if platform == "cpu" else "bfloat16") if config.dtype == "auto" else config.dtype
    checkpoint = open_images(
        path,
        variant=config.variant,
        file=None if config.file is None else Path(config.file),
        loras=[parse(one) for one in config.merge_lora],
    )
    engine = load_engine(
        checkpoint,
        dtype=DTYPES[dtype],
        text_tokens=config.text_tokens,
        tp=config.tp,
        quantization=config.quantization,
        options=PoolOptions(
            batches=batches_of(config.slots),
            pools=config.pools,
            sizes=config.max_compiled_sizes,
            first_block=config.cache_threshold if config.cache == "first-block" else None,
            tiling=config.vae_tiling,
        ),
        limits=Limits(pixels=config.max_pixels, steps=config.max_steps),
        adapters=parse_all(config.lora),
        progress=report,
    )
    return ready(engine, path.name, pipeline_of(checkpoint.pipeline).name, dtype, config.sizes, counter, report)


def ready(
    engine: PictureEngine,
    model: str,
    family: str,
    dtype: str,
    sizes: Sequence[str],
    compiles: CompileCounter,
    report: Progress = silent,
) -> ImageEngine:
    """The engine with `sizes` compiled (none: the model's own), as a worker takes it."""
    begun = time.monotonic()
    side = engine.family.traits.side
    pairs = [size_of(size) for size in sizes] or [(side, side)]
    report("compile", 0, len(pairs))
    for done, (width, height) in enumerate(pairs, 1):
        engine.warm_up(height, width)
        report("compile", done, len(pairs))
    seconds = time.monotonic() - begun
    compiles.mark_ready()
    info = _info(engine, model, family, dtype, seconds, len(pairs) * len(engine.options.batches))
    return ImageEngine(engine, info, compiles)


def batches_of(slots: int) -> tuple[int, ...]:
    """How many passes a step may compute: powers of two up to `slots`, and `slots`."""
    powers = [1 << i for i in range(slots.bit_length()) if 1 << i < slots]
    return (*powers, slots)


class ImageEngine:
    """Takes requests of the wire and gives its outputs. Not thread safe, as the engine inside is not."""

    def __init__(self, engine: PictureEngine, info: ImageEngineInfo, compiles: CompileCounter) -> None:
        self.info = info
        self._engine = engine
        self._compiles = compiles
        self._previews: dict[str, int] = {}
        self._taken: dict[str, float] = {}
        self._stepped = time.monotonic()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return self._engine.has_work

    def add(self, request: ImageRequest) -> None:
        """Take a request; its text is encoded here. Raises RequestError for one that the model cannot serve."""
        self._engine.add(picture_of(request))
        self._taken[request.id] = time.monotonic()
        if request.previews:
            self._previews[request.id] = request.previews

    def abort(self, request_id: str) -> bool:
        """Drop a request; its slots are free for the next step."""
        self._forget(request_id)
        return self._engine.abort(request_id)

    def step(self) -> list[ImageOutput]:
        """Run a denoising step of all pictures, and tell what came of the one before."""
        # What comes now was computed by a step that began with the last call.
        since, self._stepped = self._stepped, time.monotonic()
        outputs = []
        for output in self._engine.step():
            if isinstance(output, Progressed):
                outputs.append(self._progress(output, since))
            else:
                outputs.append(_last(output))
                self._forget(output.id)
        return outputs

    def stats(self) -> ImageEngineStats:
        """Gauges, counters, and the times of the steps since the last call."""
        counts = self._engine.counts()
        return ImageEngineStats(
            running=counts.running,
            waiting=counts.waiting,
            images=counts.finished,
            steps=counts.steps,
            scheduled_slots=counts.rows_scheduled,
            padded_slots=counts.rows_padded,
            text_queries=counts.text_hits + counts.text_misses,
            text_hits=counts.text_hits,
            compiles=self._compiles.total,
            compiles_after_ready=self._compiles.after_ready,
            step_seconds=counts.step_seconds,
        )

    def _progress(self, output: Progressed, since: float) -> ImageOutput:
        taken = self._taken.pop(output.id, None)
        wanted = self._previews.get(output.id, 0)
        preview = None
        if output.step < output.steps and is_due(output.step, output.steps, wanted):
            seen = self._engine.preview(output.id)
            preview = None if seen is None else pixels_of(seen)
        return ImageOutput(
            id=output.id,
            step=output.step,
            steps=output.steps,
            preview=preview,
            queue_seconds=None if taken is None else max(0.0, since - taken),
        )

    def _forget(self, request_id: str) -> None:
        self._previews.pop(request_id, None)
        self._taken.pop(request_id, None)


def picture_of(request: ImageRequest) -> PictureRequest:
    """A request of the wire as the engine takes it: pixels as numbers in 0..1."""
    edits = request.image is not None
    return PictureRequest(
        id=request.id,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance=request.guidance,
        true_guidance=request.true_guidance,
        seed=request.seed,
        sampler=request.sampler,
        picture=None if request.image is None else request.image.array.astype(np.float32) / 255,
        mask=None if request.mask is None else request.mask.array[..., 0].astype(np.float32) / 255,
        strength=request.strength if edits else None,
        loras={lora.name: lora.scale for lora in request.loras},
    )


def pixels_of(picture: np.ndarray) -> Pixels:
    """float32 [h, w, 3] in 0..1, rounded as diffusers rounds them."""
    return Pixels.of((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))


def is_due(step: int, steps: int, previews: int) -> bool:
    """Whether one of so many previews, spread evenly, belongs to this step."""
    return (step * (previews + 1)) // steps > ((step - 1) * (previews + 1)) // steps


def _last(output: Finished) -> ImageOutput:
    assert output.picture is not None
    return ImageOutput(
        id=output.id,
        step=output.passes,
        steps=output.passes,
        image=pixels_of(output.picture),
        finish_reason="stop",
    )


def _info(engine: PictureEngine, model: str, family: str, dtype: str, seconds: float, shapes: int) -> ImageEngineInfo:
    traits, limits = engine.family.traits, engine.limits
    device = jax.devices()[0]
    guidance = traits.guidance if traits.true_guidance is None else traits.true_guidance
    return ImageEngineInfo(
        model=model,
        family=family,
        width=traits.side,
        height=traits.side,
        multiple=traits.multiple,
        min_side=max(limits.least_side, traits.multiple),
        max_pixels=limits.pixels,
        steps=traits.steps,
        max_steps=limits.steps,
        guidance=0.0 if guidance is None else guidance,
        sampler=engine.schedule.sampler,
        samplers=samplers(engine.schedule),
        slots=engine.options.batches[-1],
        weight_bytes=engine.weight_bytes,
        dtype=dtype,
        platform=device.platform,
        device=device.device_kind,
        num_devices=engine.num_devices,
        compile_seconds=seconds,
        num_shapes=shapes,
        negative=traits.true_guidance is not None,
        true_guidance=traits.true_guidance is None,
        loras=engine.adapters,
    )
