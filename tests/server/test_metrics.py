"""/metrics as Prometheus reads it: names, labels, buckets, and counts that are right."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from slipstream.api.engine import EngineStats, TransferStats
from slipstream.server.metrics import Metrics, one_two_five

from .conftest import Live, Start
from .memory_client import INFO
from .toys import ids

ASK = [{"role": "user", "content": "hi"}]
LABELS = {"model_name": "toy", "engine": "0"}

NAMES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:num_preemptions": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_params_n": "histogram",
    "vllm:request_params_max_tokens": "histogram",
    "vllm:iteration_tokens_total": "histogram",
    "vllm:cache_config_info": "gauge",
    "slipstream:ready": "gauge",
    "slipstream:steps": "counter",
    "slipstream:scheduled_tokens": "counter",
    "slipstream:padding_tokens": "counter",
    "slipstream:compiles": "counter",
    "slipstream:compiles_after_ready": "counter",
    "slipstream:worker_restarts": "counter",
    "slipstream:kv_transfer_offers": "counter",
    "slipstream:kv_transfer_fetches": "counter",
    "slipstream:kv_transfer_pages_sent": "counter",
    "slipstream:kv_transfer_pages_received": "counter",
    "slipstream:kv_transfer_bytes_sent": "counter",
    "slipstream:kv_transfer_bytes_received": "counter",
    "slipstream:kv_transfer_seconds": "counter",
    "slipstream:kv_transfer_failures": "counter",
    "slipstream:step_seconds": "histogram",
}


def families(text: str) -> dict[str, str]:
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def value(text: str, name: str, **labels: str) -> float:
    """The one sample of that name whose labels include these."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_names_and_types(start: Start) -> None:
    live = start()
    reply = live.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert families(reply.text) == NAMES
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            assert sample.labels["engine"] == "0"
            assert family.name == "vllm:cache_config_info" or sample.labels["model_name"] == "toy"


def test_no_metrics_before_the_engine_is_known() -> None:
    assert Metrics().text() == b""


def test_a_request_is_counted(start: Start) -> None:
    live = start("abcd", delay=0.01)
    live.openai().chat.completions.create(model="toy", messages=ASK, n=2, max_tokens=20)
    live.until(lambda: live.front.admission.in_flight == 0)
    text = live.get("/metrics").text
    prompt = len(ids("[user:hi][assistant:"))
    expected = {
        "vllm:generation_tokens_total": 10,
        "vllm:prompt_tokens_total": 2 * prompt,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:inter_token_latency_seconds_count": 8,
        "vllm:request_time_per_output_token_seconds_count": 2,
        "vllm:e2e_request_latency_seconds_count": 2,
        "vllm:request_prompt_tokens_sum": 2 * prompt,
        "vllm:request_generation_tokens_sum": 10,
        "vllm:request_params_n_sum": 2,
        "vllm:request_params_n_count": 1,
        "vllm:request_params_max_tokens_sum": 20,
        "vllm:request_queue_time_seconds_sum": 2 * 0.25,
        "vllm:request_prefill_time_seconds_sum": 2 * 0.5,
        "vllm:request_inference_time_seconds_count": 2,
    }
    assert {name: value(text, name, **LABELS) for name in expected} == expected
    decode = value(text, "vllm:request_decode_time_seconds_sum")
    assert decode > 0
    assert value(text, "vllm:request_inference_time_seconds_sum") == pytest.approx(2 * 0.5 + decode)
    assert value(text, "vllm:request_success_total", finished_reason="stop") == 2
    assert value(text, "vllm:request_success_total", finished_reason="length") == 0


def test_ttft_counts_from_arrival(start: Start) -> None:
    """The prompt's encoding and the wait for the engine are part of it."""
    live = start("ab", delay=0.06)
    live.openai().chat.completions.create(model="toy", messages=ASK)
    text = live.get("/metrics").text
    assert value(text, "vllm:time_to_first_token_seconds_sum") >= 0.06
    assert value(text, "vllm:time_to_first_token_seconds_bucket", le="0.06") == 0
    assert value(text, "vllm:time_to_first_token_seconds_bucket", le="2560.0") == 1


def test_the_engine_s_statistics_show(start: Start) -> None:
    live = start("x")
    stats = EngineStats(
        running=3, waiting=4, pages_used=25, pages_total=100, prefix_queries=10, prefix_hits=6, compiles=9
    )
    live.call(lambda: setattr(live.client, "stats", stats))
    live.client.restarts = 2
    text = live.get("/metrics").text
    assert value(text, "vllm:num_requests_running") == 3
    assert value(text, "vllm:num_requests_waiting") == 4
    assert value(text, "vllm:kv_cache_usage_perc") == 0.25
    assert value(text, "vllm:prefix_cache_queries_total") == 10
    assert value(text, "slipstream:compiles_total") == 9
    assert value(text, "slipstream:worker_restarts_total") == 2
    assert value(text, "slipstream:ready") == 1
    facts = {"block_size": "16", "num_gpu_blocks": "100", "cache_dtype": "float32"}
    facts |= {"enable_prefix_caching": "True", "gpu_memory_utilization": "0.9"}
    assert value(text, "vllm:cache_config_info", **facts) == 1


def test_the_poll_sees_reports_between_scrapes(start: Start) -> None:
    live = start("x")
    steps = "slipstream:step_seconds_count"
    for i in range(1, 3):
        live.call(lambda i=i: setattr(live.client, "stats", EngineStats(steps=2 * i, step_seconds=[0.01] * 2)))
        live.until(lambda i=i: counted(live, steps) == 2 * i)


def counted(live: Live, name: str) -> float:
    return value(live.front.metrics.text().decode(), name)


def test_counters_survive_a_worker_and_count_a_report_once() -> None:
    metrics = Metrics()
    metrics.describe(INFO, "toy")

    def follow(restarts: int = 0, **stats: object) -> None:
        report = EngineStats(**stats)  # type: ignore[arg-type]
        for _ in range(2):
            metrics.follow(report, ready=True, restarts=restarts)

    follow(steps=5, preemptions=2, step_seconds=[0.1] * 5, step_tokens=[7] * 5)
    follow(steps=8, preemptions=2, step_seconds=[0.1] * 3)
    follow(restarts=1, steps=4, preemptions=1, transfer=TransferStats(fetches=2, seconds=0.5, failures={"late": 1}))
    follow(restarts=1, steps=6, preemptions=1, transfer=TransferStats(fetches=3, seconds=0.75, failures={"late": 3}))
    text = metrics.text().decode()
    assert value(text, "slipstream:steps_total") == 8 + 6
    assert value(text, "vllm:num_preemptions_total") == 3
    assert value(text, "slipstream:step_seconds_count") == 8
    assert value(text, "slipstream:kv_transfer_fetches_total") == 3
    assert value(text, "slipstream:kv_transfer_seconds_total") == 0.75
    assert value(text, "slipstream:kv_transfer_failures_total", reason="late") == 3
    assert value(text, "slipstream:kv_transfer_failures_total", reason="forged") == 0
    assert value(text, "vllm:iteration_tokens_total_sum") == 35
    assert value(text, "slipstream:worker_restarts_total") == 1


@pytest.mark.parametrize(
    ("limit", "buckets"),
    [(1, (1,)), (4, (1, 2)), (100, (1, 2, 5, 10, 20, 50, 100)), (250, (1, 2, 5, 10, 20, 50, 100, 200))],
)
def test_length_buckets(limit: int, buckets: tuple[int, ...]) -> None:
    assert one_two_five(limit) == buckets
