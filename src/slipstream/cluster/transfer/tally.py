"""Counts of one worker's transfers, from several threads."""

from __future__ import annotations

import threading

from slipstream.api.engine import TransferFailure, TransferStats


class Tally:
    """Adds up what happened."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = TransferStats()

    @property
    def stats(self) -> TransferStats:
        """All of it so far."""
        with self._lock:
            return self._sum

    def add(self, what: TransferStats) -> None:
        """Count something."""
        with self._lock:
            self._sum = self._sum + what

    def fail(self, reason: TransferFailure) -> None:
        """Count a failure."""
        self.add(TransferStats(failures={reason: 1}))
