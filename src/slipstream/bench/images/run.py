"""`slipstream bench images`: rounds in alternation, each participant in a new process, alone with the machine."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from slipstream.bench.ceilings import measure
from slipstream.bench.images.drivers.workloads import workload
from slipstream.bench.images.operations import operations
from slipstream.bench.images.options import ImagesOptions
from slipstream.bench.peers.environments import Unavailable, install
from slipstream.bench.peers.process import last_line
from slipstream.bench.peers.run import pinned
from slipstream.bench.report import describe_machine
from slipstream.errors import ConfigError
from slipstream.hardware.disk import cache_folder

SCHEMA = "slipstream.bench.images/1"
DRIVERS = Path(__file__).parent / "drivers"
ENVIRONMENT = "images"
LONGEST = 1800.0
"""Seconds after which a process is given up."""

_COLUMNS = ("", "s a step", "least", "most", "GFLOP/s", "of peak", "diffusers /", "OpenVINO /", "difference", "PSNR")


@dataclass(frozen=True)
class Participant:
    """Who it is, which module of drivers/ runs it, whether it has an environment of its own, and its settings."""

    label: str
    driver: str
    own: bool
    settings: Mapping[str, Any]


PARTICIPANTS: Mapping[str, Participant] = {
    "exact": Participant("Slipstream f32", "slipstream", False, {"native": True, "precision": "exact"}),
    "fast": Participant("Slipstream int8", "slipstream", False, {"native": True, "precision": "fast"}),
    "xla": Participant("Slipstream f32, XLA alone", "slipstream", False, {"native": False, "precision": "exact"}),
    "diffusers": Participant("diffusers f32", "diffusers_torch", True, {}),
    "openvino": Participant("OpenVINO f32", "openvino_model", True, {}),
}


@dataclass
class Measured:
    """A participant's numbers of one workload over all rounds. `output`: its last, `error`: why it has none."""

    seconds: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    output: np.ndarray | None = None
    error: str | None = None


def run(options: ImagesOptions, *, console: Console, progress: Console) -> dict[str, Any]:
    """Measures, prints tables, writes the JSON file where one is asked for; returns the report."""
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"the folder of {options.json} does not exist: make it first, or choose another place")
    names = options.chosen_participants
    found = {work: {name: Measured() for name in names} for work in options.chosen_workloads}
    peaks: list[float] = []
    with pinned(options.threads) as cpus, tempfile.TemporaryDirectory() as folder:
        python = _environment(names, progress.print)
        for work, rows in found.items():
            _convert(options, work, rows, python, len(cpus), Path(folder), progress)
        for turn in range(options.rounds):
            peaks.append(measure().floats)
            for work, rows in found.items():
                for name, row in rows.items():
                    if row.error is None:
                        progress.print(f"round {turn + 1} of {options.rounds}: {work}, {PARTICIPANTS[name].label}")
                        _one(options, work, name, row, python, len(cpus), Path(folder))
    report = _report(options, found, statistics.median(peaks))
    for work in found:
        _print(report["workloads"][work], work, options, console)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _environment(names: tuple[str, ...], said: Callable[[str], None]) -> Path | str:
    """The Python of the peers' environment, or why there is none."""
    if not any(PARTICIPANTS[name].own for name in names):
        return "not asked for"
    try:
        return install(ENVIRONMENT, said)
    except Unavailable as error:
        return str(error)


def _convert(
    options: ImagesOptions,
    work: str,
    rows: Mapping[str, Measured],
    python: Path | str,
    threads: int,
    folder: Path,
    progress: Console,
) -> None:
    """OpenVINO's file, in a process of its own: converting takes more memory than measuring."""
    row = rows.get("openvino")
    if row is None or row.error is not None:
        return
    progress.print(f"convert {work} for OpenVINO, at the first call")
    answer = _ask("openvino", _settings(options, work, "openvino", threads, folder) | {"convert": True}, python)
    row.error = answer.get("error")


def _one(
    options: ImagesOptions, work: str, name: str, row: Measured, python: Path | str, threads: int, folder: Path
) -> None:
    settings = _settings(options, work, name, threads, folder)
    answer = _ask(name, settings, python)
    if "error" in answer:
        row.error = answer["error"]
        return
    row.seconds += answer["seconds"]
    row.loads.append(answer["load"])
    row.firsts.append(answer["first"])
    row.versions = answer["versions"]
    row.output = np.load(settings["output"])


