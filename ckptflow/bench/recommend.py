"""What to set, by what was measured. Pure; it says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptflow.bench.grid import MIB, Point, Setting

GOOD_ENOUGH = 0.95  # of the fastest save: below that, rounds differ by more


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A setting to use, and why it and not another."""

    setting: Setting
    reasons: tuple[str, ...]


def recommend(points: Sequence[Point]) -> Recommendation:
    """The setting that saves as fast as any, within 5 %, and of those takes the least memory.

    Saves decide: a job makes thousands of them and restores once. Among equals of the same memory the faster restore
    wins. Raises ValueError where nothing was measured.
    """
    measured = [point for point in points if point.rounds]
    if not measured:
        raise ValueError("nothing was measured")
    fastest = max(measured, key=lambda point: point.save.bytes_per_s)
    good = [point for point in measured if point.save.bytes_per_s >= GOOD_ENOUGH * fastest.save.bytes_per_s]
    chosen = min(good, key=lambda point: (point.setting.memory_bytes, -point.restore.bytes_per_s, point.setting))
    reasons = [f"saves at {_rate(chosen.save.bytes_per_s)}, {chosen.save.share_of_raw:.0%} of the raw client"]
    if chosen is not fastest:
        reasons.append(
            f"within {1 - chosen.save.bytes_per_s / fastest.save.bytes_per_s:.0%} of the fastest "
            f"({_words(fastest.setting)}), with {chosen.setting.memory_bytes / MIB:,.0f} MiB of memory in place of "
            f"{fastest.setting.memory_bytes / MIB:,.0f}"
        )
    best_restore = max(measured, key=lambda point: point.restore.bytes_per_s)
    if best_restore.restore.bytes_per_s > chosen.restore.bytes_per_s / GOOD_ENOUGH:
        reasons.append(
            f"restores at {_rate(chosen.restore.bytes_per_s)}; {_words(best_restore.setting)} would at "
            f"{_rate(best_restore.restore.bytes_per_s)}"
        )
    else:
        reasons.append(f"restores at {_rate(chosen.restore.bytes_per_s)}, as fast as any")
    if min(point.rounds for point in measured) < 2:
        reasons.append("some settings were measured only once: more --seconds would tell more surely")
    return Recommendation(chosen.setting, tuple(reasons))


def _words(setting: Setting) -> str:
    return f"{setting.concurrency} at once of {setting.shard_bytes / MIB:,.0f} MiB"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / MIB:,.0f} MiB/s"
