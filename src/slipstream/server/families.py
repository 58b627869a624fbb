"""Families of metrics: a name with its help, labels and buckets, made once, whichever models have series in it."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

NAMES = ("model_name", "engine")
"""The labels that vLLM's metrics have."""


class Families:
    """Those of one registry. Who asks first for a name says what it is; help and buckets of later ones are ignored."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def gauge(self, name: str, text: str, labels: Sequence[str] = NAMES) -> Gauge:
        """The gauge of that name."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, labels, registry=self._registry)
        return self._gauges[name]

    def counter(self, name: str, text: str, labels: Sequence[str] = NAMES) -> Counter:
        """The counter of that name."""
        if name not in self._counters:
            self._counters[name] = Counter(name, text, labels, registry=self._registry)
        return self._counters[name]

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        """The histogram of that name."""
        if name not in self._histograms:
            self._histograms[name] = Histogram(name, text, NAMES, registry=self._registry, buckets=buckets)
        return self._histograms[name]
