"""`slipstream compile`: whether a model fits accelerators that are not here, asked of their compiler."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from slipstream.cli.console import out
from slipstream.cli.sizes import format_bytes
from slipstream.diffusion.target_options import PictureOptions
from slipstream.engine.target_options import TargetOptions

if TYPE_CHECKING:
    from slipstream.engine.target import StepReport, TargetReport
    from slipstream.kernels.ragged import Kernels
    from slipstream.parallel.hlo import Collectives


ATTENTION: Final[dict[Kernels, str]] = {
    "reference": "XLA's own code",
    "pallas_tpu": "Pallas",
    "pallas_gpu": "Pallas. Where cuDNN is it computes chunks of prompts: to compile that pip install nvidia-cudnn-cu12",
    "cudnn": "cuDNN for chunks of prompts, Pallas for the rest. What cuDNN itself takes is known on a GPU only",
}
"""Who computes it."""


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
    pictures: Annotated[PictureOptions, Parameter(name="*")] = PictureOptions(),
    options: Annotated[CompileOptions, Parameter(name="*")] = CompileOptions(),
) -> None:
    """Compile a model's steps for TPUs or GPUs without having them, and say what fits.

    MODEL is a folder with a config.json or, of an image model, with a model_index.json (weights are not needed), or
    llama-3.1-8b, llama-3.1-70b, mixtral-8x7b, qwen3-32b, sdxl or flux-dev. The compilers are libtpu and XLA's CUDA
    plugin: pip install 'slipstream[tpu-compile,gpu-compile]'.
    """
    # Compiling for a target needs no device, and looking for one would take a TPU from who uses it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from slipstream.checkpoint.image_outline import image_outline

    checkpoint = image_outline(model)
    if checkpoint is None:
        from slipstream.checkpoint.outline import outline
        from slipstream.engine.target import compile_for_target

        report = compile_for_target(outline(model), settings)
        facts, text = _facts(report), lines(model, settings, report)
    else:
        from slipstream.cli.compile_images import compiled_images

        facts, text = compiled_images(model, checkpoint, settings, pictures)
    if options.json:
        import orjson

        print(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
        return
    for line in text:
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
        f"attention: {ATTENTION[report.kernels]}",
        *(_step(name, step) for name, step in (("prefill", report.prefill), ("decode", report.decode))),
    ]


def _step(name: str, step: StepReport) -> str:
    return (
        f"{name}: {step.tokens} tokens of {step.rows} sequences, compiled in {step.seconds:.1f} s; "
        f"{talk(step.collectives)}"
    )


def talk(collectives: Collectives) -> str:
    """How often devices wait for each other."""
    said = [
        f"{_counted(found)} {when}"
        for found, when in ((collectives.looped, "in each turn of its loops"), (collectives.once, "once"))
        if found
    ]
    return "; ".join(said) or "no device waits for another"


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
