"""`slipstream quantize`: write a model with its weights in 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from slipstream.bench.quantize import QuantizeOptions


def quantize(
    model: str,
    out: Path,
    /,
    *,
    options: Annotated[QuantizeOptions, Parameter(name="*")] = QuantizeOptions(),
) -> None:
    """Write a model with its layers' matrices in 8 or 4 bits, in a format that vLLM and transformers read too.

    Weights are rounded to the nearest number, with the scale of each group that makes the smallest squared error. The
    result is compared with the original on real text: KL divergence of the predictions (nats a token), how often both
    find the same token likeliest, and perplexity.

    Parameters
    ----------
    model
        A built-in name, org/name or hf:org/name[@revision][:file] on Hugging Face, or a local folder or GGUF file.
    out
        A folder to write to. It must not be there yet, or be empty.
    """
    from slipstream.bench.quantize import run
    from slipstream.checkpoint import open_checkpoint, resolve
    from slipstream.cli.console import out as console
    from slipstream.cli.progress import StageBars

    with StageBars() as bars:
        path = resolve(model, progress=bars)
        run(open_checkpoint(path), out, options, console=console(), progress=bars)
