"""What was measured, and the rows that follow: medians, the best peer, and the ratio to it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from slipstream.bench.peers.participants import PARTICIPANTS, Participant
from slipstream.bench.peers.workloads import WORKLOADS, Workload

Key = tuple[str, str, str]
"""Model (a key of MODELS), workload, participant's name."""


@dataclass
class Results:
    """Filled while a comparison runs.

    `samples`: a number of each round. `errors`: why there are none, or no more. `versions`: of each participant's
    packages. `bandwidth`: GB/s that memory was read at, a number of each round.
    """

    samples: dict[Key, list[float]] = field(default_factory=dict)
    errors: dict[Key, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)

    def add(self, key: Key, value: float) -> None:
        """One round's number."""
        self.samples.setdefault(key, []).append(value)

    def fail(self, key: Key, reason: str) -> None:
        """Why a number is not there. The first reason stays."""
        self.errors.setdefault(key, reason)

    def median(self, key: Key) -> float | None:
        """The median of all rounds; None if there is none, or if some round failed."""
        samples = self.samples.get(key)
        return statistics.median(samples) if samples and key not in self.errors else None


@dataclass(frozen=True)
class Comparison:
    """One row: Slipstream in one precision beside its peers. `ratio` is over 1 where Slipstream is better."""

    model: str
    precision: str
    workload: str
    slipstream: float | None
    peers: dict[str, float | None]
    errors: dict[str, str]

    @property
    def kind(self) -> Workload:
        """What was measured."""
        return WORKLOADS[self.workload]

    @property
    def best_peer(self) -> str | None:
        """The peer with the best number; None where none has one."""
        there = {name: value for name, value in self.peers.items() if value is not None}
        if not there:
            return None
        best = max if self.kind.higher_is_better else min
        return best(there, key=lambda name: there[name])

    @property
    def ratio(self) -> float | None:
        """How many times better than the best peer: over 1 is better, for rates, times and memory alike."""
        if self.best_peer is None or not self.slipstream:
            return None
        best = self.peers[self.best_peer]
        if not best:
            return None
        return self.slipstream / best if self.kind.higher_is_better else best / self.slipstream

    def to_json(self) -> dict[str, Any]:
        """The row of the report. A peer without a number is null; `errors` says why, where there are any."""
        row: dict[str, Any] = {
            "model": self.model,
            "precision": self.precision,
            "workload": self.workload,
            "metric": self.kind.metric,
            "slipstream": _rounded(self.slipstream),
            **{name: _rounded(value) for name, value in self.peers.items()},
            "best_peer": self.best_peer,
            "ratio": _rounded(self.ratio),
        }
        return row | ({"errors": self.errors} if self.errors else {})


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def compare(results: Results, participants: Iterable[Participant] = PARTICIPANTS) -> list[Comparison]:
    """Every row that something is known of, in the order of models, workloads and precisions as they were measured."""
    keys = [*results.samples, *results.errors]
    models = dict.fromkeys(model for model, _, _ in keys)
    rows = []
    for model in models:
        there = {name for of, _, name in keys if of == model}
        entered = [one for one in participants if one.name in there]
        asked = {workload for of, workload, _ in keys if of == model}
        for name, workload in ((name, WORKLOADS[name]) for name in WORKLOADS if name in asked):
            peers = [] if name == "bandwidth" else [one.name for one in entered if one.precision is None]
            for ours in entered:
                if ours.precision is not None and ours.http == workload.through_http:
                    every = [*peers, ours.name]
                    rows.append(
                        Comparison(
                            model,
                            ours.precision,
                            name,
                            results.median((model, name, ours.name)),
                            {peer: results.median((model, name, peer)) for peer in peers},
                            {
                                who: results.errors[model, name, who]
                                for who in every
                                if (model, name, who) in results.errors
                            },
                        )
                    )
    return rows
