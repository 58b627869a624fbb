"""What a compiled step does, read from its text: how often devices talk to each other."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.$-]+) (?:\([^\n]*\) -> [^\n]* )?\{$")
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(")
# How a TPU's compiler writes a reduce-scatter: a fusion of an all-reduce and of the slice of its result that is kept.
_SCATTERED = re.compile(r" fusion\(.*calls=%?all-reduce-scatter[\w.-]*")
_DONE = re.compile(r" \S*-(?:done|update)\(")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.$-]+)")
_BODY = re.compile(r" while\(.*body=%?([\w.$-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?(\S+), false_computation=%?([^\s,]+)")


class Collectives(NamedTuple):
    """Operations among devices by kind: those that a step does once, and those of one turn of each of its loops."""

    once: dict[str, int]
    looped: dict[str, int]


def collectives(text: str) -> Collectives:
    """Those of an optimized HLO module. Of branches the one with the most counts."""
    bodies, entry = _computations(text)

    @cache
    def count(name: str) -> tuple[Counter[str], Counter[str]]:
        once: Counter[str] = Counter()
        looped: Counter[str] = Counter()
        for line in bodies.get(name, ()):
            if _DONE.search(line):
                continue
            if _SCATTERED.search(line):
                once["reduce-scatter"] += 1
            elif found := _COLLECTIVE.search(line):
                once[found[1]] += 1
            elif body := _BODY.search(line):
                for part in count(body[1]):
                    looped += part
            elif branches := _BRANCHES.search(line):
                names = branches[1].split(",") if branches[1] else branches.groups()[1:]
                most = max(
                    (count(name.strip().lstrip("%")) for name in names), key=lambda both: sum(map(Counter.total, both))
                )
                once, looped = once + most[0], looped + most[1]
            else:
                for called in _CALLED.findall(line):
                    inner = count(called)
                    once, looped = once + inner[0], looped + inner[1]
        return once, looped

    once, looped = count(entry)
    return Collectives(dict(once), dict(looped))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry
