"""What a request leaves behind: an id, log lines without its text, and a span."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from slipstream.telemetry import logs
from slipstream.telemetry.tracing import Tracing

from .conftest import Start

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "a private question"}], "temperature": 0.5, "seed": 3}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    level = root.level
    handler = logs.configure(format="json", level="debug", stream=stream)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def test_request_ids_go_in_and_out(start: Start) -> None:
    live = start("x")
    assert live.post(CHAT, json=BODY, headers={"x-request-id": "Req-1.a:b_c"}).headers["x-request-id"] == "Req-1.a:b_c"
    drawn = {live.post(CHAT, json=BODY).headers["x-request-id"] for _ in range(2)}
    assert len(drawn) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in drawn)
    for hostile in ("a b", "x" * 129, "a\tb", "é".encode().decode("latin-1")):
        reply = live.get("/health", headers={"x-request-id": hostile.encode("latin-1")})
        assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])
    assert live.post(CHAT, json={}, headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"


def test_two_requests_of_one_id_do_not_meet_in_the_engine(start: Start) -> None:
    live = start("x")
    for _ in range(2):
        live.post(CHAT, json=BODY, headers={"x-request-id": "same"})
    assert len({request.id for request in live.client.requests}) == 2


def test_logs_tell_of_the_request_but_not_its_text(start: Start, lines: io.StringIO) -> None:
    live = start("a private answer")
    headers = {"x-request-id": "r-1", "authorization": "Bearer private-key"}
    live.post(CHAT + "?key=private", json=BODY | {"stream": True}, headers=headers)
    live.post(CHAT, json=BODY | {"model": "x"}, headers=headers)
    live.stop()
    entries = [json.loads(line) for line in lines.getvalue().splitlines()]
    ours = [entry for entry in entries if entry["logger"].startswith("slipstream")]
    assert "private" not in json.dumps(ours)
    [generation] = [entry for entry in ours if entry["message"] == "generation"]
    assert generation["request_id"] == "r-1"
    assert generation["output_tokens"] == len("a private answer") + 1
    assert generation["finish_reasons"] == "stop"
    assert 0 < generation["ttft_ms"] <= generation["e2e_ms"]
    access = [entry for entry in ours if entry["message"] == f"POST {CHAT}"]
    assert [(entry["status"], entry["request_id"]) for entry in access] == [(200, "r-1"), (404, "r-1")]


def test_unforeseen_errors_are_logged_and_not_told(start: Start, lines: io.StringIO) -> None:
    live = start(lambda _: 1 / 0)
    reply = live.post(CHAT, json=BODY, headers={"x-request-id": "r-2"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "division" not in reply.text
    live.stop()
    failed = [json.loads(line) for line in lines.getvalue().splitlines() if "ZeroDivisionError" in line]
    assert [entry["request_id"] for entry in failed] == ["r-2"]


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def test_spans(start: Start) -> None:
    exporter = InMemorySpanExporter()
    live = start("abc", cached=2, tracing=Tracing(SimpleSpanProcessor(exporter), version="1"))
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-3"}
    answer = live.post(CHAT, json=BODY | {"n": 2, "top_k": 4}, headers=headers).json()
    live.stop()
    [span] = exporter.get_finished_spans()
    assert span.name == "chat toy"
    assert span.kind is SpanKind.SERVER
    assert format(span.context.trace_id, "032x") == TRACE
    assert format(span.parent.span_id, "016x") == PARENT
    attributes = dict(span.attributes)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.id"] == "r-3"
    assert attributes["gen_ai.response.id"] == answer["id"]
    assert attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 2
    assert attributes["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert (attributes["gen_ai.request.temperature"], attributes["gen_ai.request.top_k"]) == (0.5, 4)
    assert (attributes["gen_ai.request.seed"], attributes["gen_ai.request.choice.count"]) == (3, 2)
    assert "gen_ai.request.max_tokens" not in attributes
    assert 0 < attributes["gen_ai.latency.time_to_first_token"] <= attributes["gen_ai.latency.e2e"]
    assert span.end_time > span.start_time
    assert "private" not in span.to_json()


def test_spans_of_failures_and_of_broken_headers(start: Start) -> None:
    exporter = InMemorySpanExporter()
    live = start("abc", fail_at=1, tracing=Tracing(SimpleSpanProcessor(exporter), version="1"))
    live.post("/v1/completions", json={"prompt": "p", "stream": True}, headers={"traceparent": "nonsense"})
    live.stop()
    [span] = exporter.get_finished_spans()
    assert span.parent is None
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "engine_error"
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error",)
