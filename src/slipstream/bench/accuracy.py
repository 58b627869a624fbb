"""`slipstream bench accuracy`: what the native CPU kernels' rounding does to a model's predictions, on real text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slipstream.bench.divergence import Divergence, Mode, measure
from slipstream.bench.options import AccuracyOptions
from slipstream.bench.report import describe_machine
from slipstream.bench.texts import Passage, passages
from slipstream.checkpoint.progress import Progress, silent
from slipstream.errors import ConfigError, NoTokenizer
from slipstream.kernels.compiles import use_compile_cache
from slipstream.spec.source import Checkpoint
from slipstream.text import Tokenizer, load_tokenizer

SCHEMA = "slipstream.bench.accuracy/1"
OWN_TEXT = 1024  # tokens of one context, of a user's own text


@dataclass(frozen=True)
class Row:
    """One mode on one kind of text. KL is in nats a token, `top1` a share of 1, changes of perplexity in percent.

    `change_error` is the standard error of the change: the texts are a sample, and a change of its size says nothing.
    """

    precision: str
    kv_dtype: str
    text: str
    tokens: int
    kl_mean: float
    kl_p999: float
    kl_max: float
    top1: float
    perplexity: float
    reference_perplexity: float
    change_percent: float
    change_error: float


def run(
    checkpoint: Checkpoint, options: AccuracyOptions, *, console: Console | None = None, progress: Progress = silent
) -> list[Row]:
    """Measures, prints a table (lines with tabs in a pipe) and writes the JSON file; returns the rows.

    Raises NoTokenizer for a model without one, and what `measure` raises.
    """
    console = console or Console()
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"the folder of {options.json} does not exist: make it first, or choose another place")
    if checkpoint.tokenizer is None:
        raise NoTokenizer(f"{checkpoint.path.name} has no tokenizer, so it cannot read text")
    use_compile_cache(None)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    texts = passages(tokenizer) if options.text is None else own_passages(tokenizer, options.text)
    modes = [Mode(precision, kv) for precision in options.precision for kv in options.kv_dtype]
    found = measure(checkpoint, [text.ids for text in texts], modes, progress=progress)
    rows = [
        row
        for mode, numbers in zip(modes, found, strict=True)
        for row in summarize(mode.precision, mode.kv_dtype, texts, numbers)
    ]
    print_rows(rows, console)
    if options.json is not None:
        report = _report(checkpoint, options, rows)
        options.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None


def own_passages(tokenizer: Tokenizer, path: Path) -> list[Passage]:
    """A user's own text in contexts of OWN_TEXT tokens. Raises ConfigError where there is nothing to predict."""
    ids = tokenizer.encode(_read(path))
    cut = [Passage("prose", ids[i : i + OWN_TEXT]) for i in range(0, len(ids), OWN_TEXT)]
    if len(ids) < 2:
        raise ConfigError("--text has less than two tokens: there is nothing to predict")
    return [text for text in cut if len(text.ids) > 1]


def summarize(precision: str, kv_dtype: str, texts: Sequence[Passage], numbers: Divergence) -> list[Row]:
    """A row for all texts together, and one for each kind if there are several. `numbers` as `measure` gives them."""
    kinds = np.repeat([text.kind for text in texts], [len(text.ids) - 1 for text in texts])
    names = list(dict.fromkeys(kinds.tolist()))
    parts = {name: numbers[kinds == name] for name in names if len(names) > 1}
    return [_row(precision, kv_dtype, name, part) for name, part in {"all": numbers, **parts}.items()]


def _row(precision: str, kv_dtype: str, text: str, numbers: Divergence) -> Row:
    worse = numbers.loss - numbers.reference_loss
    growth = math.exp(worse.mean())
    return Row(
        precision=precision,
        kv_dtype=kv_dtype,
        text=text,
        tokens=len(worse),
        kl_mean=float(numbers.kl.mean()),
        kl_p999=float(np.quantile(numbers.kl, 0.999)),
        kl_max=float(numbers.kl.max()),
        top1=float(numbers.agrees.mean()),
        perplexity=math.exp(numbers.loss.mean()),
        reference_perplexity=math.exp(numbers.reference_loss.mean()),
        change_percent=100 * (growth - 1),
        change_error=100 * growth * float(worse.std()) / math.sqrt(len(worse)),
    )


COLUMNS = (
    "precision",
    "KV",
    "text",
    "tokens",
    "KL",
    "KL p99.9",
    "same top token",
    "perplexity",
    "in float32",
    "change",
)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.precision,
        row.kv_dtype,
        row.text,
        f"{row.tokens:,}",
        f"{row.kl_mean:.2g}",
        f"{row.kl_p999:.2g}",
        f"{row.top1:.2%}",
        f"{row.perplexity:.3f}",
        f"{row.reference_perplexity:.3f}",
        f"{row.change_percent:+.3f}% ± {row.change_error:.3f}",
    )


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """A table, or lines with tabs in a pipe."""
    if not console.is_terminal:
        for cells in (COLUMNS, *map(_cells, rows)):
            console.file.write("\t".join(cells) + "\n")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:3] else "right")
    for row in rows:
        table.add_row(*_cells(row), style=None if row.text == "all" else "dim")
    console.print(table)


def _report(checkpoint: Checkpoint, options: AccuracyOptions, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "machine": describe_machine(),
        "model": checkpoint.path.name,
        "text": None if options.text is None else str(options.text),
        "rows": [asdict(row) for row in rows],
    }
