"""The image engine's border: requests in, progress and pictures out. The same structs cross the worker's socket.

It is to images what `engine` is to tokens. Pictures travel as raw pixels: which file format a client gets is decided,
and paid for, where the client is.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np


class Pixels(msgspec.Struct, frozen=True, array_like=True):
    """A picture of 8 bits a channel: rows from the top, channels last. 3 channels are RGB, 1 is a mask."""

    width: int
    height: int
    channels: int
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray) -> Pixels:
        """The picture in a uint8 array [height, width, channels]."""
        assert array.dtype == np.uint8 and array.ndim == 3
        height, width, channels = array.shape
        return cls(width, height, channels, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        """A uint8 array [height, width, channels], read only. Raises ValueError where the bytes do not fill it."""
        return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, self.channels)


class LoraUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter by its name, and how much of it: 1 is as it was trained."""

    name: str
    scale: float = 1.0


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One picture to make. The same request gives the same picture, whatever else is in the batch.

    Parameters
    ----------
    id
        Names it in outputs and aborts.
    prompt, negative_prompt
        What should and what should not be seen. A negative prompt acts through `true_guidance` where the model has
        embedded guidance, else through `guidance`.
    width, height
        In pixels, multiples of `ImageEngineInfo.multiple`.
    steps
        Denoising steps from pure noise. Of an edit, `strength` of them are run. None, here and below: the model's own.
    guidance
        As the model takes it: the factor of classifier-free guidance, or the embedded one.
    true_guidance
        Classifier-free guidance beside embedded guidance: 1 is none, and costs nothing.
    sampler
        One of `ImageEngineInfo.samplers`; None: the checkpoint's own.
    seed
        Of the first noise, and of that which the sampler adds: 0 to 2^63 - 1.
    image, mask
        An edit: the picture to begin with, of the request's size, 3 channels; and what of it may change, 1 channel of
        the same size: 255 is painted anew, 0 stays.
    strength
        Of an edit: 1 begins from pure noise, near 0 hardly changes the picture.
    loras
        Adapters to use, of `ImageEngineInfo.loras`, each once.
    previews
        How many previews to send, spread evenly over the steps.
    arrival
        Seconds of the front's monotonic clock, for ordering.
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    steps: int | None = None
    guidance: float | None = None
    true_guidance: float | None = None
    sampler: str | None = None
    seed: int
    image: Pixels | None = None
    mask: Pixels | None = None
    strength: float = 1.0
    loras: tuple[LoraUse, ...] = ()
    previews: int = 0
    arrival: float = 0.0


class ImageOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did for one picture: `step` of its `steps` are done. The last output has `finish_reason`.

    `preview` is what the picture looks like so far, at any size; `image` is the picture, of the request's size.
    `queue_seconds` comes once, with the first output: from the engine's taking the request to its first step.
    `refused`: the error is the request's own fault.
    """

    id: str
    step: int = 0
    steps: int = 0
    preview: Pixels | None = None
    image: Pixels | None = None
    queue_seconds: float | None = None
    finish_reason: Literal["stop", "error"] | None = None
    error: str | None = None
    refused: bool = False


class ImageEngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready image engine is, and what may be asked of it.

    `width`, `height`, `steps`, `guidance`: what a request that says nothing gets. Sizes are multiples of `multiple`, at
    least `min_side` and at most `max_pixels` in all. `negative`: whether a negative prompt acts (through `guidance`);
    `true_guidance`: whether that field does, and a negative prompt through it. `edits`: whether it takes a picture;
    `masks`: and a mask. `slots`: pictures that share a step. `loras`: names of
    the adapters that a request may use. Bytes are those of one device.
    """

    model: str
    family: str
    width: int
    height: int
    multiple: int
    max_pixels: int
    steps: int
    max_steps: int
    guidance: float
    sampler: str
    samplers: tuple[str, ...]
    slots: int
    weight_bytes: int
    dtype: str
    platform: str
    device: str
    num_devices: int
    compile_seconds: float
    num_shapes: int
    min_side: int = 16
    negative: bool = True
    true_guidance: bool = False
    edits: bool = True
    masks: bool = True
    loras: tuple[str, ...] = ()


class ImageEngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges as of now and counters since the worker's start.

    `scheduled_slots` and `padded_slots` count the slots that steps computed for a picture, and for nothing.
    `text_queries` and `text_hits`: prompts that were looked up in the cache of text embeddings, and found there.
    `step_seconds`: the wall times of the denoising steps since the last report.
    """

    running: int = 0
    waiting: int = 0
    images: int = 0
    steps: int = 0
    scheduled_slots: int = 0
    padded_slots: int = 0
    text_queries: int = 0
    text_hits: int = 0
    compiles: int = 0
    compiles_after_ready: int = 0
    step_seconds: list[float] = []
