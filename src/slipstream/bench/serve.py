"""`slipstream bench serve`: an open-loop load on an OpenAI endpoint.

Open-loop: arrivals are scheduled beforehand and do not wait for answers, as users do not wait for one another. Latency
counts from the scheduled arrival, so a server (or a generator) that falls behind cannot hide it: Gil Tene's
"coordinated omission".
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from slipstream.bench.options import ServeOptions
from slipstream.bench.progress import Bar
from slipstream.bench.report import Report, describe_machine, print_report, write_json
from slipstream.bench.rows import Row, summarize
from slipstream.bench.workload import Planned, plan
from slipstream.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    import aiohttp

MISSING_EXTRA = "bench needs {}, which comes with an extra: pip install 'slipstream[bench]'"


def run(options: ServeOptions, *, console: Console | None = None, command: Sequence[str] | None = None) -> Report:
    """Loads the endpoint, prints the tables, writes the JSON report and the plot, and returns the report.

    `command`: the command line to record; None: this process's. Raises ConfigError (a setting, a prompts file, the
    `bench` extra missing) and EndpointError (nothing answers, the key is refused, the warm-up fails). Failed requests
    raise nothing: they are in the report.
    """
    try:
        import aiohttp  # noqa: F401
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING_EXTRA.format(error.name)) from None
    from slipstream.bench.plot import draw

    console = console or Console()
    started = datetime.now(UTC)
    output = options.output or Path(f"bench-serve-{started:%Y%m%d-%H%M%S}.json")
    picture = options.plot or output.with_suffix(".png")
    for path in (output, picture):
        if not path.parent.is_dir():
            raise ConfigError(f"the folder of {path} does not exist: make it first, or choose another place")
    warm, load = plan(options)
    model, rows = asyncio.run(_drive(options, warm, load, console))
    report = Report(
        created=started.isoformat(timespec="seconds"),
        command=list(command if command is not None else sys.argv),
        machine=describe_machine(),
        options=options,
        model=model,
        summary=summarize(rows, options.limits),
        rows=rows,
    )
    write_json(report, output)
    draw(report, picture)
    print_report(report, console)
    console.print(f"Report: {output}\nPlot: {picture}", markup=False, highlight=False)
    return report


async def _drive(
    options: ServeOptions, warm: list[Planned], load: list[Planned], console: Console
) -> tuple[str, list[Row]]:
    import aiohttp

    from slipstream.bench.client import first_model, send

    key = os.environ.get(options.api_key_variable, "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # No limit of connections here: the only one is --concurrency, which the report knows about.
    session = aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=options.timeout, sock_connect=min(options.timeout, 30)),
    )
    async with session:
        model = options.model or await first_model(session, options.api_url, options.api_key_variable)
        with Bar(console, warm=len(warm), load=len(load)) as bar:
            for planned in warm:
                row = await send(session, options.api_url, options.endpoint, model, planned, time.perf_counter)
                if row.failure is not None:
                    raise EndpointError(f"a warm-up request failed ({row.failure.kind}): {row.failure.message}")
                bar.warmed()
            rows = await _open_loop(session, options, model, load, bar.finished)
    return model, rows


async def _open_loop(
    session: aiohttp.ClientSession,
    options: ServeOptions,
    model: str,
    load: list[Planned],
    finished: Callable[[Row], None],
) -> list[Row]:
    """Starts each request at its time, whatever has become of the others. Rows in the order of arrival."""
    from slipstream.bench.client import send

    # A semaphore wakes its waiters in order, so requests start in the order of their arrivals.
    turns = asyncio.Semaphore(options.concurrency) if options.concurrency else None
    zero = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - zero

    async def one(planned: Planned) -> Row:
        if turns is None:
            row = await send(session, options.api_url, options.endpoint, model, planned, clock)
        else:
            async with turns:
                row = await send(session, options.api_url, options.endpoint, model, planned, clock)
        finished(row)
        return row

    async with asyncio.TaskGroup() as group:
        tasks = []
        for planned in load:
            wait = planned.at - clock()
            if wait > 0 and not math.isinf(options.rate):
                await asyncio.sleep(wait)
            tasks.append(group.create_task(one(planned)))
    return [task.result() for task in tasks]
