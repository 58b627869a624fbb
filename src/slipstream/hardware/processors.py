"""Which processors each of several processes gets, so that they do not take turns on the same ones."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from slipstream.hardware.host import read_host


def divided(
    wanted: Sequence[int | None], root: Path = Path("/"), mask: Collection[int] | None = None
) -> list[tuple[int, ...]] | None:
    """Processors for `len(wanted)` processes: as many as each wants, and equal parts of the rest for those with None.

    Two hardware threads of one core stay together, as far as the numbers allow, and so do neighbours in a package.
    `mask`: the processors that there are; None: this process's. None is returned where they cannot be divided: there
    are fewer than processes, fewer than wanted, a control group allows less time than they have, or the system has no
    masks.
    """
    if mask is None:
        ask = getattr(os, "sched_getaffinity", None)  # Linux alone has masks.
        if ask is None:
            return None
        mask = ask(0)
    ordered = sorted(mask, key=lambda processor: (*_place(root, processor), processor))
    free = len(ordered) - sum(count for count in wanted if count is not None)
    open_ended = sum(1 for count in wanted if count is None)
    if free < open_ended or read_host(root, mask).cpus < len(ordered):
        return None
    parts, at, given = [], 0, 0
    for count in wanted:
        if count is None:
            count = free // open_ended + (given < free % open_ended)
            given += 1
        parts.append(tuple(ordered[at : at + count]))
        at += count
    return parts


def _place(root: Path, processor: int) -> tuple[int, int]:
    """Its package and core; zeros where nothing is told."""
    folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    return _number(folder / "physical_package_id"), _number(folder / "core_id")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
