"""Two kinds of metric that the client library does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streamer.records import F64


class Scraped(Collector):
    """Values that are read when somebody looks, and cost the line nothing."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


class BulkHistogram(Collector):
    """A histogram that takes an array at a time: an epoch's 50 000 ages one by one would hold the
    commit up for 0.1 s."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._state = (np.zeros(len(bounds) + 1, dtype=np.int64), 0.0)

    def observe(self, values: F64) -> None:
        """(n,) float64. One thread writes; a scrape sees counts and sum of the same moment, as they
        are replaced together."""
        counts, total = self._state
        slots = np.searchsorted(self._bounds, values, side="left")
        self._state = (
            counts + np.bincount(slots, minlength=len(counts)),
            total + float(values.sum()),
        )

    def collect(self) -> Iterable[Metric]:
        counts, total = self._state
        running = np.cumsum(counts)
        buckets = [
            (str(float(bound)), float(n)) for bound, n in zip(self._bounds, running, strict=False)
        ]
        yield HistogramMetricFamily(
            self._name,
            self._documentation,
            buckets=[*buckets, ("+Inf", float(running[-1]))],
            sum_value=total,
        )
