"""The command: measure, print, write."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from slipstream.bench.peers.options import PeersOptions
from slipstream.bench.peers.participants import PARTICIPANTS, Participant
from slipstream.bench.peers.plot import draw
from slipstream.bench.peers.progress import Bar
from slipstream.bench.peers.report import BEGIN, END, Report, print_report, write_docs, write_json
from slipstream.bench.peers.run import Launcher, launch, measure, pinned, read_bandwidth
from slipstream.bench.report import describe_machine
from slipstream.bench.serve import MISSING_EXTRA
from slipstream.errors import ConfigError


def run(
    options: PeersOptions,
    *,
    console: Console | None = None,
    progress: Console | None = None,
    command: Sequence[str] | None = None,
    participants: Sequence[Participant] = PARTICIPANTS,
    launcher: Launcher = launch,
    bandwidth: Callable[[], float] = read_bandwidth,
) -> Report:
    """Compares, prints the table to `console`, writes the JSON report, the plot and the document, returns the report.

    `progress`: where to tell what is going on; None: standard error. `command`: the command line to record; None: this
    process's. Raises ConfigError (a setting, a folder, the `bench` extra missing, another system than Linux). A peer
    that cannot take part, or fails, raises nothing: it is in the report with its reason.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("bench peers needs Linux: it pins processes to CPUs and reads their memory from /proc")
    try:
        import aiohttp  # noqa: F401
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING_EXTRA.format(error.name)) from None
    console = console or Console()
    started, begun = datetime.now(UTC), time.monotonic()
    output = options.json or Path(f"bench-peers-{started:%Y%m%d-%H%M%S}.json")
    picture = options.plot or output.with_suffix(".png")
    _check(options, output, picture)
    with _ended_by_terminate(), Bar(progress or Console(stderr=True), options.rounds * len(options.model_names)) as bar:
        results = measure(options, bar, participants=participants, launcher=launcher, bandwidth=bandwidth)
    with pinned(options.threads) as cpus:
        report = Report(
            created=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - begun,
            command=list(command if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]]),
            machine=describe_machine(),
            cpus=len(cpus),
            options=options,
            results=results,
        )
    write_json(report, output)
    draw(report, picture)
    if options.docs is not None:
        write_docs(report, options.docs, picture)
    print_report(report, console)
    console.print(f"Report: {output}\nPlot: {picture}", markup=False, highlight=False)
    return report


@contextmanager
def _ended_by_terminate() -> Iterator[None]:
    """SIGTERM unwinds, as control-C does: participants that are stopped in their tracks would outlive this process."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(options: PeersOptions, output: Path, picture: Path) -> None:
    """What would fail after the measuring is refused before it."""
    for path in (output, picture):
        if not path.parent.is_dir():
            raise ConfigError(f"the folder of {path} does not exist: make it first, or choose another place")
    if options.docs is not None:
        text = options.docs.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            raise ConfigError(f"{options.docs} needs the lines {BEGIN} and {END}, once each and in this order")
