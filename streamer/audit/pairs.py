"""Every pair of winners against the threshold."""

from __future__ import annotations

import numpy as np

from streamer.audit.report import Report
from streamer.records import F16


def check_pairs(
    keys: list[str],
    vectors: F16,
    threshold: float,
    certified: bool,
    report: Report,
    block: int = 2048,
) -> None:
    """Brute force over all winners: O(n²) time, n · d · 6 bytes. Nominates in float32, decides in
    float64 on the fp16 vectors.

    ``certified``: a pair is a problem; else it is what the user's settings may leave, and a note.
    """
    wide = vectors.astype(np.float32)
    n = len(keys)
    for top in range(0, n, block):
        for left in range(0, top + 1, block):
            near = np.argwhere(
                wide[top : top + block] @ wide[left : left + block].T >= threshold - 1e-4
            )
            for i, j in near:
                a, b = top + i, left + j
                if b < a:
                    similarity = float(
                        np.dot(vectors[a].astype(np.float64), vectors[b].astype(np.float64))
                    )
                    if similarity >= threshold:
                        detail = f"and {keys[b]} are both accepted, with similarity {similarity!r}"
                        if certified:
                            report.problem("pair", keys[a], detail)
                        else:
                            report.note("pair_missed", keys[a], detail)
