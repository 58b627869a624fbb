"""Which workers a request goes to: by role first, then by what `routing` says of load and prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.cluster.slot import Slot
from slipstream.routing import choose, digests

AnySlot = Slot[Any, Any, Any, Any]


@dataclass(frozen=True)
class Place:
    """Where a request goes: `slot` computes it now; `target`, if there is one, goes on after the first token.

    `uncached`: tokens that `slot` probably has to compute before it answers.
    """

    slot: AnySlot
    target: AnySlot | None
    uncached: int


def place(slots: Sequence[AnySlot], tokens: Sequence[int], threshold: int | None) -> Place | None:
    """Where a request of these tokens goes, or None if it must wait; the workers' memories note it.

    A worker that may decode is chosen first. If it lacks at least `threshold` of the tokens (None: never mind) and
    there is a prefill worker whose pages it can read, that one computes them. While no worker that may decode is up,
    prefill workers take whole requests: slower than they should be, but answered.
    """
    taking = [slot for slot in slots if slot.takes]
    if not taking:
        return None
    blocks = digests(tokens)
    decoding = _best([slot for slot in taking if slot.role != "prefill"] or taking, blocks, tokens)
    uncached = len(tokens) - decoding.cached(blocks)
    feeding = [slot for slot in taking if slot.role == "prefill" and slot is not decoding and slot.can_feed(decoding)]
    if threshold is None or uncached < threshold or not feeding:
        decoding.memory.add(blocks)
        return Place(decoding, None, uncached)
    computing = _best(feeding, blocks, tokens)
    uncached = len(tokens) - computing.cached(blocks)
    computing.memory.add(blocks)
    decoding.memory.add(blocks)
    return Place(computing, decoding, uncached)


def _best(slots: Sequence[AnySlot], blocks: Sequence[bytes], tokens: Sequence[int]) -> AnySlot:
    return slots[choose([slot.candidate(blocks) for slot in slots], len(tokens))]
