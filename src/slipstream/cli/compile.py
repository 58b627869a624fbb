"""`slipstream compile`: whether a model fits accelerators that are not here, asked of their compiler."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from slipstream.cli.console import out
from slipstream.cli.sizes import format_bytes
from slipstream.engine.target_options import TargetOptions

if TYPE_CHECKING:
    from slipstream.engine.target import StepReport, TargetReport


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Settings of the output.

    Parameters
    ----------
    json
        Print JSON.
    """

    json: bool = False


def compile(
    model: str,
    *,
    settings: Annotated[TargetOptions, Parameter(name="*")] = TargetOptions(),
    options: Annotated[CompileOptions, Parameter(name="*")] = CompileOptions(),
) -> None:
    """Compile a model's prefill and decode steps for TPUs or GPUs without having them, and say what fits.

    MODEL is a folder with a config.json (weights are not needed), or llama-3.1-8b, llama-3.1-70b, mixtral-8x7b or
    qwen3-32b. The compilers are libtpu and XLA's CUDA plugin: pip install 'slipstream[tpu-compile,gpu-compile]'.
    """
    # Compiling for a target needs no device, and looking for one would take a TPU from who uses it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from slipstream.checkpoint.outline import outline
    from slipstream.engine.target import compile_for_target

    report = compile_for_target(outline(model), settings)
    if options.json:
        import orjson

        print(orjson.dumps(_facts(report), option=orjson.OPT_INDENT_2).decode())
        return
    for line in lines(model, settings, report):
        out().print(line)


def lines(model: str, settings: TargetOptions, report: TargetReport) -> list[str]:
    """The report for people."""
    scheme = settings.dtype if settings.scheme == "none" else settings.scheme
    tokens = report.pages * report.page_size
    each = f"{report.max_seqs} sequences of {report.max_model_len:,} tokens"
    verdict = f"fits with {each}" if report.fits else f"fits, but not with {each} at once: some would wait"
    temporaries = max(report.prefill.temporaries, report.decode.temporaries)
    code = report.prefill.code + report.decode.code
    free = report.limit - report.weights - report.kv - temporaries - code
    return [
        f"{model} ({scheme}) on {settings.target}: {verdict}",
        f"{report.replicas} replica{'s' * (report.replicas > 1)} on {report.tp} x {report.device}, of which each may "
        f"use {format_bytes(report.limit)}:",
        f"  weights      {format_bytes(report.weights):>10}",
        f"  KV cache     {format_bytes(report.kv):>10}  {tokens:,} tokens in pages of {report.page_size}",
        f"  temporaries  {format_bytes(temporaries):>10}",
        f"  code         {format_bytes(code):>10}",
        f"  free         {format_bytes(max(free, 0)):>10}",
        f"The largest that fits: {report.largest_batch:,} sequences of {report.max_model_len:,} tokens, or "
        f"{report.max_seqs} of {report.largest_context:,}",
        *(_step(name, step) for name, step in (("prefill", report.prefill), ("decode", report.decode))),
    ]


def _step(name: str, step: StepReport) -> str:
    talk = [
        f"{_counted(found)} {when}"
        for found, when in ((step.collectives.looped, "in each turn of its loops"), (step.collectives.once, "once"))
        if found
    ]
    return (
        f"{name}: {step.tokens} tokens of {step.rows} sequences, compiled in {step.seconds:.1f} s; "
        f"{'; '.join(talk) or 'no device waits for another'}"
    )


def _counted(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))


def _facts(report: TargetReport) -> dict[str, Any]:
    facts = asdict(report)
    for name in ("prefill", "decode"):
        facts[name]["collectives"] = getattr(report, name).collectives._asdict()
    return facts | {
        "fits": report.fits,
        "largest_batch": report.largest_batch,
        "largest_context": report.largest_context,
    }
