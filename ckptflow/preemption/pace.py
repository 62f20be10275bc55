"""How often workers ask one another whether any of them was told to leave: about once a second, and all at one check.

Asking takes all workers, so it must fall on the same check of each, though their clocks and speeds differ. Hence a
clock that all workers share: it advances at each check by what such a check was last *agreed* to take, and nothing but
the steps and the exchanged numbers goes into it. Each worker's own clock only measures what it will say next time.
"""

from __future__ import annotations

from collections.abc import Sequence

LOOK_EVERY_US = 1_000_000
_MIN_EXPECTED_US = LOOK_EVERY_US // 128 + 1  # so many checks at most between looks, should they suddenly become slow
_BURST_US = LOOK_EVERY_US // 8  # the first look into a row of checks of the other kind


class Pace:
    """Two kinds of checks are told apart, since they take different times: after a training step, and with the step of
    the check before (batches of an evaluation).

    What is expected rises at once with what is measured, and falls by half at most from one look to the next: slow is
    believed at once, fast only by and by.
    """

    def __init__(self) -> None:
        self._expected_us = [LOOK_EVERY_US, LOOK_EVERY_US]  # same step again, new step; agreed
        self._spent_us = 0  # on the shared clock, since the last look
        self._step = -1
        self._kind = -1
        self._checked_s: float | None = None
        self._counts, self._took_s = [0, 0], [0.0, 0.0]  # this worker's own, since the last look

    def is_due(self, step: int, now_s: float) -> bool:
        """Whether the workers look at this check; the same on all workers that checked the same steps."""
        kind = int(step != self._step)
        if self._checked_s is not None:
            self._counts[kind] += 1
            self._took_s[kind] += now_s - self._checked_s
        if kind != self._kind:
            self._expected_us[kind] = max(self._expected_us[kind], _BURST_US)
        self._spent_us += self._expected_us[kind]
        self._step, self._kind, self._checked_s = step, kind, now_s
        return self._spent_us >= LOOK_EVERY_US

    def news(self) -> tuple[int, int]:
        """What a check of either kind took here since the last look, in microseconds; 0: there was none."""
        same, new = (
            max(1, int(took_s * 1e6 / count)) if count else 0
            for took_s, count in zip(self._took_s, self._counts, strict=True)
        )
        return same, new

    def looked(self, everyone: Sequence[tuple[int, int]], now_s: float) -> None:
        """Takes in every worker's `news`: the slowest counts, and the next look follows from it."""
        for kind in (0, 1):
            slowest_us = max(news[kind] for news in everyone)
            if slowest_us:
                self._expected_us[kind] = max(slowest_us, self._expected_us[kind] // 2, _MIN_EXPECTED_US)
        self._spent_us = 0
        self._checked_s = now_s  # waiting for the others was no part of a step
        self._counts, self._took_s = [0, 0], [0.0, 0.0]
