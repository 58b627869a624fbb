"""The metrics of an image model: vLLM's names where they fit, so that gateways and dashboards need nothing new,
vLLM-Omni's for what only images have, and our own beside. docs/image-api.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping

from slipstream.api.image_engine import ImageEngineStats
from slipstream.server.families import NAMES, Families
from slipstream.server.metrics import CHOICES, LATENCY, SUCCESS
from slipstream.telemetry.record import ImageRecord

_STEP = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_STEPS = (1, 2, 4, 8, 12, 16, 20, 25, 28, 30, 40, 50, 75, 100, 150)
_PIXELS = tuple(side * side for side in (64, 128, 256, 512, 768, 1024, 1280, 1536, 2048, 4096))

# name, help. Set from the engine's newest statistics.
_GAUGES = {
    "vllm:num_requests_running": "Sequences, or images, in the engine's steps.",
    "vllm:num_requests_waiting": "Sequences, or images, that wait for the engine.",
    "slipstream:ready": "1 while a worker can take requests.",
}

# name, help, and the field of ImageEngineStats that it follows (None: counted here).
_COUNTERS: Mapping[str, tuple[str, str | None]] = {
    "vllm_omni:image_count": ("Images made.", None),
    "slipstream:steps": ("Steps run.", "steps"),
    "slipstream:scheduled_slots": ("Slots that denoising steps computed for an image.", "scheduled_slots"),
    "slipstream:padding_slots": ("Slots that denoising steps computed for nothing.", "padded_slots"),
    "slipstream:text_cache_queries": ("Prompts looked up among the text embeddings that are kept.", "text_queries"),
    "slipstream:text_cache_hits": ("Prompts whose embeddings were kept.", "text_hits"),
    "slipstream:compiles": ("Compilations.", "compiles"),
    "slipstream:compiles_after_ready": ("Compilations that requests had to wait for.", "compiles_after_ready"),
    "slipstream:worker_restarts": ("Workers started again after they died.", None),
}

_HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "vllm:e2e_request_latency_seconds": ("From a request's arrival to its end.", LATENCY),
    "vllm:request_queue_time_seconds": ("From the engine's taking a sequence to its first step.", LATENCY),
    "vllm:request_params_n": ("A request's n.", CHOICES),
    "vllm_omni:num_inference_steps": ("Denoising steps that were asked for.", _STEPS),
    "vllm_omni:image_pixels": ("Pixels of an image.", _PIXELS),
    "slipstream:denoise_step_seconds": ("Wall time of a denoising step.", _STEP),
}


class ImageSeries:
    """The metrics of one image model."""

    def __init__(self, families: Families, model: str) -> None:
        labels = (model, "0")
        self._gauges = {name: families.gauge(name, text).labels(*labels) for name, text in _GAUGES.items()}
        self._counters = {name: families.counter(name, text).labels(*labels) for name, (text, _) in _COUNTERS.items()}
        self._histograms = {
            name: families.histogram(name, text, buckets).labels(*labels)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        success = families.counter(SUCCESS, "Sequences and images ended.", (*NAMES, "finished_reason"))
        self._success = {reason: success.labels(*labels, reason) for reason in ("stop", "abort", "error")}
        self._last = ImageEngineStats()
        self._restarts = 0

    def follow(self, stats: ImageEngineStats, *, ready: bool, restarts: int) -> None:
        """Take the engine's newest statistics. The same ones twice count once; they go on over a worker's death."""
        self._gauges["slipstream:ready"].set(ready)
        self._counters["slipstream:worker_restarts"].inc(max(0, restarts - self._restarts))
        self._restarts = max(restarts, self._restarts)
        if stats is self._last:
            return
        self._gauges["vllm:num_requests_running"].set(stats.running)
        self._gauges["vllm:num_requests_waiting"].set(stats.waiting)
        for name, (_, field) in _COUNTERS.items():
            if field is not None:
                self._counters[name].inc(max(0, getattr(stats, field) - getattr(self._last, field)))
        self._last = stats
        for seconds in stats.step_seconds:
            self._histograms["slipstream:denoise_step_seconds"].observe(seconds)

    def observe(self, record: ImageRecord) -> None:
        """Take a request that has ended."""
        for reason, queued in zip(record.finish_reasons, record.queue_seconds, strict=True):
            self._success[reason].inc()
            self._histograms["vllm:e2e_request_latency_seconds"].observe(record.seconds)
            self._histograms["vllm_omni:num_inference_steps"].observe(record.steps)
            if queued is not None:
                self._histograms["vllm:request_queue_time_seconds"].observe(queued)
            if reason == "stop":
                self._counters["vllm_omni:image_count"].inc()
                self._histograms["vllm_omni:image_pixels"].observe(record.width * record.height)
        self._histograms["vllm:request_params_n"].observe(record.n)
