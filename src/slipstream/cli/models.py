"""`slipstream models`: the models that have a name of their own, and those that are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from slipstream.cli.console import out
from slipstream.cli.sizes import format_bytes


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """Settings of `slipstream models`.

    Parameters
    ----------
    json
        Print a JSON list.
    """

    json: bool = False


@dataclass(frozen=True)
class ListedModel:
    """A row. `path` is None for a built-in model that has not been fetched; `size` is in bytes, fetched or not."""

    name: str
    size: int
    format: str
    path: str | None
    about: str


def models(*, options: Annotated[ModelsOptions, Parameter(name="*")] = ModelsOptions()) -> None:
    """List the models that are built in or cached. Each name works with serve, chat, generate and pull."""
    rows = listed()
    if options.json:
        import orjson

        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    if out().is_terminal:
        _print_table(rows)
        return
    for row in rows:
        print("\t".join((row.name, format_bytes(row.size), row.format, row.path or "not fetched", row.about)))


def listed() -> list[ListedModel]:
    """Built-in models first, fetched or not, then those of the Hugging Face cache."""
    from slipstream.checkpoint import cached_models
    from slipstream.checkpoint.builtin import BUILTINS, EMBEDDED

    here = {model.name: model for model in cached_models()}
    rows = [
        ListedModel(name, model.size, "GGUF", str(here[name].path) if name in here else None, model.about)
        for name, model in BUILTINS.items()
    ]
    rows += [ListedModel(n, model.size, "safetensors", str(model.path), model.about) for n, model in EMBEDDED.items()]
    return rows + [
        ListedModel(name, model.size, model.format, str(model.path), "")
        for name, model in here.items()
        if name not in BUILTINS and name not in EMBEDDED
    ]


def _print_table(rows: list[ListedModel]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "size", "format", "where", "about", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        where = Text("not fetched", style="dim") if row.path is None else Text(row.path, overflow="fold")
        table.add_row(Text(row.name), format_bytes(row.size), row.format, where, Text(row.about, style="dim"))
    out().print(table)
