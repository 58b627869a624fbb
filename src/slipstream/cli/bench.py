"""`slipstream bench`: measurements that users run too, one subcommand each."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from slipstream.bench.images.options import ImagesOptions
from slipstream.bench.options import AccuracyOptions, PoolOptions, ReuseOptions, ServeOptions, StepOptions
from slipstream.bench.peers.options import PeersOptions

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


@bench.command
def accuracy(
    model: str = "smollm2-135m",
    /,
    *,
    options: Annotated[AccuracyOptions, Parameter(name="*")] = AccuracyOptions(),
) -> None:
    """Compare the native CPU kernels with float32 on real text, token by token, for the same weights.

    KL divergence of the predictions (nats a token), how often both find the same token likeliest, and perplexity.

    Parameters
    ----------
    model
        A built-in name, org/name or hf:org/name[@revision][:file] on Hugging Face, or a local folder or GGUF file.
    """
    from slipstream.bench.accuracy import run
    from slipstream.checkpoint import open_checkpoint, resolve
    from slipstream.cli.console import out
    from slipstream.cli.progress import StageBars

    with StageBars() as bars:
        path = resolve(model, progress=bars)
        run(open_checkpoint(path), options, console=out(), progress=bars)


@bench.command
def images(*, options: Annotated[ImagesOptions, Parameter(name="*")] = ImagesOptions()) -> int:
    """Measure a step of image models' denoisers beside diffusers and OpenVINO on this machine's CPU.

    Weights are random and the same for all; outputs are compared with diffusers'. The peers are installed in an
    environment of their own at the first call. A round takes some minutes, and the UNet 12 GB of memory.
    """
    from slipstream.bench.images.run import run
    from slipstream.cli.console import err, out

    report = run(options, console=out(), progress=err())
    works = report["workloads"].values()
    return 1 if any(work["participants"].get("exact", {}).get("error") for work in works) else 0


@bench.command
def reuse(model: str, /, *, options: Annotated[ReuseOptions, Parameter(name="*")] = ReuseOptions()) -> None:
    """Measure what it costs in quality to save passes of an image model: by step reuse, by first-block caching.

    Parameters
    ----------
    model
        An image model: a folder in diffusers' layout, or org/name on Hugging Face.
    """
    from slipstream.bench.reuse import run
    from slipstream.checkpoint import resolve
    from slipstream.checkpoint.image_opening import open_images
    from slipstream.cli.console import out
    from slipstream.cli.progress import StageBars

    with StageBars() as bars:
        path = resolve(model, progress=bars)
        run(open_images(path), options, console=out(), progress=bars)


@bench.command
def peers(*, options: Annotated[PeersOptions, Parameter(name="*")] = PeersOptions()) -> int:
    """Measure Slipstream beside other engines on this machine's CPU: tables, a report and a plot.

    Each peer is installed in an environment of its own, under the user's cache folder, at the first call. The exit code
    is 1 if Slipstream itself failed somewhere; a peer that fails is in the tables with its reason.
    """
    from slipstream.bench.peers.comparing import run
    from slipstream.cli.console import err, out

    report = run(options, console=out(), progress=err())
    return 1 if any(name.startswith("slipstream-") for _, _, name in report.results.errors) else 0


@bench.command
def pool(*, options: Annotated[PoolOptions, Parameter(name="*")] = PoolOptions()) -> int:
    """Time a decode step's products on one thread and on several, alone and beside a process that takes a processor."""
    from slipstream.bench.pool import run
    from slipstream.cli.console import out

    run(options, console=out())
    return 0


@bench.command
def step(
    model: str = "smollm2-135m",
    /,
    *,
    options: Annotated[StepOptions, Parameter(name="*")] = StepOptions(),
) -> None:
    """Show where the time of a step goes on this CPU, part by part, beside what the machine could do at most.

    Parameters
    ----------
    model
        A built-in name, org/name or hf:org/name[@revision][:file] on Hugging Face, or a local folder or GGUF file.
    """
    from slipstream.bench.step import run
    from slipstream.checkpoint import open_checkpoint, resolve
    from slipstream.cli.console import out
    from slipstream.cli.progress import StageBars

    with StageBars() as bars:
        path = resolve(model, progress=bars)
        run(open_checkpoint(path), options, console=out(), progress=bars)
