"""The plot of a comparison: a panel for each workload, a bar for each participant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slipstream.bench.peers.participants import MODELS
from slipstream.bench.peers.report import LABELS, Report, shown
from slipstream.bench.peers.results import Comparison

_INK, _SOFT, _LINE = "#152023", "#536469", "#dde4e6"
_OURS = {"exact": "#0c6478", "fast": "#3f9fb0"}
_THEIRS = "#b8c4c7"
_COLUMNS = 3
_PANEL = (4.6, 2.3)  # inches


def draw(report: Report, path: Path) -> None:
    """Writes the plot; its format follows the suffix. A bar ends at the median, its whisker at the worst and best."""
    # The object interface, not pyplot: no global state, and no display is ever looked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = list(dict.fromkeys((row.model, row.workload) for row in report.rows))
    lines = max(1, -(-len(panels) // _COLUMNS))
    size = (_PANEL[0] * _COLUMNS, _PANEL[1] * lines + 0.5)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for (model, workload), ax in zip(panels, axes, strict=False):
        rows = [row for row in report.rows if (row.model, row.workload) == (model, workload)]
        _panel(ax, report, rows, len(report.options.model_names) > 1)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    about = " and ".join(MODELS[model].about for model in report.options.model_names)
    figure.suptitle(
        f"{about} on a CPU, {report.cpus} threads, medians of {report.options.rounds}",
        x=0.012,
        ha="left",
        color=_INK,
        fontsize=12,
        fontweight="bold",
    )
    figure.savefig(path, dpi=130)


def _panel(ax: Any, report: Report, rows: list[Comparison], several: bool) -> None:
    first = rows[0]
    results = report.results
    bars = []
    for row in rows:
        http = "http-" * first.kind.through_http
        key = (row.model, row.workload, f"slipstream-{http}{row.precision}")
        bars.append((f"Slipstream {row.precision}", row.slipstream, _OURS.get(row.precision, _INK), key))
    for name, value in first.peers.items():
        bars.append((LABELS.get(name, name), value, _THEIRS, (first.model, first.workload, name)))
    most = max((max(results.samples.get(key, [0.0])) for *_, key in bars), default=0.0) or 1.0
    for place, (_, value, color, key) in enumerate(bars):
        if value is None:
            ax.text(0.01 * most, place, "failed", va="center", fontsize=8, color=_SOFT)
            continue
        samples = results.samples[key]
        ax.barh(place, value, color=color, height=0.74)
        ax.plot([min(samples), max(samples)], [place, place], color=_INK, linewidth=0.8)
        ax.text(max(samples) + 0.015 * most, place, shown(value), va="center", fontsize=8, color=_INK)
    ax.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=8)
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, most * 1.16)
    better = "higher" if first.kind.higher_is_better else "lower"
    title = f"{first.kind.about} ({first.kind.metric}, {better} is better)"
    if several:
        title = f"{first.model}: {title}"
    ax.set_title(title, loc="left", fontsize=9, color=_INK)
    ax.tick_params(colors=_SOFT, labelsize=8)
    ax.tick_params(axis="y", length=0, labelcolor=_INK)
    ax.grid(axis="x", color=_LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(_LINE)
