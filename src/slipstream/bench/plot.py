"""The plot of a run: how latencies are distributed, and throughput over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slipstream.bench.report import Report
from slipstream.bench.rows import output_over_time

_INK, _SOFT, _LINE = "#152023", "#536469", "#dde4e6"
_FIRST, _SECOND = "#0c6478", "#b4540a"
_WINDOWS = 60


def draw(report: Report, path: Path) -> None:
    """Writes the plot; its format follows the suffix. Failed requests are in the throughput, not in the latencies."""
    # The object interface, not pyplot: no global state, and no display is ever looked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    good = [row for row in report.rows if row.failure is None]
    figure = Figure(figsize=(13, 4), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1), facecolor="white")
    FigureCanvasAgg(figure)
    first, gaps, time = figure.subplots(1, 3)
    summary = report.summary
    _distribution(
        first, [row.ttft * 1000 for row in good if row.ttft is not None], "Time to first token", report, "ttft"
    )
    gap_title = "Between tokens" if summary.itl_of == "tokens" else "Between chunks"
    _distribution(gaps, [gap * 1000 for row in good for gap in row.gaps], gap_title, report, "itl")
    _throughput(time, report)
    figure.suptitle(
        f"{report.model}: {summary.succeeded} of {summary.requests} requests,"
        f" {summary.output_rate:,.0f} output tokens/s",
        x=0.012,
        ha="left",
        color=_INK,
        fontsize=12,
        fontweight="bold",
    )
    figure.savefig(path, dpi=150)


def _style(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK)
    axes.set_xlabel(x, color=_SOFT)
    axes.set_ylabel(y, color=_SOFT)
    axes.tick_params(colors=_SOFT, labelsize=8.5)
    axes.grid(color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)


def _distribution(axes: Any, values: Sequence[float], title: str, report: Report, metric: str) -> None:
    """The share of values at or under each latency, with p50 and p99 and the limit, if one is set."""
    _style(axes, title, "ms", "share of observations")
    axes.set_ylim(0, 1)
    if not values:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_SOFT)
        return
    axes.ecdf(values, color=_FIRST, linewidth=1.8)
    spread = getattr(report.summary, metric)
    for style, value in ((":", spread.p50), ("-.", spread.p99)):
        axes.axvline(value, color=_SOFT, linewidth=1, linestyle=style)
    numbers = f"p50 {spread.p50:,.1f} (dotted), p99 {spread.p99:,.1f} (dash-dotted)"
    limit = report.summary.limits.get(metric)
    if limit is not None:
        axes.axvline(limit, color=_SECOND, linewidth=1.6, linestyle="--")
        numbers += f", limit {limit:g} (dashed)"
    axes.set_xlabel(f"ms: {numbers}", color=_SOFT, fontsize=8.5)
    axes.set_xlim(left=0)


def _throughput(axes: Any, report: Report) -> None:
    _style(axes, "Output over time", "seconds", "tokens/s")
    step = max(report.summary.duration / _WINDOWS, 0.1)
    points = output_over_time(report.rows, step)
    if not points:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_SOFT)
        return
    axes.stairs(
        [rate for _, rate in points],
        [at for at, _ in points] + [len(points) * step],
        color=_FIRST,
        fill=True,
        alpha=0.15,
    )
    axes.stairs(
        [rate for _, rate in points], [at for at, _ in points] + [len(points) * step], color=_FIRST, linewidth=1.6
    )
    axes.set_xlim(0, len(points) * step)
    axes.set_ylim(bottom=0)
