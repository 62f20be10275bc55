"""What to set, by what was measured. Pure; it says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ckptflow.bench.grid import MIB, Point, Setting

_LEAST, _UNKNOWN, _MOST = 0.05, 0.1, 0.25


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A setting to use, and why it and not another."""

    setting: Setting
    reasons: tuple[str, ...]


def recommend(points: Sequence[Point]) -> Recommendation:
    """The setting that saves as fast as any can be told to, and of those takes the least memory.

    What can be told: 5 %, or as much as the rounds of one setting differ by (the median of their spreads), 25 % at
    most; 10 % where nothing was measured twice. Saves decide: a job makes thousands of them and restores once. Among
    equals of the same memory the faster restore wins. Raises ValueError where nothing was measured.
    """
    measured = [point for point in points if point.rounds]
    if not measured:
        raise ValueError("nothing was measured")
    spreads = [point.save.spread for point in measured if point.rounds > 1]
    spread = median(spreads) if spreads else _UNKNOWN
    margin = min(max(_LEAST, spread), _MOST)
    fastest = max(measured, key=lambda point: point.save.bytes_per_s)
    good = [point for point in measured if point.save.bytes_per_s >= (1 - margin) * fastest.save.bytes_per_s]
    chosen = min(good, key=lambda point: (point.setting.memory_bytes, -point.restore.bytes_per_s, point.setting))
    reasons = [f"saves at {_rate(chosen.save.bytes_per_s)}, {chosen.save.share_of_raw:.0%} of the raw client"]
    if chosen is not fastest:
        reasons.append(
            f"within {1 - chosen.save.bytes_per_s / fastest.save.bytes_per_s:.0%} of the fastest "
            f"({fastest.setting}), with {chosen.setting.memory_bytes / MIB:,.0f} MiB of memory in place of "
            f"{fastest.setting.memory_bytes / MIB:,.0f}"
        )
    best_restore = max(measured, key=lambda point: point.restore.bytes_per_s)
    if chosen.restore.bytes_per_s < (1 - margin) * best_restore.restore.bytes_per_s:
        reasons.append(
            f"restores at {_rate(chosen.restore.bytes_per_s)}; {best_restore.setting} would at "
            f"{_rate(best_restore.restore.bytes_per_s)}"
        )
    elif len(measured) > 1:
        reasons.append(f"restores at {_rate(chosen.restore.bytes_per_s)}, as fast as any")
    else:
        reasons.append(f"restores at {_rate(chosen.restore.bytes_per_s)}; nothing else was measured")
    if spread > _MOST:
        reasons.append(f"rounds of one setting differ by {spread:.0%} either way: little can be told, run it again")
    elif spreads and spread > _LEAST:
        reasons.append(f"rounds of one setting differ by about {spread:.0%} either way: nearer than that all are alike")
    if min(point.rounds for point in measured) < 2:
        reasons.append("some settings were measured only once: more --seconds would tell more surely")
    return Recommendation(chosen.setting, tuple(reasons))


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / MIB:,.0f} MiB/s"
