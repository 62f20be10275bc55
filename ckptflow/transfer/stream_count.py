"""How many transfers of one store are under way at once: the number is found by watching what each round of them gave.

One connection to S3 or GCS gives some tens of MB/s after tens of milliseconds; the link of the machine gives a hundred
times that, to many. Nobody knows beforehand how many pay: so the number grows while the throughput grows with it, and
falls where the storage says that it is too much. `decide` is the rule, on numbers alone; `Meter` makes the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST = 16  # to begin with: fewer would find the best number only after a save of some hundred MiB is over
FIRST_READING = 32  # a restore is over sooner, and a read that is refused has sent nothing in vain
FAR_S = 0.01  # what takes the quickest request so long is no server of this room: each connection has a rate of its own
GAIN = 1.3  # twice the streams must give that much more, or they are not worth their memory and requests
FEWER = 1.1  # times as much is what fewer must give: where all give the same, nothing speaks for another number
STEP = 4 / 3  # of the number, at a probe
PROBE_EVERY = 8  # rounds between two probes
CEILING_S = 60.0  # for so long a number that was refused is not tried again: while it falls, one step may take 20 s
REFUSALS = 1 / 6  # of a round's requests: a storage of many users refuses one now and then, whatever the number
LEAST_TRANSFERS = 4  # in a round, else one refusal of many users' storage, or one slow request, would be a verdict


@dataclass(frozen=True, slots=True)
class Round:
    """What `streams` transfers at once gave: the bytes of those that ended, and the seconds that they took, added up.

    `answered` of them have ended or were refused; `refusals` were refused, each counted once, however often it was
    tried. `elapsed_s` have passed since the end of the one that was judged before, also without any transfer.
    """

    streams: int
    answered: int
    size_bytes: int
    busy_s: float
    elapsed_s: float = 0.0
    refusals: int = 0

    @property
    def is_refused(self) -> bool:
        """Whether so many were refused that it is the number: of those under way, where few have been answered yet.

        A refusal comes quickly, so that the first answers are not like those to come.
        """
        return self.refusals > max(self.streams, self.answered, LEAST_TRANSFERS) * REFUSALS + 1

    @property
    def bytes_per_s(self) -> float:
        """Of all together: as many as are under way, each as fast as the mean of them."""
        return self.streams * self.size_bytes / self.busy_s if self.busy_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Count:
    """The number from here on, and what it was decided from.

    `base` is the number that was best so far and `base_bytes_per_s` what it gave; while `streams` is another one, that
    is being tried. `ceiling` is the number above which the storage asked not to go, for `ceiling_s` to come.
    """

    streams: int
    reason: str = "to begin with"
    base: int = 0
    base_bytes_per_s: float = 0.0
    is_doubling: bool = True
    quiet_rounds: int = 0
    tries_fewer: bool = True
    ceiling: int = 0
    ceiling_s: float = 0.0


def decide(now: Count, seen: Round, most: int) -> Count:
    """The number for the next round, between 1 and `most`.

    Refused: to half, and not above what was refused for a while, after which more is tried again. Else twice as
    many, as long as each doubling gives `GAIN` times as much; then the last number that paid stays, and now and then a
    third more, or a quarter fewer, are tried for one round, and again as long as that pays.
    """
    if seen.is_refused:
        fewer = max(1, seen.streams // 2)
        return Count(
            fewer,
            f"{seen.refusals} of {seen.answered} transfers were asked for fewer requests",
            base=fewer,
            is_doubling=False,
            ceiling=max(1, seen.streams - max(1, seen.streams // 8)),
            ceiling_s=CEILING_S,
        )
    if now.ceiling:
        now = _pass(now, seen.elapsed_s)
    limit = min(most, now.ceiling or most)
    if seen.refusals > seen.answered * REFUSALS:  # not the time to try more
        return _stay(now, f"{seen.refusals} of {seen.answered} transfers were refused")
    if not now.base_bytes_per_s:  # nothing to compare with
        return _grow(replace(now, base=seen.streams, base_bytes_per_s=seen.bytes_per_s), limit)
    gain = seen.bytes_per_s / now.base_bytes_per_s
    told = f"{seen.streams} gave {gain:.2f} times as much as {now.base}"
    if seen.streams > now.base:
        if gain < _needed(now.base, seen.streams):
            return _stay(now, told)
        return _grow(replace(now, base=seen.streams, base_bytes_per_s=seen.bytes_per_s, quiet_rounds=0), limit)
    if seen.streams < now.base:
        if gain >= FEWER:
            now = replace(now, base=seen.streams, base_bytes_per_s=seen.bytes_per_s)
        return _stay(now, told)
    # The same again: what it gives may change with the hour.
    now = replace(
        now, base_bytes_per_s=(now.base_bytes_per_s + seen.bytes_per_s) / 2, quiet_rounds=now.quiet_rounds + 1
    )
    return _probe(now, limit) if now.quiet_rounds >= PROBE_EVERY else replace(now, streams=now.base, reason="")


def _pass(now: Count, elapsed_s: float) -> Count:
    """Some of a ceiling's time has passed; once all of it has, more is the next that is tried."""
    left_s = now.ceiling_s - elapsed_s
    if left_s > 0:
        return replace(now, ceiling_s=left_s)
    return replace(now, ceiling=0, ceiling_s=0.0, quiet_rounds=PROBE_EVERY, tries_fewer=False)


