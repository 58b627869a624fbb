"""What all workers of a server do, as one engine's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from msgspec.structs import replace

from slipstream.cluster.cargo import Info, Output, Request, Stats
from slipstream.cluster.slot import Slot

_LISTS: dict[str, list[Any]] = {"step_seconds": [], "step_tokens": []}
"""Statistics of the steps since a report, not since the start."""


def totals(slots: Sequence[Slot[Request, Output, Info, Stats]], newest: Slot[Request, Output, Info, Stats]) -> Stats:
    """All workers' statistics. Of the times of steps those of the newest report: the others' were told before."""
    if len(slots) == 1:
        return newest.stats
    names = newest.stats.__struct_fields__
    lists = {name: _LISTS[name] for name in names if name in _LISTS}
    each: list[Any] = [slot.stats if slot is newest else replace(slot.stats, **lists) for slot in slots]
    return replace(newest.stats, **{name: reduce(add, (getattr(stats, name) for stats in each)) for name in names})
