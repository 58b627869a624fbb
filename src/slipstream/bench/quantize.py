"""`slipstream quantize`: a model in fewer bits, and how far its predictions are from the original's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from slipstream.bench.accuracy import own_passages, print_rows, summarize
from slipstream.bench.divergence import measure_copy
from slipstream.bench.texts import passages
from slipstream.checkpoint import open_checkpoint
from slipstream.checkpoint.progress import Progress, silent
from slipstream.checkpoint.quantized.writing import Written, write_quantized
from slipstream.errors import ConfigError
from slipstream.kernels.compiles import use_compile_cache
from slipstream.models.registry import family
from slipstream.quant.rounding import SCHEMES
from slipstream.spec.source import Checkpoint
from slipstream.text import load_tokenizer
from slipstream.text.write import write_tokenizer


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Settings of `slipstream quantize`.

    Parameters
    ----------
    scheme
        Numbers of the layers' matrices. int8 and fp8 have a scale for each output; int4-g128 has one for each 128
        inputs of an output, int4-g64 and int4-g32 for fewer.
    round_inputs
        With int8 and fp8: ask servers to round the inputs of products to 8 bits as well, with a scale for each token.
        TPUs and GPUs then multiply in 8 bits; predictions change more.
    report
        Compare the result with the original on real text.
    text
        A file of your own text to compare on. None: prose and a chat that come with Slipstream.
    """

    scheme: Literal["int8", "int4-g128", "int4-g64", "int4-g32", "fp8"] = "int8"
    round_inputs: bool = False
    report: bool = True
    text: Path | None = None


def run(
    checkpoint: Checkpoint,
    out: Path,
    options: QuantizeOptions,
    *,
    console: Console | None = None,
    progress: Progress = silent,
) -> Written:
    """Write the quantized model to the folder `out`, print what was written and, if asked for, the comparison.

    Raises what `write_quantized` raises, and UnsupportedModel.
    """
    console = console or Console()
    members = family(checkpoint.config)
    plan = members.plan(members.from_hf(checkpoint.config))
    if "architectures" not in checkpoint.config:  # from a GGUF file
        named = {**checkpoint.config, "architectures": [members.architectures[0]]}
        checkpoint = Checkpoint(checkpoint.path, named, checkpoint.source, checkpoint.tokenizer, checkpoint.generation)
    if options.text is not None and not options.text.is_file():
        raise ConfigError(f"{options.text} is not a file")
    written = write_quantized(checkpoint, plan, SCHEMES[options.scheme], options.round_inputs, out, progress)
    _write_beside(checkpoint, out)
    console.print(
        f"{out}: {written.bytes:,} bytes; {written.quantized} matrices of {written.weights:,} weights "
        f"in {written.bits:.2f} bits each"
    )
    if options.report:
        _report(checkpoint, open_checkpoint(out), options, console, progress)
    return written


def _write_beside(checkpoint: Checkpoint, out: Path) -> None:
    """What a folder has in files and a GGUF file in its metadata."""
    if checkpoint.tokenizer is not None:
        write_tokenizer(checkpoint.tokenizer, out)
    ends = list(checkpoint.generation.eos_token_ids)
    if ends and not (out / "generation_config.json").exists():
        (out / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n", encoding="utf-8")


def _report(
    original: Checkpoint, copy: Checkpoint, options: QuantizeOptions, console: Console, progress: Progress
) -> None:
    if original.tokenizer is None:
        console.print("No comparison: the model has no tokenizer, so it cannot read text")
        return
    use_compile_cache(None)
    tokenizer = load_tokenizer(original.tokenizer)
    texts = passages(tokenizer) if options.text is None else own_passages(tokenizer, options.text)
    numbers = measure_copy(original, copy, [text.ids for text in texts], progress=progress)
    print_rows(summarize(options.scheme, "float32", texts, numbers), console)
