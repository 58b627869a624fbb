"""Who is served first. A policy is one sort key: the smallest is admitted first, the largest gives way first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from slipstream.engine.request import Sequence

Policy = Callable[[Sequence], tuple[float, ...]]


def fcfs(sequence: Sequence) -> tuple[float, ...]:
    """First come, first served: by the front's clock, then by the order of `Scheduler.add`.

    A preempted sequence keeps its arrival and so its place; a replayed one, too.
    """
    return (sequence.request.arrival, sequence.order)


def priority_first(sequence: Sequence) -> tuple[float, ...]:
    """Lower `priority` numbers first, equal ones first come, first served."""
    return (sequence.request.priority, *fcfs(sequence))


POLICIES: Mapping[str, Policy] = {"fcfs": fcfs, "priority": priority_first}


def victim(running: Iterable[Sequence], policy: Policy) -> Sequence:
    """The sequence to preempt: the one that the policy serves last. Raises ValueError if none runs."""
    return max(running, key=policy)
