"""Spans are an extra: asked for without it, the error says how to get it."""

from __future__ import annotations

import sys

import pytest

from slipstream.errors import ConfigError
from slipstream.telemetry.record import GenerationRecord
from slipstream.telemetry.tracing import attributes, open_tracing


def test_no_endpoint_no_spans() -> None:
    assert open_tracing(None, version="1") is None


@pytest.mark.parametrize("module", ["opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace"])
def test_a_missing_extra_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'slipstream\[otel\]'"):
        open_tracing("http://127.0.0.1:4318/v1/traces", version="1")


def test_what_was_not_set_is_left_out() -> None:
    record = GenerationRecord(
        operation="text_completion",
        request_id="r",
        response_id="c",
        model="m",
        arrival=1.0,
        started_ns=0,
        end=3.5,
        stream=True,
        n=1,
        max_tokens=None,
        prompt_tokens=(3, 4),
    )
    found = attributes(record)
    assert found["gen_ai.latency.e2e"] == 2.5
    assert found["gen_ai.usage.input_tokens"] == 7
    assert not {"error.type", "gen_ai.request.max_tokens", "gen_ai.response.finish_reasons"} & set(found)
    assert None not in found.values()
