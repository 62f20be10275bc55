"""A run of the suite as a page that people look at, and its time lines as traces."""

from __future__ import annotations

from benchmarks.report.page import write_report
from benchmarks.report.trace import write_trace

__all__ = ["write_report", "write_trace"]
