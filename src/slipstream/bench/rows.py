"""What was seen of each request, and the numbers that follow from it. Pure: recorded rows give the same numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Failure:
    """Why a request gave no complete answer. `kind` is one of a few words (http_429, timeout, ...), for counting."""

    kind: str
    message: str


@dataclass(frozen=True)
class Row:
    """One request. Times are in seconds after the clock started.

    `scheduled`: when it should have been sent; `sent`: when it was. `chunks`: arrival times of the stream's chunks that
    carry text. `prompt_tokens` and `output_tokens` are the server's usage, None where it gave none.
    """

    index: int
    scheduled: float
    sent: float
    ended: float
    chunks: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    max_tokens: int | None = None
    finish_reason: str | None = None
    failure: Failure | None = None

    @property
    def tokens(self) -> int:
        """Output tokens: the server's count, or that of the chunks where it gave none."""
        return len(self.chunks) if self.output_tokens is None else self.output_tokens

    @property
    def late(self) -> float:
        """Seconds from the scheduled arrival to the start."""
        return self.sent - self.scheduled

    @property
    def ttft(self) -> float | None:
        """Seconds from the scheduled arrival to the first text."""
        return self.chunks[0] - self.scheduled if self.chunks else None

    @property
    def e2e(self) -> float:
        """Seconds from the scheduled arrival to the end of the stream."""
        return self.ended - self.scheduled

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring chunks."""
        return [b - a for a, b in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """Mean seconds for each token after the first; None for a single one."""
        return (self.chunks[-1] - self.chunks[0]) / (self.tokens - 1) if self.tokens > 1 and self.chunks else None


@dataclass(frozen=True)
class Spread:
    """A distribution. Percentiles interpolate linearly between the two nearest observations."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None without values."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p90, p95, p99 = (percentile(ordered, p) for p in PERCENTILES)
        return cls(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p95, p99, ordered[-1])


def percentile(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile (0..100) of rising values, by linear interpolation (method 7 of Hyndman and Fan, 1996)."""
    place = (len(ordered) - 1) * p / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Summary:
    """All of a run's numbers. Latencies are in milliseconds, rates per second, `duration` in seconds.

    `itl_of`: "tokens" where every chunk carried one token by the server's own count, else "chunks": then `itl` holds
    the gaps between chunks of `tokens_per_chunk` tokens on average. `goodput` is None without limits.
    """

    requests: int
    succeeded: int
    failed: int
    errors: dict[str, int]
    duration: float
    request_rate: float
    input_tokens: int
    output_tokens: int
    input_rate: float
    output_rate: float
    total_rate: float
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    late: Spread | None
    itl_of: str
    tokens_per_chunk: float | None
    without_usage: int
    short: int
    peak_in_flight: int
    limits: dict[str, float]
    goodput: float | None
    good_share: float | None


def summarize(rows: Sequence[Row], limits: Mapping[str, float] | None = None) -> Summary:
    """The numbers of a run; `limits` in ms by metric.

    Latencies are those of the requests that succeeded; failed ones are counted beside them, by kind. Tokens that a
    failed request did bring are not throughput. The duration runs from the first scheduled arrival to the last end.
    """
    good = [row for row in rows if row.failure is None]
    start = min((row.scheduled for row in rows), default=0.0)
    duration = max((row.ended for row in rows), default=0.0) - start
    rate = (lambda n: n / duration) if duration > 0 else (lambda n: 0.0)
    inputs = sum(row.prompt_tokens or 0 for row in good)
    outputs = sum(row.tokens for row in good)
    counted = [row for row in good if row.output_tokens is not None]
    chunks = sum(len(row.chunks) for row in counted)
    single = all(row.output_tokens == len(row.chunks) for row in counted) and len(counted) == len(good)
    met = sum(meets(row, limits) for row in good) if limits else None
    return Summary(
        requests=len(rows),
        succeeded=len(good),
        failed=len(rows) - len(good),
        errors=dict(Counter(row.failure.kind for row in rows if row.failure is not None).most_common()),
        duration=duration,
        request_rate=rate(len(good)),
        input_tokens=inputs,
        output_tokens=outputs,
        input_rate=rate(inputs),
        output_rate=rate(outputs),
        total_rate=rate(inputs + outputs),
        ttft=_ms(row.ttft for row in good),
        itl=_ms(gap for row in good for gap in row.gaps),
        tpot=_ms(row.tpot for row in good),
        e2e=_ms(row.e2e for row in good),
        late=_ms(row.late for row in rows),
        itl_of="tokens" if single else "chunks",
        tokens_per_chunk=sum(row.tokens for row in counted) / chunks if chunks else None,
        without_usage=len(good) - len(counted),
        short=sum(row.max_tokens is not None and row.tokens < row.max_tokens for row in good),
        peak_in_flight=peak_in_flight(rows),
        limits=dict(limits or {}),
        goodput=rate(met) if met is not None else None,
        good_share=met / len(rows) if met is not None and rows else None,
    )


def _ms(values: Iterable[float | None]) -> Spread | None:
    return Spread.of(value * 1000 for value in values if value is not None)


def meets(row: Row, limits: Mapping[str, float]) -> bool:
    """Whether a request that succeeded kept all limits (ms). A metric that it has no value for is kept."""
    mean_gap = math.fsum(row.gaps) / len(row.gaps) if row.gaps else None
    values = {"ttft": row.ttft, "tpot": row.tpot, "itl": mean_gap, "e2e": row.e2e}
    return all((value := values[name]) is None or value * 1000 <= limit for name, limit in limits.items())


def peak_in_flight(rows: Sequence[Row]) -> int:
    """Most requests that were open at once; one that ends at the moment when another starts does not overlap it."""
    events = sorted([(row.sent, 1) for row in rows] + [(row.ended, -1) for row in rows])
    now = peak = 0
    for _, change in events:
        now += change
        peak = max(peak, now)
    return peak


def output_over_time(rows: Sequence[Row], step: float) -> list[tuple[float, float]]:
    """Output tokens per second in windows of `step` seconds: (start of the window, rate).

    A chunk counts as its request's mean number of tokens per chunk. Failed requests count: the server made them.
    """
    weighted = [(at, row.tokens / len(row.chunks)) for row in rows for at in row.chunks]
    if not weighted:
        return []
    windows = math.floor(max(at for at, _ in weighted) / step) + 1
    sums = [0.0] * windows
    for at, weight in weighted:
        sums[math.floor(at / step)] += weight
    return [(i * step, total / step) for i, total in enumerate(sums)]
