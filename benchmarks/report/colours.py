"""One colour for each peer over all plots, told apart by colour-blind people and on light and dark ground."""

from __future__ import annotations

from benchmarks.report.comparisons import is_ours
from benchmarks.results import Run

OURS = "#D55E00"
LIMIT = "#8A8F98"
# Okabe and Ito's, without what is near to the accent, and Tol's yellow, which is seen on white.
_PEERS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#CCBB44", "#8C6BB1", "#6E4B3A", "#4C9085")


def colours(run: Run) -> dict[str, str]:
    """By peer: ours in the accent, raw baselines in grey, others by the order of the run."""
    found: dict[str, str] = {}
    other_count = 0
    for result in run.results:
        if result.peer in found:
            continue
        if is_ours(result):
            found[result.peer] = OURS
        elif result.is_limit:
            found[result.peer] = LIMIT
        else:
            found[result.peer] = _PEERS[other_count % len(_PEERS)]
            other_count += 1
    return found
