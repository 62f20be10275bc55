"""Signs of progress: a worker leaves them while it works for the others, and who waits for it looks for them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import msgspec

from ckptflow.decoding import decode_json
from ckptflow.peers.post import SignPost, UnreachableError
from ckptflow.stops import awake_s

CALLS, STORAGE = "calls", "storage"  # what a worker shows progress in: its calls, on the main thread; its storage's

_MARKS_IN_LIMIT = 8  # signs that fit into the time after which a worker is given up
_MAX_MARK_S = 60.0
_LOOKS_IN_LIMIT = 4  # for signs
_FIRST_LOOK_S = 2.0
_LOOK_S = 0.25  # for a sign: it is replaced by being deleted and written
_BUDGET_S = 2.0  # for the signs of all workers together, if most of them have left none
_SHORTEST_LOOK_S = 0.002
MANY = 32  # workers: looking after all of them is for worker 0 then, and takes its time
WAITS_EVERY_S = 5.0  # at most, between signs that say for whom worker 0 waits then
_numbers = itertools.count()


class _Mark(msgspec.Struct, frozen=True):
    """A sign of progress. `topic`: of the round in which that worker waits for others."""

    number: int
    doing: str
    topic: str = ""


class Marks:
    """The signs that one worker leaves; seldom, however often it has something to tell. From any thread."""

    def __init__(self, post: SignPost, worker: int, limit_s: float, longest_s: float = _MAX_MARK_S) -> None:
        self._post = post
        self._worker = worker
        self.every_s = min(limit_s / _MARKS_IN_LIMIT, longest_s)
        self._left_at: dict[str, float] = {}

    def leave(self, kind: str, doing: str, topic: str = "") -> None:
        now = time.monotonic()
        if now - self._left_at.get(kind, -math.inf) < self.every_s:
            return
        self._left_at[kind] = now
        mark = _Mark(next(_numbers), doing, topic)
        self._post.replace(_key(kind, self._worker), msgspec.json.encode(mark).decode())


class Signs:
    """The signs of other workers, as seen by one that has waited for them since `started`."""

    def __init__(
        self,
        post: SignPost,
        kind: str,
        started: float,
        limit_s: float,
        every_s: float,
        count: int,
        topic: str | None = None,
    ) -> None:
        """`every_s`: how often others leave one. `count`: how many workers there are. `topic`: of the round in which
        they are waited for."""
        self.doing: dict[int, str] = {}  # of those who have shown progress since
        self._post = post
        self._kind = kind
        self._topic = topic
        self._started = started
        self._limit_s = limit_s
        self._every_s = every_s
        self._pause_s = max(every_s, _FIRST_LOOK_S)  # between looks once the limit is over
        self._first_look = math.inf
        self._next_look = started + min(_FIRST_LOOK_S if count <= MANY else math.inf, every_s / 2, limit_s / 16)
        self._seen: dict[int, tuple[int, float]] = {}  # the newest of each, and until when there may have been more

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again: some four times within the limit, the first one early, and at its end."""
        return now >= self._next_look

    def find_idle(self, workers: Sequence[int]) -> list[int]:
        """Those of these workers who have shown no progress for the limit. Looks, if that is due."""
        now = awake_s()
        if not self.is_due(now):
            return []
        self.look(workers, now)
        # What is there at the first look may be old, or new: only a second one tells.
        if now - self._first_look < min(2 * self._every_s, self._limit_s / 2):
            return []
        return [worker for worker in workers if now - self._last(worker) >= self._limit_s]

    def look(self, workers: Sequence[int], now: float) -> None:
        """Looks for signs. One that is there at the first look may be old: it counts only if it is of this round."""
        is_first, end = self._first_look == math.inf, self._started + self._limit_s
        self._first_look = min(self._first_look, now)
        self._next_look = min(now + self._limit_s / _LOOKS_IN_LIMIT, end) if now < end else now + self._pause_s
        deadline = awake_s() + _BUDGET_S
        for worker in workers:
            text = self._text(worker, _LOOK_S if awake_s() < deadline else _SHORTEST_LOOK_S)
            if text is None:
                continue
            mark = decode_json(text, _Mark)
            if is_first and mark.topic != self._topic:
                self._seen[worker] = mark.number, self._started
            elif worker not in self._seen or self._seen[worker][0] != mark.number:
                self._seen[worker] = mark.number, awake_s() + self._every_s  # so long it would leave no other
                self.doing[worker] = mark.doing

    def _last(self, worker: int) -> float:
        """Until when a worker has shown progress: no earlier than it really did."""
        return self._seen[worker][1] if worker in self._seen else self._started

    def _text(self, worker: int, timeout_s: float) -> str | None:
        try:
            return self._post.look(_key(self._kind, worker), timeout_s)
        except UnreachableError:
            return None


def _key(kind: str, worker: int) -> str:
    return f"ckptflow/progress/{kind}/{worker}"
