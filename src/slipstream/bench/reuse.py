"""`slipstream bench reuse`: what saving passes of an image model costs in quality, on pictures of the model itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slipstream.bench.options import ReuseOptions
from slipstream.checkpoint.progress import Progress, silent
from slipstream.diffusion.config import size_of
from slipstream.diffusion.engine import PictureEngine, PoolOptions
from slipstream.diffusion.loading import load_engine
from slipstream.diffusion.request import PictureRequest
from slipstream.diffusion.reuse import Quality, Reuse
from slipstream.diffusion.reuse_report import Way, report
from slipstream.kernels.compiles import use_compile_cache
from slipstream.models.image.registry import pipeline_of
from slipstream.spec.image import ImageCheckpoint


@dataclass(frozen=True)
class Line:
    """One way and its quality."""

    name: str
    quality: Quality

    @property
    def saved(self) -> float:
        """The share of passes that were not computed in full."""
        return 1 - self.quality.passes / self.quality.full_passes


def run(
    checkpoint: ImageCheckpoint, options: ReuseOptions, *, console: Console, progress: Progress = silent
) -> list[Line]:
    """Make the pictures in full and in each way, and print a table."""
    use_compile_cache(None)
    transformer = pipeline_of(checkpoint.pipeline).name == "flux"
    engine = load_engine(
        checkpoint,
        dtype=np.dtype(np.float32),
        options=PoolOptions(batches=(1, 2), first_block=0.0 if transformer else None),
        progress=progress,
    )
    ways: dict[str, Way] = {f"step reuse, every {every}": Reuse(every=every) for every in options.every}
    if transformer:
        ways |= {f"first block, {limit:g}": limit for limit in options.threshold}
    lines = measured(engine, ways, options)
    console.print(table(lines))
    if options.json is not None:
        options.json.write_text(json.dumps([_plain(line) for line in lines], indent=2) + "\n")
    return lines


def measured(engine: PictureEngine, ways: Mapping[str, Way], options: ReuseOptions) -> list[Line]:
    """The quality of each way over all pictures."""
    width, height = (None, None) if options.size is None else size_of(options.size)
    requests = [
        PictureRequest(id=str(i), prompt=prompt, width=width, height=height, steps=options.steps, seed=options.seed + i)
        for i, prompt in enumerate(options.prompt)
    ]
    found = report(engine, requests, list(ways.values()))
    return [Line(name, found[way]) for name, way in ways.items()]


def table(lines: list[Line]) -> Table:
    """A row for each way."""
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("way", "passes", "saved", "PSNR, dB", "largest difference"):
        made.add_column(title)
    for line in lines:
        one = line.quality
        made.add_row(
            line.name, f"{one.passes} of {one.full_passes}", f"{line.saved:.0%}", f"{one.psnr:.1f}", f"{one.worst:.3f}"
        )
    return made


def _plain(line: Line) -> dict[str, Any]:
    return {"way": line.name, "saved": line.saved, **line.quality._asdict()}
