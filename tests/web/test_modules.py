"""The page's pure modules, with exact numbers, run in the browser that they are for."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from .fake import metrics_text

TEXT = """# HELP x y
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a \\"b\\" {c}, d"} 10.0
vllm:generation_tokens_total{engine="1",model_name="m"} 2.5e1 1700000000000
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:num_requests_running 3
vllm:time_to_first_token_seconds_bucket{le="0.1"} 4
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 5
odd{le="NaN"} NaN

this is no sample line
"""


def call(page: Page, module: str, expression: str, argument: Any = None) -> Any:
    """Evaluates an expression over `m`, the module, and `a`, the argument."""
    return page.evaluate(
        "async ([module, a]) => { const m = await import(new URL(`static/${module}.js`, document.baseURI));"
        f" return {expression}; }}",
        [module, argument],
    )


def test_prometheus_text(modules: Page) -> None:
    reading = call(modules, "metrics", "m.reading(m.parse(a), 7)", TEXT)
    assert reading["generation"] == 35
    assert reading["kv"] == 0.5
    assert reading["running"] == 3
    assert reading["waiting"] is None and reading["prompt"] is None
    assert reading["itl"] == []
    assert reading["ttft"] == [[0.1, 4], [float("inf"), 5]]
    labels = call(modules, "metrics", "m.parse(a).get('vllm:generation_tokens_total')[0].labels", TEXT)
    assert labels == {"engine": "0", "model_name": 'a "b" {c}, d'}
    assert call(modules, "metrics", "m.parse('').size") == 0
    assert call(modules, "metrics", "Number.isNaN(m.parse(a).get('odd')[0].value)", TEXT)


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, [[1, 10], [2, 20], ["Infinity", 20]], 1.0),
        (0.75, [[1, 10], [2, 20], ["Infinity", 20]], 1.5),
        (0.5, [[1, 0], [2, 10], ["Infinity", 10]], 1.5),
        (0.95, [[1, 10], [2, 10], ["Infinity", 20]], 2),
        (0.5, [[1, 0], ["Infinity", 0]], None),
        (0.5, [], None),
    ],
)
def test_quantiles_are_linear_inside_a_bucket(
    modules: Page, q: float, buckets: list[list[Any]], expected: float
) -> None:
    got = call(modules, "metrics", "m.quantile(a[0], a[1].map(([b, n]) => [Number(b), n]))", [q, buckets])
    assert got == (pytest.approx(expected) if expected is not None else None)


def test_rates_and_restarts(modules: Page) -> None:
    def derive(texts: list[str]) -> Any:
        return call(modules, "metrics", "m.derive(a.map((t, i) => m.reading(m.parse(t), i)))", texts)

    steady = derive([metrics_text(n, 0) for n in (5, 6, 7, 8, 9)])
    # Three seconds back: (40 * 9 + 7 * 4) - (40 * 6 + 7 * 1) over 3 s; prompts grow by 110 a reading.
    assert steady["generation"] == pytest.approx((388 - 247) / 3)
    assert steady["prompt"] == pytest.approx(110)
    assert steady["kv"] == pytest.approx(25)
    # A third of the observations lies in each bucket: the median is in the middle of (50, 100] ms.
    assert steady["ttft50"] == pytest.approx(75)
    assert steady["itl50"] == pytest.approx(1000 * (0.005 + 0.005 * 5 / 18))
    assert derive([metrics_text(5, 0)])["generation"] is None
    restarted = derive([metrics_text(9, 0), metrics_text(1, 0)])
    assert restarted["generation"] is None and restarted["ttft95"] is None


def test_events_cut_anywhere(modules: Page) -> None:
    stream = 'data: {"a": "世界🌍"}\r\n\r\n: a comment\nevent: x\ndata: one\ndata: two\n\ndata\n\ndata: cut'
    raw = list(stream.encode())
    whole = ['{"a": "世界🌍"}', "one\ntwo", ""]
    for size in (1, 2, 3, 7, len(raw)):
        pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
        got = call(
            modules,
            "sse",
            "(() => { const p = new m.EventParser(); return a.flatMap((c) => p.push(new Uint8Array(c))); })()",
            pieces,
        )
        assert got == whole, f"in pieces of {size}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), ("0.5", 0.5), (None, None), ("", None), ("soon", None), ("Thu, 01 Jan 1970 00:00:10 GMT", 8)],
)
def test_retry_after(modules: Page, value: str | None, expected: float | None) -> None:
    assert call(modules, "api", "m.retryAfter(a, 2000)", value) == expected


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("temperature", " 0.5 ", {"value": 0.5}),
        ("temperature", "", {}),
        ("temperature", "-1", {"error": "Temperature must be at least 0."}),
        ("top_p", "0", {"error": "Top p must be over 0."}),
        ("top_p", "1.2", {"error": "Top p must be at most 1."}),
        ("top_k", "1.5", {"error": "Top k must be a whole number."}),
        ("top_k", "-1", {"value": -1}),
        ("max_tokens", "0", {"error": "Max tokens must be at least 1."}),
        ("seed", "x", {"error": "Seed must be a number."}),
        ("frequency_penalty", "-2.5", {"error": "Frequency must be at least -2."}),
    ],
)
def test_settings_are_checked(modules: Page, name: str, raw: str, expected: dict[str, Any]) -> None:
    assert call(modules, "settings", "m.check(m.FIELDS.find((f) => f.name === a[0]), a[1])", [name, raw]) == expected


def test_limits_are_the_servers(modules: Page) -> None:
    from slipstream.api import sampling

    exact = 2**53 - 1
    for field in call(modules, "settings", "m.FIELDS"):
        low, high = sampling._RANGES[field["name"]]
        if field["name"] == "seed":
            low, high = -exact, exact
        assert (field["min"], field["max"]) == (low, high), field["name"]


def test_speed_of_an_answer(modules: Page) -> None:
    timing = {"sent": 100, "first": 300, "last": 1300, "chunks": 5, "tokens": 11}
    assert call(modules, "exchange", "m.speed(a)", timing) == {"count": 11, "exact": True, "ttft": 200, "rate": 10}
    assert call(modules, "exchange", "m.describe(a, 'length')", timing) == [
        "11 tokens",
        "10.0 tok/s",
        "first token 200 ms",
        "cut at max tokens",
    ]
    stopped = {**timing, "tokens": None, "last": 300, "chunks": 1}
    assert call(modules, "exchange", "m.describe(a, 'stopped')", stopped) == [
        "about 1 token",
        "first token 200 ms",
        "stopped",
    ]


def test_markdown_blocks(modules: Page) -> None:
    def kinds(text: str) -> list[str]:
        return [block["kind"] for block in call(modules, "markdown", "m.parse(a)", text)]

    assert kinds("# a\nb\n\n- c\n\n- d\ne\n\n> f\n---\n```\ng\n\n# h") == [
        "heading",
        "paragraph",
        "list",
        "paragraph",
        "quote",
        "rule",
        "code",
    ]
    assert kinds("1. a\n   b\n2. c\n    - d") == ["list"]
    assert kinds("") == []
    html = "(() => { const d = document.createElement('div'); m.render(d, a); return d.innerHTML; })()"
    assert call(modules, "markdown", html, "a `*b*` **c *d*** 2*3*4 snake_case_name") == (
        "<p>a <code>*b*</code> <strong>c <em>d</em></strong> 2*3*4 snake_case_name</p>"
    )
    assert call(modules, "markdown", html, "3. a\n4. b\n   - c") == (
        '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li></ol>'
    )


@pytest.mark.parametrize(("value", "top"), [(3, 5), (5, 5), (10, 10), (101, 200), (201, 250), (0.3, 0.5), (999, 1000)])
def test_axis_tops(modules: Page, value: float, top: float) -> None:
    assert call(modules, "plots", "m.niceTop(a)", value) == pytest.approx(top)


def test_lines_break_where_data_does(modules: Page) -> None:
    assert call(modules, "plots", "m.path([[0, 1], [1, 2], [2, null], [3, 4]])") == "M0.0 1.0L1.0 2.0M3.0 4.0h1"
