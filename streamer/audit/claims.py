"""Whether a claim position is in one row only, of all rows there are."""

from __future__ import annotations

import numpy as np

from streamer.audit.report import Report
from streamer.audit.spill import Spill
from streamer.records import I64

MEMORY_BYTES = 32_000_000
BUCKETS = 1024
"""A bucket is what must fit into memory: 8 bytes a claim, 8 MB of a billion."""


class Claims:
    """Eight bytes a claim, beyond `MEMORY_BYTES` of them in temporary files. One thread; a context
    manager."""

    def __init__(self) -> None:
        self._spill = Spill(MEMORY_BYTES)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.__exit__()

    def add(self, positions: I64) -> None:
        self._spill.add(positions % BUCKETS, positions)

    def check(self, report: Report) -> None:
        """After the last `add`."""
        for _, positions in self._spill.take():
            found, counts = np.unique(positions, return_counts=True)
            for position in found[counts > 1].tolist():
                report.problem("claim_twice", "metadata", f"claim {position} is in several rows")
