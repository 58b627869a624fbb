"""`slipstream compile` of an image model: its functions' needs as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax.numpy as jnp

from slipstream.cli.compile import talk
from slipstream.cli.sizes import format_bytes
from slipstream.diffusion.target import ADVICE, ImageReport, compile_images
from slipstream.diffusion.target_options import PictureOptions
from slipstream.engine.target_options import TargetOptions
from slipstream.errors import ConfigError
from slipstream.hardware.profile import target_of
from slipstream.parallel.topology import devices_of
from slipstream.spec.image import ImageCheckpoint


def compiled_images(
    model: str, checkpoint: ImageCheckpoint, settings: TargetOptions, pictures: PictureOptions
) -> tuple[dict[str, Any], list[str]]:
    """The report as JSON and for people. Raises ConfigError or OutOfMemory."""
    target = target_of(settings.target)
    tp = settings.tp or target.count
    if target.count % tp:
        raise ConfigError(f"--tp {tp} does not divide the {target.count} devices of {settings.target}")
    report = compile_images(
        checkpoint,
        pictures,
        devices_of(target)[:tp],
        dtype=jnp.dtype(settings.dtype),
        scheme=None if settings.scheme == "none" else settings.scheme,
        limit=int(target.profile.memory_bytes * settings.memory_fraction),
    )
    return _facts(report), lines(model, settings, report, target.profile.name)


def lines(model: str, settings: TargetOptions, report: ImageReport, device: str) -> list[str]:
    """The report for people."""
    scheme = settings.dtype if settings.scheme == "none" else settings.scheme
    one = f"{report.batch} picture{'s' * (report.batch > 1)} of {report.width}x{report.height} at once"
    verdict = f"fits with {one}" if report.free >= 0 else f"does not fit with {one}: {ADVICE}"
    left = "free" if report.free >= 0 else "missing"
    return [
        f"{model} ({scheme}) on {settings.target}: {verdict}",
        f"{report.tp} x {device}, of which each may use {format_bytes(report.limit)}:",
        f"  weights      {format_bytes(report.weights):>10}",
        f"  pictures     {format_bytes(report.pool):>10}  of {report.passes} passes of the model in a step",
        f"  temporaries  {format_bytes(report.temporaries):>10}",
        f"  code         {format_bytes(report.code):>10}",
        f"  {left:<12} {format_bytes(abs(report.free)):>10}",
        *(
            f"{part.name}: weights {format_bytes(part.weights)}, temporaries {format_bytes(part.needs.temporaries)}, "
            f"code {format_bytes(part.needs.code)}, compiled in {part.needs.seconds:.1f} s; "
            f"{talk(part.needs.collectives)}"
            for part in report.parts
        ),
    ]


def _facts(report: ImageReport) -> dict[str, Any]:
    facts = asdict(report)
    for part, told in zip(report.parts, facts["parts"], strict=True):
        told["needs"]["collectives"] = part.needs.collectives._asdict()
    sums = {name: getattr(report, name) for name in ("weights", "temporaries", "code", "free")}
    return facts | sums | {"fits": report.free >= 0}
