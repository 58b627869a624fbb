"""Prometheus metrics: vLLM's names, labels and buckets, so that its dashboards and gateways work, and our own beside.

Latencies count from the arrival of a request's first byte at the server, not from when the engine took it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from slipstream.api.engine import EngineInfo, EngineStats, TransferFailure, TransferStats
from slipstream.server.families import NAMES, Families
from slipstream.telemetry.record import GenerationRecord

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
_STEP = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES = (1, 2, 5, 10, 20)

SUCCESS = "vllm:request_success"

# name, help. Set from the engine's newest statistics.
_GAUGES = {
    "vllm:num_requests_running": "Sequences, or images, in the engine's steps.",
    "vllm:num_requests_waiting": "Sequences, or images, that wait for the engine.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache in use by live sequences, 0 to 1.",
    "slipstream:ready": "1 while a worker can take requests.",
}

# name, help, and the field of EngineStats that it follows (None: counted here).
_COUNTERS = {
    "vllm:prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", "prefix_queries"),
    "vllm:prefix_cache_hits": ("Prompt tokens found in the prefix cache.", "prefix_hits"),
    "vllm:num_preemptions": ("Sequences that lost their pages to others and are computed again.", "preemptions"),
    "vllm:prompt_tokens": ("Prompt tokens of the sequences that have begun to answer.", None),
    "vllm:generation_tokens": ("Tokens generated.", None),
    "slipstream:steps": ("Steps run.", "steps"),
    "slipstream:scheduled_tokens": ("Token rows that steps computed for a sequence.", "scheduled_tokens"),
    "slipstream:padding_tokens": ("Token rows that steps computed for nothing.", "padded_tokens"),
    "slipstream:compiles": ("Compilations.", "compiles"),
    "slipstream:compiles_after_ready": ("Compilations that requests had to wait for.", "compiles_after_ready"),
    "slipstream:worker_restarts": ("Workers started again after they died.", None),
}

# name, help, and the field of TransferStats that it follows.
_TRANSFERS = {
    "slipstream:kv_transfer_offers": ("Prompts whose KV pages were offered to another worker.", "offers"),
    "slipstream:kv_transfer_fetches": ("Prompts whose KV pages were fetched from another worker.", "fetches"),
    "slipstream:kv_transfer_pages_sent": ("KV pages sent to other workers.", "pages_sent"),
    "slipstream:kv_transfer_pages_received": ("KV pages received from other workers.", "pages_received"),
    "slipstream:kv_transfer_bytes_sent": ("Bytes of KV pages sent to other workers.", "bytes_sent"),
    "slipstream:kv_transfer_bytes_received": ("Bytes of KV pages received from other workers.", "bytes_received"),
    "slipstream:kv_transfer_seconds": ("Time that fetches of KV pages took, summed.", "seconds"),
}
TRANSFER_FAILURES = "slipstream:kv_transfer_failures"


class Metrics:
    """All metrics of one server, in a registry of their own: empty until the engines are known.

    `families` is for the series of other models: an image model has its own (`image_metrics`).
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.families = Families(self.registry)
        self._series: _Series | None = None

    def describe(self, info: EngineInfo, model: str) -> None:
        """Make the series: their labels and buckets depend on the model."""
        self._series = _Series(self.families, info, model)

    def follow(self, stats: EngineStats, *, ready: bool, restarts: int) -> None:
        """Take the engine's newest statistics. The same ones twice count once, and counters survive a worker."""
        if self._series is not None:
            self._series.follow(stats, ready=ready, restarts=restarts)

    def tokens(self, count: int, *, prompt_tokens: int, since_arrival: float, since_last: float | None) -> None:
        """Take `count` tokens that a sequence has gained; `since_last` is None for its first ones."""
        if self._series is not None:
            self._series.tokens(count, prompt_tokens, since_arrival, since_last)

    def pooled(self, prompt_tokens: int) -> None:
        """Take a text of which a vector was made."""
        if self._series is not None:
            self._series.pooled(prompt_tokens)

    def observe(self, record: GenerationRecord) -> None:
        """Take a request that has ended."""
        if self._series is not None:
            self._series.observe(record)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Series:
    """The metrics of one model."""

    def __init__(self, families: Families, info: EngineInfo, model: str) -> None:
        labels = (model, "0")
        self._gauges = {name: families.gauge(name, text).labels(*labels) for name, text in _GAUGES.items()}
        self._counters = {name: families.counter(name, text).labels(*labels) for name, (text, _) in _COUNTERS.items()}
        self._histograms = {
            name: families.histogram(name, text, buckets).labels(*labels)
            for name, (text, buckets) in _histograms(info.max_model_len).items()
        }
        success = families.counter(SUCCESS, "Sequences and images ended.", (*NAMES, "finished_reason"))
        self._success = {reason: success.labels(*labels, reason) for reason in ("stop", "length", "abort", "error")}
        self._transfers = {name: families.counter(name, text).labels(*labels) for name, (text, _) in _TRANSFERS.items()}
        failures = families.counter(
            TRANSFER_FAILURES, "Tickets whose KV pages were computed again.", (*NAMES, "reason")
        )
        self._failures = {reason: failures.labels(*labels, reason) for reason in get_args(TransferFailure)}
        facts = {
            "block_size": info.page_size,
            "cache_dtype": info.kv_dtype,
            "num_gpu_blocks": info.num_pages,
            "kv_bytes": info.kv_bytes,
            "enable_prefix_caching": info.prefix_caching,
            "gpu_memory_utilization": info.memory_fraction,
            "engine": 0,
        }
        cache = families.gauge("vllm:cache_config_info", "The KV cache's settings.", tuple(facts))
        cache.labels(*(str(value) for value in facts.values())).set(1)
        self._seen: EngineStats | None = None
        self._last = EngineStats()
        self._restarts = 0

    def follow(self, stats: EngineStats, *, ready: bool, restarts: int) -> None:
        self._gauges["slipstream:ready"].set(ready)
        self._counters["slipstream:worker_restarts"].inc(max(0, restarts - self._restarts))
        self._restarts = max(restarts, self._restarts)
        if stats is self._seen:
            return
        self._seen = stats
        self._gauges["vllm:num_requests_running"].set(stats.running)
        self._gauges["vllm:num_requests_waiting"].set(stats.waiting)
        self._gauges["vllm:kv_cache_usage_perc"].set(stats.kv_usage)
        # A new worker starts from zero; one counter below its old value shows it.
        followed = [(name, field) for name, (_, field) in _COUNTERS.items() if field is not None]
        restarted = any(getattr(stats, field) < getattr(self._last, field) for _, field in followed)
        for name, field in followed:
            counted = 0 if restarted else getattr(self._last, field)
            self._counters[name].inc(getattr(stats, field) - counted)
        moved, before = stats.transfer, TransferStats() if restarted else self._last.transfer
        for name, (_, field) in _TRANSFERS.items():
            self._transfers[name].inc(max(0, getattr(moved, field) - getattr(before, field)))
        for reason, count in moved.failures.items():
            self._failures[reason].inc(max(0, count - before.failures.get(reason, 0)))
        self._last = stats
        for seconds in stats.step_seconds:
            self._histograms["slipstream:step_seconds"].observe(seconds)
        for count in stats.step_tokens:
            self._histograms["vllm:iteration_tokens_total"].observe(count)

    def tokens(self, count: int, prompt_tokens: int, since_arrival: float, since_last: float | None) -> None:
        self._counters["vllm:generation_tokens"].inc(count)
        if since_last is None:
            self._counters["vllm:prompt_tokens"].inc(prompt_tokens)
            self._histograms["vllm:time_to_first_token_seconds"].observe(since_arrival)
            return
        for _ in range(count):
            self._histograms["vllm:inter_token_latency_seconds"].observe(since_last / count)

    def pooled(self, prompt_tokens: int) -> None:
        self._counters["vllm:prompt_tokens"].inc(prompt_tokens)

    def observe(self, record: GenerationRecord) -> None:
        for i, reason in enumerate(record.finish_reasons):
            self._success[reason].inc()
            tokens, decode = record.output_tokens[i], record.decode_seconds[i]
            self._histograms["vllm:e2e_request_latency_seconds"].observe(record.seconds)
            self._histograms["vllm:request_prompt_tokens"].observe(record.prompt_tokens[i // record.n])
            self._histograms["vllm:request_generation_tokens"].observe(tokens)
            if decode is not None:
                self._histograms["vllm:request_decode_time_seconds"].observe(decode)
                self._phases(record.queue_seconds[i], record.prefill_seconds[i], decode)
            if decode is not None and tokens > 1:
                self._histograms["vllm:request_time_per_output_token_seconds"].observe(decode / (tokens - 1))
        if record.finish_reasons:
            self._histograms["vllm:request_params_n"].observe(record.n)
            if record.max_tokens is not None:
                self._histograms["vllm:request_params_max_tokens"].observe(record.max_tokens)

    def _phases(self, queue: float | None, prefill: float | None, decode: float) -> None:
        """Take a sequence's times before its first step, from there to its first token, and from there to its last."""
        if queue is not None and prefill is not None:
            self._histograms["vllm:request_queue_time_seconds"].observe(queue)
            self._histograms["vllm:request_prefill_time_seconds"].observe(prefill)
            self._histograms["vllm:request_inference_time_seconds"].observe(prefill + decode)


def one_two_five(limit: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `limit`: vLLM's buckets for lengths."""
    return tuple(m * 10**e for e in range(len(str(limit))) for m in (1, 2, 5) if m * 10**e <= limit)


def _histograms(max_model_len: int) -> Mapping[str, tuple[str, tuple[float, ...]]]:
    lengths = one_two_five(max_model_len)
    return {
        "vllm:time_to_first_token_seconds": ("From a request's arrival to a sequence's first token.", _TTFT),
        "vllm:inter_token_latency_seconds": ("Between a sequence's tokens.", _PER_TOKEN),
        "vllm:request_time_per_output_token_seconds": ("A sequence's mean time per token after the first.", _PER_TOKEN),
        "vllm:e2e_request_latency_seconds": ("From a request's arrival to its end.", LATENCY),
        "vllm:request_queue_time_seconds": ("From the engine's taking a sequence to its first step.", LATENCY),
        "vllm:request_prefill_time_seconds": ("From a sequence's first step to its first token.", LATENCY),
        "vllm:request_inference_time_seconds": ("From a sequence's first step to its last token.", LATENCY),
        "vllm:request_decode_time_seconds": ("From a sequence's first token to its last.", LATENCY),
        "vllm:request_prompt_tokens": ("Tokens of a prompt.", lengths),
        "vllm:request_generation_tokens": ("Tokens of a reply.", lengths),
        "vllm:request_params_n": ("A request's n.", CHOICES),
        "vllm:request_params_max_tokens": ("A request's max_tokens.", lengths),
        "vllm:iteration_tokens_total": ("Tokens of a step.", _STEP_TOKENS),
        "slipstream:step_seconds": ("Wall time of a step.", _STEP),
    }
