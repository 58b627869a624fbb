"""The numbers that follow from recorded rows, checked by hand."""

from __future__ import annotations

import pytest

from slipstream.bench.rows import (
    Failure,
    Row,
    Spread,
    meets,
    output_over_time,
    peak_in_flight,
    percentile,
    summarize,
)

FIRST = Row(
    0, scheduled=0.0, sent=0.0, ended=1.0, chunks=(0.2, 0.4, 0.8), prompt_tokens=10, output_tokens=3, max_tokens=3
)
LATE = Row(1, scheduled=0.5, sent=1.0, ended=2.0, chunks=(1.5, 1.75), prompt_tokens=20, output_tokens=2, max_tokens=4)
BUSY = Row(2, scheduled=1.0, sent=1.0, ended=1.1, failure=Failure("http_429", "full"))
CUT = Row(3, scheduled=1.0, sent=1.0, ended=4.0, chunks=(1.2,), failure=Failure("truncated", "cut"))


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 50, 3.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 90, 4.6),
        ([0.0, 100.0], 99, 99.0),
        ([1.0, 2.0, 3.0], 0, 1.0),
        ([1.0, 2.0, 3.0], 100, 3.0),
    ],
)
def test_percentiles_interpolate(values: list[float], p: float, expected: float) -> None:
    assert percentile(values, p) == pytest.approx(expected)


def test_spread() -> None:
    spread = Spread.of([4.0, 1.0, 3.0, 2.0])
    assert spread is not None and (spread.count, spread.mean, spread.max) == (4, 2.5, 4.0)
    assert (spread.p50, spread.p90, spread.p95, spread.p99) == pytest.approx((2.5, 3.7, 3.85, 3.97))
    assert Spread.of([]) is None


def test_latency_counts_from_the_scheduled_arrival() -> None:
    assert LATE.ttft == 1.0
    assert LATE.e2e == 1.5
    assert LATE.late == 0.5
    assert LATE.gaps == [0.25]
    assert FIRST.tpot == pytest.approx(0.3)


def test_summary() -> None:
    summary = summarize([FIRST, LATE, BUSY, CUT], {"ttft": 500.0, "tpot": 301.0})
    assert (summary.requests, summary.succeeded, summary.failed) == (4, 2, 2)
    assert summary.errors == {"http_429": 1, "truncated": 1}
    assert summary.duration == 4.0
    assert summary.request_rate == 0.5
    assert (summary.input_tokens, summary.output_tokens) == (30, 5)
    assert (summary.input_rate, summary.output_rate, summary.total_rate) == (7.5, 1.25, 8.75)
    assert summary.ttft is not None and summary.ttft.p50 == pytest.approx(600)
    assert summary.itl is not None and summary.itl.count == 3
    assert summary.itl.p50 == pytest.approx(250)
    assert summary.late is not None and summary.late.count == 4
    assert summary.itl_of == "tokens" and summary.tokens_per_chunk == 1.0
    assert summary.short == 1
    # FIRST keeps both limits, LATE misses TTFT, and failed requests are never good.
    assert summary.goodput == 0.25 and summary.good_share == 0.25


def test_chunks_of_several_tokens_are_told_apart() -> None:
    grouped = Row(0, 0.0, 0.0, 1.0, chunks=(0.2, 0.6), output_tokens=5)
    summary = summarize([grouped])
    assert summary.itl_of == "chunks" and summary.tokens_per_chunk == 2.5
    assert grouped.tpot == pytest.approx(0.1)
    assert summary.goodput is None


def test_answers_without_usage_are_counted_by_chunks() -> None:
    bare = Row(0, 0.0, 0.0, 1.0, chunks=(0.2, 0.6))
    summary = summarize([bare])
    assert summary.output_tokens == 2 and summary.without_usage == 1
    assert summary.itl_of == "chunks" and summary.tokens_per_chunk is None


def test_nothing_succeeded() -> None:
    summary = summarize([BUSY])
    assert summary.ttft is None and summary.output_rate == 0 and summary.errors == {"http_429": 1}


def test_a_single_token_keeps_limits_that_it_has_no_value_for() -> None:
    one = Row(0, 0.0, 0.0, 0.3, chunks=(0.3,), output_tokens=1)
    assert meets(one, {"tpot": 1.0, "itl": 1.0})
    assert not meets(one, {"ttft": 299.0})
    assert meets(one, {"ttft": 300.0})


def test_peak_in_flight() -> None:
    assert peak_in_flight([FIRST, LATE, BUSY, CUT]) == 3
    assert peak_in_flight([]) == 0


def test_output_over_time_weighs_chunks_by_their_tokens() -> None:
    grouped = Row(0, 0.0, 0.0, 2.0, chunks=(0.1, 0.2, 1.5), output_tokens=6)
    assert output_over_time([grouped], 0.5) == [(0.0, 8.0), (0.5, 0.0), (1.0, 0.0), (1.5, 4.0)]
    assert output_over_time([BUSY], 0.5) == []
