"""A comparison's report: a table for a person, JSON, and the section of a document."""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from slipstream.bench.peers.options import PeersOptions
from slipstream.bench.peers.participants import MODELS, PARTICIPANTS
from slipstream.bench.peers.results import Comparison, Results, compare

SCHEMA = "slipstream.bench.peers/1"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
"""Between these markers `write_docs` puts its section."""

_WIDE = 240

LABELS = {participant.name: participant.label for participant in PARTICIPANTS}


@dataclass(frozen=True)
class Report:
    """One comparison: what was asked, where, when (UTC, ISO 8601), how long it took, and all that came of it."""

    created: str
    seconds: float
    command: list[str]
    machine: dict[str, Any]
    cpus: int
    options: PeersOptions
    results: Results

    @property
    def rows(self) -> list[Comparison]:
        """Every row."""
        return compare(self.results)


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data: rows of medians, then every sample with its median, least and most."""
    results = report.results
    samples = [
        {
            "model": model,
            "workload": workload,
            "participant": name,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "samples": values,
        }
        for (model, workload, name), values in results.samples.items()
    ]
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(report.options).items()}
    return {
        "schema": SCHEMA,
        "created": report.created,
        "seconds": round(report.seconds, 1),
        "command": report.command,
        "machine": report.machine,
        "threads": report.cpus,
        "rounds": report.options.rounds,
        "options": options,
        "versions": results.versions,
        "bandwidth_gb_per_s": results.bandwidth,
        "rows": [row.to_json() for row in report.rows],
        "samples": samples,
    }


def write_json(report: Report, path: Path) -> None:
    """Writes the JSON report, rows and samples one a line."""
    plain = to_json(report)
    tails = {name: plain.pop(name) for name in ("rows", "samples")}
    text = json.dumps(plain, indent=2, allow_nan=False)[:-2]
    for name, items in tails.items():
        lines = ",\n".join("    " + json.dumps(item, allow_nan=False) for item in items)
        text += f',\n  "{name}": [\n{lines}\n  ]'
    path.write_text(text + "\n}\n", encoding="utf-8")


def shown(value: float | None, precision: int = 3) -> str:
    """A number with at least three digits; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{precision}g}"


def ratio(value: float | None) -> str:
    """A ratio: 1.84x."""
    return "-" if value is None else f"{value:.2f}x"


def grid(rows: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of one model's table: workloads down, participants across, then ratios to the best."""
    precisions = list(dict.fromkeys(row.precision for row in rows))
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    head = [
        "",
        "",
        *(f"Slipstream {precision}" for precision in precisions),
        *(LABELS.get(name, name) for name in peers),
        *(f"{precision}: best" for precision in precisions),
    ]
    lines = []
    for workload in dict.fromkeys(row.workload for row in rows):
        of = {row.precision: row for row in rows if row.workload == workload}
        first = next(iter(of.values()))
        lines.append(
            [
                workload,
                first.kind.metric,
                *(_ours(of.get(precision)) for precision in precisions),
                *(_value(first, name) for name in peers),
                *(ratio(of[precision].ratio) if precision in of else "-" for precision in precisions),
            ]
        )
    return head, lines


def _ours(row: Comparison | None) -> str:
    if row is None:
        return "-"
    failed = any(name.startswith("slipstream-") for name in row.errors)
    return "failed" if failed else shown(row.slipstream)


def _value(row: Comparison, name: str) -> str:
    if name in row.errors:
        return "failed"
    return shown(row.peers.get(name)) + "*" * (name == row.best_peer)


def notes(report: Report) -> list[str]:
    """What a reader has to know beside the numbers; each failure with its reason, once."""
    said = ["* is the best peer; a ratio over 1 is Slipstream's advantage over it, for rates, times and memory alike."]
    if report.options.rounds < 5:
        said.append(f"{report.options.rounds} round(s): too few to quote.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for (_, workload, name), reason in report.results.errors.items():
        reasons.setdefault((name, reason), []).append(workload)
    for (name, reason), workloads in reasons.items():
        said.append(f"{LABELS.get(name, name)} failed in {', '.join(dict.fromkeys(workloads))}: {reason}")
    short = dict.fromkeys(
        LABELS.get(name, name)
        for key, samples in report.results.samples.items()
        if len(samples) < report.options.rounds and key not in report.results.errors
        for name in key[2:]
    )
    if short:
        said.append(f"Far behind the best peer, and so not in every round of each workload: {', '.join(short)}.")
    if report.results.bandwidth:
        said.append(f"Memory is read at {max(report.results.bandwidth):.1f} GB/s, the best of all rounds.")
    return said


def print_report(report: Report, console: Console) -> None:
    """A table for each model, and the notes."""
    # In a pipe there is no width to keep to.
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDE)
    for model, rows in _by_model(report).items():
        head, lines = grid(rows)
        title = f"{MODELS[model].about}: medians of {report.options.rounds}, {report.cpus} threads"
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index > 1 else "left", overflow="fold")
        for line in lines:
            table.add_row(*line)
        wide.print(table)
    for note in notes(report):
        console.print(f"- {note}", markup=False, highlight=False)


def _by_model(report: Report) -> dict[str, list[Comparison]]:
    models: dict[str, list[Comparison]] = {}
    for row in report.rows:
        models.setdefault(row.model, []).append(row)
    return models


def to_markdown(report: Report, plot: str | None) -> str:
    """The section of a document: when, where and how, the tables, and the plot at the path `plot`."""
    host = report.machine.get("host", {})
    where = f"{host.get('cpu_model', 'a CPU')}, {report.cpus} threads"
    versions = {package: number for each in report.results.versions.values() for package, number in each.items()}
    parts = [
        f"{report.created[:10]}, on {where}, medians of {report.options.rounds} rounds, made by",
        f"```\n{shlex.join(report.command)}\n```",
    ]
    for model, rows in _by_model(report).items():
        head, lines = grid(rows)
        table = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)]), *map(_line, lines)]
        parts += [f"**{MODELS[model].about}**", "\n".join(table)]
    parts.append("\n".join(f"- {note}" for note in notes(report)))
    parts.append("Releases: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())) + ".")
    if plot is not None:
        parts.append(f"![Each workload, all participants]({plot})")
    return "\n\n".join(parts)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("*", "\\*") for cell in cells) + " |"


def write_docs(report: Report, path: Path, plot: Path) -> None:
    """Puts the section between the markers of the document at `path`, in place of what is there.

    The plot is linked relative to the document. Raises ValueError if the markers are not there.
    """
    text = path.read_text(encoding="utf-8")
    linked = Path(os.path.relpath(plot, path.parent)).as_posix()
    section = f"{BEGIN}\n{to_markdown(report, linked)}\n{END}"
    replaced, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: section, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{path} must have {BEGIN} and {END} once, has them {count} times")
    path.write_text(replaced, encoding="utf-8")
