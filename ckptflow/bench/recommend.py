"""What to set, by what was measured: the defaults, unless another setting is certainly faster. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptflow.bench.grid import MIB, Setting
from ckptflow.bench.rates import NARROW, Point, Rates

LEAST_GAIN = 1.1  # times as fast as the defaults: less is not worth a setting that somebody has to remember
_EQUAL = 0.1  # of those that are surely faster, what is not surely slower by so much counts as equal


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to use, whether that is surely faster than the defaults, and why."""

    setting: Setting
    beats_defaults: bool
    reasons: tuple[str, ...]


def recommend(points: Sequence[Point]) -> Recommendation:
    """The defaults, unless another setting saves faster than they do by more than the noise.

    That is: the interval of its median lies above that of the defaults, and the median is `LEAST_GAIN` times theirs or
    more. Of several such settings that may be as fast as the fastest, the one that takes the least memory. Saves
    decide: a job makes thousands of them and restores once. Raises ValueError if the defaults were not measured:
    which of the others was the fastest once says nothing.
    """
    measured = [point for point in points if point.rounds]
    usual = next((point for point in measured if point.setting.is_default), None)
    if usual is None:
        raise ValueError("the defaults were not measured: there is nothing to compare with")
    better = [point for point in measured if is_surely_faster(point.save, usual.save)]
    if not better:
        return Recommendation(usual.setting, False, (*_no_better(measured, usual), *_rates(usual)))
    best = max(point.save.bytes_per_s for point in better)
    good = [point for point in better if _may_reach(point.save, (1 - _EQUAL) * best)]
    chosen = min(good, key=lambda point: (point.setting.memory_bytes, -point.restore.bytes_per_s, point.setting))
    reasons = [
        f"saves at {_rate(chosen.save)}, the defaults at {_rate(usual.save)}: the difference is larger than the noise",
        f"takes {_memory(chosen.setting)} of memory, the defaults {_memory(usual.setting)}",
        f"restores at {_rate(chosen.restore)}, the defaults at {_rate(usual.restore)}",
    ]
    return Recommendation(chosen.setting, True, tuple(reasons))


def is_surely_faster(rates: Rates, usual: Rates) -> bool:
    """By more than the noise, and by enough to be worth it."""
    ours, theirs = rates.interval, usual.interval
    if ours is None or theirs is None:
        return False
    return ours[0] > theirs[1] and rates.bytes_per_s >= LEAST_GAIN * usual.bytes_per_s


def _may_reach(rates: Rates, bytes_per_s: float) -> bool:
    return rates.interval is not None and rates.interval[1] >= bytes_per_s


def _no_better(measured: Sequence[Point], usual: Point) -> tuple[str, ...]:
    others = [point for point in measured if point is not usual]
    if not others:
        return ("nothing else was measured",)
    if usual.save.interval is None or all(point.save.interval is None for point in others):
        return ("too few rounds to compare: at least five of each are needed; give more --seconds",)
    wide = "" if usual.save.is_narrow else f", which is large here: more than ±{NARROW:.0%}"
    return (f"no setting that was tried saves faster than the defaults by more than the noise{wide}",)


def _rates(point: Point) -> tuple[str, ...]:
    return (f"saves at {_rate(point.save)}, restores at {_rate(point.restore)}",)


def _memory(setting: Setting) -> str:
    return f"{setting.memory_bytes / MIB:,.0f} MiB"


def _rate(rates: Rates) -> str:
    return f"{rates.bytes_per_s / MIB:,.0f} MiB/s"