def _settings(options: ImagesOptions, work: str, name: str, threads: int, folder: Path) -> dict[str, Any]:
    form = f"{work}-{options.size}{'-narrow' * options.narrow}"
    return {
        "workload": work,
        "size": options.size,
        "narrow": options.narrow,
        "steps": options.steps,
        "threads": threads,
        "output": str(folder / f"{work}-{name}.npy"),
        "model": str(cache_folder() / "peers" / "images" / form / "model.xml"),
        "convert": False,
        **PARTICIPANTS[name].settings,
    }


def _ask(name: str, settings: Mapping[str, Any], python: Path | str) -> dict[str, Any]:
    """What a participant's process answers."""
    who = PARTICIPANTS[name]
    if who.own and isinstance(python, str):
        return {"error": python}
    command = [
        str(python) if who.own else sys.executable,
        "-P",
        str(DRIVERS / "start.py"),
        who.driver,
        json.dumps(settings),
    ]
    variables = {"OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"} | (
        {"PYTHONPATH": ""} if who.own else {}
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LONGEST, env=os.environ | variables
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {LONGEST:g} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": f"it ended with exit status {done.returncode}: {last_line(done.stderr)}"}
    return answer


def _report(options: ImagesOptions, found: Mapping[str, Mapping[str, Measured]], peak: float) -> dict[str, Any]:
    works = {}
    for work, rows in found.items():
        count = operations(workload(work, options.size, options.narrow))
        medians = {name: statistics.median(row.seconds) for name, row in rows.items() if row.seconds}
        reference = rows["diffusers"].output if "diffusers" in rows else None
        works[work] = {
            "operations": count,
            "peak": peak,
            "participants": {
                name: {
                    "label": PARTICIPANTS[name].label,
                    "error": row.error,
                    "versions": row.versions,
                    "seconds": row.seconds,
                    "load_seconds": row.loads,
                    "first_step_seconds": row.firsts,
                    "median": medians.get(name),
                    "rate": count / medians[name] if name in medians else None,
                    "share_of_peak": count / medians[name] / peak if name in medians else None,
                    "diffusers_over_it": _ratio(medians, "diffusers", name),
                    "openvino_over_it": _ratio(medians, "openvino", name),
                    **_distance(row.output, reference if name != "diffusers" else None),
                }
                for name, row in rows.items()
            },
        }
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "machine": describe_machine(),
        "options": asdict(options) | {"json": str(options.json)},
        "workloads": works,
    }


def _ratio(medians: Mapping[str, float], other: str, name: str) -> float | None:
    return medians[other] / medians[name] if {other, name} <= medians.keys() else None


def _distance(found: np.ndarray | None, reference: np.ndarray | None) -> dict[str, float | None]:
    """The largest difference over diffusers' largest number, and the peak signal to noise ratio in decibels."""
    if found is None or reference is None or found.shape != reference.shape:
        return {"difference": None, "psnr": None}
    gap = found.astype(np.float64) - reference
    noise, span = float(np.mean(gap**2)), float(reference.max() - reference.min())
    psnr = 10 * math.log10(span**2 / noise) if noise else None
    return {"difference": float(np.abs(gap).max() / np.abs(reference).max()), "psnr": psnr}


def _print(report: Mapping[str, Any], work: str, options: ImagesOptions, console: Console) -> None:
    """A table; lines with tabs in a pipe."""
    peak = f"{report['peak'] / 1e9:.0f} GFLOP/s"
    title = f"{work} at {options.size}x{options.size}, {report['operations'] / 1e12:.3f} TFLOP a step; peak {peak}"
    rows = [_cells(row) for row in report["participants"].values()]
    if not console.is_terminal:
        console.file.write("\n".join([title, "\t".join(_COLUMNS), *("\t".join(cells) for cells in rows)]) + "\n\n")
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["median"] is None:
        return (row["label"], f"failed: {row['error']}", *("",) * (len(_COLUMNS) - 2))

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        row["label"],
        f"{row['median']:.3f}",
        f"{min(row['seconds']):.3f}",
        f"{max(row['seconds']):.3f}",
        f"{row['rate'] / 1e9:.0f}",
        f"{row['share_of_peak']:.0%}",
        shown(row["diffusers_over_it"], ".2f"),
        shown(row["openvino_over_it"], ".2f"),
        shown(row["difference"], ".1e"),
        shown(row["psnr"], ".1f"),
    )
