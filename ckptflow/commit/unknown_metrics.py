"""Tells of a `KeepBest` whose metric no checkpoint has: the name may be misspelt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from ckptflow.commit.catalog import Summary, Unreadable
from ckptflow.commit.retention import KeepBest, Policy, rank

logger = logging.getLogger("ckptflow")


class UnknownMetrics:
    """Warns as soon as there is something that could have been deleted, and again whenever there is twice as much."""

    def __init__(self, url: str, policies: Sequence[Policy]) -> None:
        self._url = url
        self._next = 2  # checkpoints
        self._unknown = {policy.metric for policy in policies if isinstance(policy, KeepBest)}

    def warn(self, summaries: Iterable[Summary | Unreadable]) -> None:
        """`summaries` are of all that the policies decide about."""
        checkpoints = [each.checkpoint for each in summaries if isinstance(each, Summary)]
        if not self._unknown or len(checkpoints) < self._next:
            return
        self._next = 2 * len(checkpoints)
        there = ", ".join(sorted({name for each in checkpoints for name in each.metrics})) or "none"
        self._unknown = {metric for metric in self._unknown if not rank(checkpoints, metric, "min")}
        for metric in sorted(self._unknown):
            logger.warning(
                "%s: KeepBest(%r): no checkpoint has this metric, so all %d are retained until one has; they have: %s",
                self._url,
                metric,
                len(checkpoints),
                there,
            )
