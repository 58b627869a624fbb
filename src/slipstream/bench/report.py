"""A run's report: tables for a person, JSON for everything else."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from slipstream.bench.options import ServeOptions
from slipstream.bench.rows import Row, Spread, Summary
from slipstream.hardware.host import read_host

SCHEMA = "slipstream.bench.serve/1"
_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True)
class Report:
    """One run: what was asked, where, and all that came of it. `command` is the command line that made it."""

    created: str
    command: list[str]
    machine: dict[str, Any]
    options: ServeOptions
    model: str
    summary: Summary
    rows: list[Row]


def describe_machine() -> dict[str, Any]:
    """The machine that sent the load (which may or may not be the server's)."""
    host = asdict(read_host())
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "slipstream": version("slipstream"),
        "host": host,
    }


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data. Row times are in seconds after the clock started, rounded to microseconds."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(report.options).items()}
    options["rate"] = "inf" if report.options.rate == float("inf") else report.options.rate
    return {
        "schema": SCHEMA,
        "created": report.created,
        "command": report.command,
        "machine": report.machine,
        "model": report.model,
        "options": options,
        "summary": asdict(report.summary),
        "rows": [_row(row) for row in report.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    plain = asdict(row)
    for name in ("scheduled", "sent", "ended"):
        plain[name] = round(plain[name], 6)
    plain["chunks"] = [round(at, 6) for at in row.chunks]
    return plain


def write_json(report: Report, path: Path) -> None:
    """Writes the JSON report, the rows one a line."""
    plain = to_json(report)
    rows = plain.pop("rows")
    head = json.dumps(plain, indent=2, allow_nan=False)
    lines = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in rows)
    path.write_text(f'{head[:-2]},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def print_report(report: Report, console: Console) -> None:
    """The tables: what was done, latencies, errors, and what to bear in mind when reading them."""
    summary = report.summary
    console.print(_totals(report), _latencies(summary))
    if summary.errors:
        console.print(_errors(report))
    for note in notes(report):
        console.print(f"- {note}", markup=False, highlight=False)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _totals(report: Report) -> Table:
    summary, options = report.summary, report.options
    load = "all at once" if options.rate == float("inf") else f"{options.rate:g}/s, {options.arrivals}"
    if options.concurrency:
        load += f", at most {options.concurrency} in flight"
    table = _table(f"{report.model} at {options.api_url}, {options.endpoint}")
    table.add_column("")
    table.add_column("", justify="right")
    rows = {
        "Load": load,
        "Requests succeeded": f"{summary.succeeded:,} of {summary.requests:,}",
        "Duration": f"{summary.duration:,.2f} s",
        "Most in flight": f"{summary.peak_in_flight:,}",
        "Requests": f"{summary.request_rate:,.2f} /s",
        "Input tokens": f"{summary.input_tokens:,} ({summary.input_rate:,.1f} /s)",
        "Output tokens": f"{summary.output_tokens:,} ({summary.output_rate:,.1f} /s)",
        "All tokens": f"{summary.total_rate:,.1f} /s",
    }
    if summary.goodput is not None and summary.good_share is not None:
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in summary.limits.items())
        rows[f"Goodput ({limits})"] = f"{summary.goodput:,.2f} /s ({summary.good_share:.1%} of all requests)"
    for name, value in rows.items():
        table.add_row(name, value)
    table.show_header = False
    return table


def _latencies(summary: Summary) -> Table:
    table = _table("Latency from the scheduled arrival, ms")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    spreads: dict[str, Spread | None] = {
        "TTFT": summary.ttft,
        "ITL" if summary.itl_of == "tokens" else "ITL (chunks)": summary.itl,
        "TPOT": summary.tpot,
        "E2E": summary.e2e,
        "Late start": summary.late,
    }
    for name, spread in spreads.items():
        values = [_milliseconds(getattr(spread, column)) if spread else "-" for column in _COLUMNS]
        table.add_row(name, *values)
    return table


def _milliseconds(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.1f}"


def _errors(report: Report) -> Table:
    table = _table(f"{report.summary.failed:,} requests failed")
    table.add_column("Kind")
    table.add_column("Count", justify="right")
    table.add_column("First message", overflow="fold")
    for kind, count in report.summary.errors.items():
        first = next(row.failure.message for row in report.rows if row.failure and row.failure.kind == kind)
        table.add_row(kind, f"{count:,}", first)
    return table


LATE = 10.0
"""Milliseconds of late start (p99) from which the report says that the load was not the one asked for."""


def notes(report: Report) -> list[str]:
    """Sentences that a reader of the numbers has to know; none when there is nothing to say."""
    summary, options = report.summary, report.options
    said = []
    if summary.itl_of == "chunks" and summary.tokens_per_chunk is not None:
        said.append(
            f"A chunk carried {summary.tokens_per_chunk:.2f} tokens on average by the server's usage: ITL is the gap"
            " between chunks, and TPOT divides by the server's token count."
        )
    if summary.without_usage:
        said.append(
            f"{summary.without_usage} answers came without usage: their output tokens are counted as chunks, and their"
            " input tokens are missing from the totals."
        )
    if summary.short:
        said.append(f"{summary.short} answers ended before max_tokens.")
    if summary.late is not None and summary.late.p99 > LATE:
        why = "waiting for a free place under --concurrency" if options.concurrency else "this machine was too busy"
        said.append(f"1 % of requests started over {summary.late.p99:,.0f} ms late ({why}); latencies include it.")
    if summary.failed:
        said.append("Latencies are those of requests that succeeded; failed ones can make them look better.")
    return said
