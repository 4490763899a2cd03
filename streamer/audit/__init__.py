"""Proof from the outputs alone: what `streamer dataset verify` and `streamer dataset stats` read is
the output folder and nothing else.

It shares no reading or writing code with the sink but the access to files, so that one mistake
cannot hide in both.
"""

from streamer.audit.report import NOTES, PROBLEMS, Finding, Report
from streamer.audit.stats import Statistics, statistics
from streamer.audit.verify import Audit

__all__ = ["NOTES", "PROBLEMS", "Audit", "Finding", "Report", "Statistics", "statistics"]
