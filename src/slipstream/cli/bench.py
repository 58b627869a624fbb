"""`slipstream bench`: measurements that users run too, one subcommand each."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from slipstream.bench.options import ServeOptions

bench = App(name="bench", default_parameter=Parameter(consume_multiple=True))


@bench.command
def serve(*, options: Annotated[ServeOptions, Parameter(name="*")] = ServeOptions()) -> int:
    """Send an open-loop load to any OpenAI endpoint: percentiles of TTFT, ITL and E2E, throughput, a report and a plot.

    The exit code is 1 if a request failed.
    """
    from slipstream.bench.serve import run
    from slipstream.cli.console import out

    report = run(options, console=out())
    return 1 if report.summary.failed else 0