def _needed(base: int, streams: int) -> float:
    """What more streams must give to be kept: `GAIN` for twice as many, in proportion for fewer."""
    return 1 + (GAIN - 1) * (streams / base - 1)


def _more(base: int, limit: int) -> int:
    """A third more, and one more at least: else a number that once fell to 1 would never rise."""
    return min(limit, max(base + 1, round(base * STEP)))


def _grow(now: Count, limit: int) -> Count:
    target = min(limit, 2 * now.base) if now.is_doubling else _more(now.base, limit)
    if target <= now.base:
        return _stay(now, f"{now.base} stays")
    return replace(
        now, streams=target, reason=f"{now.base} gave {now.base_bytes_per_s / 2**20:,.0f} MiB/s, more may pay"
    )


def _probe(now: Count, limit: int) -> Count:
    """Fewer and more in turn, and the other where there is no room for one."""
    fewer, more = max(1, min(now.base - 1, round(now.base / STEP))), _more(now.base, limit)
    target = fewer if fewer < now.base and (now.tries_fewer or more <= now.base) else max(more, now.base)
    return replace(now, streams=target, reason="a probe", quiet_rounds=0, tries_fewer=target > now.base)


def _stay(now: Count, reason: str) -> Count:
    return replace(now, streams=now.base or now.streams, is_doubling=False, quiet_rounds=0, reason=reason)


def first_number(most: int, usual: int, quickest_s: float | None) -> int:
    """How many to begin with, of a storage whose quickest request so far took `quickest_s` (None: nobody knows).

    To a storage that is far away all there may be: a round of fewer takes as long as one of all, and a restore has only
    a few rounds. To one that is near few give as much, and more requests only cost CPU.
    """
    return most if is_far(quickest_s) else min(usual, most)


def is_far(quickest_s: float | None) -> bool:
    """Of a storage whose quickest request took so long; one of which nobody knows is not."""
    return quickest_s is not None and quickest_s >= FAR_S


class Transfer:
    """One on its way: what a round counts of it."""

    __slots__ = ("began_s", "is_answered", "is_left", "round_number")

    def __init__(self) -> None:
        self.began_s = 0.0
        self.is_answered = False  # has ended, or was refused
        self.is_left = False  # what it brings is not wanted any more: it takes nobody's turn, and says nothing
        self.round_number = -1


class Meter:
    """Counts what transfers give, and decides at the end of each round. Not thread-safe; the time is told.

    A round is those that began in it: one that began before was under way beside another number of them.
    """

    def __init__(self, most: int, fixed: int | None, now_s: float, first: int = FIRST) -> None:
        self.most = max(1, min(most, fixed or most))
        self.choice = Count(max(1, min(fixed or first, self.most)))
        self.under_way: set[Transfer] = set()
        self._is_fixed = fixed is not None
        self._round_number = 0
        self._began_s = now_s
        self._peak, self._answered, self._bytes, self._busy_s, self._refusals = 0, 0, 0, 0.0, 0

    @property
    def has_room(self) -> bool:
        return self._wanted < self.choice.streams

    @property
    def _wanted(self) -> int:
        return sum(not transfer.is_left for transfer in self.under_way)

    def begin_with(self, first: int) -> None:
        """Another number to begin with, where nothing has been under way yet and the number is not fixed."""
        if not (self._is_fixed or self._peak or self._round_number or self.choice.base):
            self.choice = Count(max(1, min(first, self.most)))

    def begin(self, transfer: Transfer, now_s: float) -> None:
        """Under way from here to `end`."""
        transfer.round_number, transfer.began_s = self._round_number, now_s
        self.under_way.add(transfer)
        self._peak = max(self._peak, self._wanted)

    def refused(self, transfer: Transfer, now_s: float) -> None:
        """The storage asked for fewer: counted once for a transfer, and only beside the number that it began with."""
        if transfer.round_number == self._round_number and not (transfer.is_answered or transfer.is_left):
            transfer.is_answered = True
            self._answered += 1
            self._refusals += 1
            self._end_round(now_s)

    def end(self, transfer: Transfer, now_s: float, size_bytes: int | None) -> None:
        """It has moved so many bytes; None: it failed, or never began, which says nothing of the number."""
        if transfer not in self.under_way:
            return
        self.under_way.discard(transfer)
        if size_bytes is None or transfer.is_left or transfer.round_number != self._round_number:
            return
        self._answered += not transfer.is_answered
        self._bytes += size_bytes
        self._busy_s += now_s - transfer.began_s
        self._end_round(now_s)

    def _end_round(self, now_s: float) -> None:
        """Ends it once as many have been answered as may be under way, or enough were refused.

        A round in which fewer were under way than may be says nothing of the number, unless even these are refused.
        """
        seen = Round(self._peak, self._answered, self._bytes, self._busy_s, now_s - self._began_s, self._refusals)
        is_over = self._answered >= max(self.choice.streams, LEAST_TRANSFERS) or seen.is_refused
        if self._is_fixed or not is_over:
            return
        if seen.is_refused or self._peak >= self.choice.streams:
            self.choice = decide(self.choice, seen, self.most)
            self._began_s = now_s  # else its time is the next one's as well: a ceiling passes with it
        self._round_number += 1
        self._peak, self._answered, self._bytes, self._busy_s, self._refusals = 0, 0, 0, 0.0, 0
