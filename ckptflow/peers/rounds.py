"""One round of messages: every worker gives one and gets all; and what those who wait do while somebody is missing.

Worker 0 gathers the messages and publishes them, so that a round costs each of the others one write and one read.
Whoever waits tells after 15 s who is missing and in which call, asks whether they are there, and gives up at `limit_s`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ckptflow.errors import PeerError
from ckptflow.peers.watch import ASK_EVERY_S, ENDED_AFTER_S, Answer, Peer, Watch

logger = logging.getLogger("ckptflow")

_SLICE_S = 0.5  # of waiting, so that a signal's handler gets its turn
_LOOK_S = 0.001  # for a text that is there or not
_SAY_AFTER_S = (15.0, 60.0, 300.0, 1200.0)
_SAY_EVERY_S = 3600.0  # after those
_ASKED_BY_OTHERS = 8  # workers that one which is not worker 0 asks: of a thousand, each asking all would be too much
_LOOKS_IN_LIMIT = 4  # for signs of progress: what is there at the first look may be old
_MARKS_IN_LIMIT = 8  # signs of progress that fit into the time after which a worker is given up
_MAX_MARK_S = 60.0
_NAMED = 8
_mark_numbers = itertools.count()


class UnreachableError(Exception):
    """The process that keeps the texts has ended, or does not answer."""


class Post(Protocol):
    """Where texts are left, as in `peers.service.Service`. A key is written once. Raises `UnreachableError`."""

    def put(self, key: str, text: str, timeout_s: float) -> bool: ...
    def get(self, key: str, timeout_s: float) -> str | None: ...
    def forget(self, key: str) -> None: ...


class _Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """What worker 0 has gathered, or why it could not."""

    texts: list[msgspec.Raw] = []
    problem: str = ""


class _Mark(msgspec.Struct, frozen=True):
    """A sign of progress."""

    number: int
    doing: str


class Rounds:
    """The rounds of one worker, in the order in which all workers make them."""

    def __init__(self, post: Post, worker: int, peers: Sequence[Peer], watch: Watch, limit_s: float) -> None:
        """`limit_s`: how long a worker is waited for that neither comes nor shows progress."""
        self._post = post
        self._worker = worker
        self._peers = peers
        self._watch = watch
        self._limit_s = limit_s
        self._marked_at: dict[str, float] = {}
        self._signs = Signs(post, CALLS, 0.0)

    def gather(self, topic: str, message: bytes, call: str, *, limit_s: float, hint: str = "") -> list[bytes]:
        """Every worker's message, in the order of workers, on every worker. A topic serves once.

        Raises `PeerError` with the names of those who have ended, do not answer, or have not come within `limit_s`;
        `hint` then says which limit that is, and what to do. Others can still be reached afterwards.
        """
        started = time.monotonic()
        signs = Signs(self._post, CALLS, started)
        wait = _Wait(self._post, self._watch, signs, self._worker, self._peers, topic, call, limit_s, hint, started)
        wait.send(message.decode())
        if self._worker:
            try:
                published = msgspec.json.decode(wait.receive("all", [0]), type=_Published)
            except PeerError as error:
                wait.give_up(error)
                raise
            except msgspec.DecodeError as error:
                raise PeerError(f"worker 0's message in {call} cannot be read: {error}") from error
            if published.problem:
                raise PeerError(published.problem)
            return [bytes(text) for text in published.texts]
        count = len(self._peers)
        try:
            others = [_checked(wait.receive(str(n), range(n, count)), n, call) for n in range(1, count)]
        except PeerError as error:
            wait.publish(_Published(problem=str(error)))
            raise
        texts = [message, *others]
        wait.publish(_Published(texts=[msgspec.Raw(text) for text in texts]))
        return texts

    def forget(self, topic: str) -> None:
        """Deletes what was gathered. Only when all workers are known to have read it."""
        self._post.forget(topic)

    def show_progress(self, kind: str, doing: str) -> None:
        """Leaves a sign of progress for those who wait for this worker; seldom, however often it is called."""
        now = time.monotonic()
        if now - self._marked_at.get(kind, -math.inf) < min(self._limit_s / _MARKS_IN_LIMIT, _MAX_MARK_S):
            return
        self._marked_at[kind] = now
        key = _mark_key(kind, self._worker)
        try:
            self._post.forget(key)
            self._post.put(key, msgspec.json.encode(_Mark(next(_mark_numbers), doing)).decode(), 0.0)
        except UnreachableError as error:
            logger.debug("no sign of progress can be left: %s", error)

    def find_idle(self, workers: Sequence[int], started: float) -> list[int]:
        """Those of these workers whose storage has shown no progress for `limit_s`, waited for since `started`."""
        now = time.monotonic()
        if self._signs.started != started:
            self._signs = Signs(self._post, STORAGE, started)
        if now - self._signs.looked < self._limit_s / _LOOKS_IN_LIMIT:
            return []
        seen = self._signs.look(workers, now)
        return [worker for worker in workers if now - seen[worker] >= self._limit_s]


CALLS, STORAGE = "calls", "storage"  # what a worker shows progress in: its calls, on the main thread; its storage's


def _mark_key(kind: str, worker: int) -> str:
    return f"ckptflow/progress/{kind}/{worker}"


class Signs:
    """The signs of progress of other workers, as seen by one that has waited since `started`."""

    def __init__(self, post: Post, kind: str, started: float) -> None:
        self.started = self.looked = started
        self.doing: dict[int, str] = {}
        self._post = post
        self._kind = kind
        self._seen: dict[int, tuple[int, float]] = {}  # the newest of each, and when it came

    def look(self, workers: Sequence[int], now: float) -> dict[int, float]:
        """When each of these workers has last shown progress, as far as looks like this one tell."""
        self.looked = now
        for worker in workers:
            text = self._text(worker)
            if text is None:
                continue
            mark = msgspec.json.decode(text, type=_Mark)
            self.doing[worker] = mark.doing
            if worker not in self._seen:  # it may be of an earlier wait: only what comes from now on counts
                self._seen[worker] = mark.number, self.started
            elif self._seen[worker][0] != mark.number:
                self._seen[worker] = mark.number, now
        return {worker: self._seen[worker][1] if worker in self._seen else self.started for worker in workers}

    def _text(self, worker: int) -> str | None:
        try:
            return self._post.get(_mark_key(self._kind, worker), _LOOK_S)
        except UnreachableError:
            return None


def say_at() -> Iterator[float]:
    """After how many seconds of waiting it is said who is missing."""
    yield from _SAY_AFTER_S
    at_s = _SAY_EVERY_S
    while True:
        yield at_s
        at_s += _SAY_EVERY_S


@dataclass
class _Wait:
    """One worker's waiting in one round."""

    post: Post
    watch: Watch
    signs: Signs
    worker: int
    peers: Sequence[Peer]
    topic: str
    call: str
    limit_s: float
    hint: str
    started: float
    clock: Callable[[], float] = time.monotonic
    asked: float = field(init=False)
    unreachable_since: float | None = None

    def __post_init__(self) -> None:
        self.asked = self.started
        self.slice_s = min(_SLICE_S, self.limit_s / _LOOKS_IN_LIMIT / 2)
        self._say_at = say_at()
        self._say_next = next(self._say_at)

    def key(self, name: int | str) -> str:
        return f"{self.topic}/{name}"

    def send(self, text: str) -> None:
        """Leaves this worker's message."""
        is_sent = False
        while not is_sent:
            try:
                is_sent = self.post.put(self.key(self.worker), text, self.slice_s)
            except UnreachableError as error:
                self._cannot_reach(error)
                time.sleep(self.slice_s)
            if not is_sent:
                self._look_after([0])
                is_sent = self._get(self.key(self.worker), _LOOK_S) is not None

    def publish(self, published: _Published) -> None:
        """Worker 0's own process holds the service: it is there."""
        try:
            self.post.put(self.key("all"), msgspec.json.encode(published).decode(), self.limit_s)
        except UnreachableError as error:
            raise PeerError(f"the coordination service in this process does not answer: {error}") from error

    def give_up(self, error: PeerError) -> None:
        """Takes this worker's message back, since it goes no further, and tells the others why."""
        with contextlib.suppress(UnreachableError):
            self.post.put(self.key("given up"), str(error), 0.0)  # of several the first stays
        self.post.forget(self.key(self.worker))  # after it: who does not find the message finds why

    def receive(self, name: str, awaited: Sequence[int]) -> str:
        """The text `name`; `awaited` are those of whom one or all must come first."""
        while True:
            text = self._get(self.key(name), self.slice_s)
            if text is not None:
                return text
            self._look_after(awaited)

    def _get(self, key: str, timeout_s: float) -> str | None:
        try:
            text = self.post.get(key, timeout_s)
        except UnreachableError as error:
            self._cannot_reach(error)
            time.sleep(self.slice_s)
            return None
        self.unreachable_since = None
        return text

    def _cannot_reach(self, error: UnreachableError) -> None:
        """Raises once the service has refused for as long as makes a worker dead."""
        now = self.clock()
        if self.unreachable_since is None:
            self.unreachable_since = now
        if now - self.unreachable_since >= ENDED_AFTER_S:
            raise PeerError(
                f"{self._names([0])} has ended or cannot be reached: the coordination service runs in its process "
                f"({error})"
            ) from error

    def _look_after(self, awaited: Sequence[int]) -> None:
        """What is to be done while nothing comes: ask, say, give up."""
        now = self.clock()
        if now - self.asked >= ASK_EVERY_S or now - self.started >= self.limit_s:
            self.asked = now
            self._raise_if_given_up()
            self._raise_if_gone(awaited)
        if now - self.started >= self._say_next:
            self._say_next = next(self._say_at)
            logger.warning("%s", self._text(self._find_missing()))
        if now - self.signs.looked >= self.limit_s / _LOOKS_IN_LIMIT:
            self._raise_if_late(now)

    def _raise_if_given_up(self) -> None:
        """Another worker that waited has learnt who is missing, and has taken its message back: it is not the one."""
        text = self._get(self.key("given up"), _LOOK_S)
        if text is not None:
            raise PeerError(text)

    def _raise_if_gone(self, awaited: Sequence[int]) -> None:
        among = awaited if self.worker == 0 else self._rotated()
        gone = self.watch.find_gone(among)
        if not gone:
            return
        missing = set(self._find_missing())
        lost = {worker: answer for worker, answer in gone.items() if worker in missing}
        if lost:
            self._raise_if_given_up()
            raise PeerError(self._gone_text(lost))

    def _rotated(self) -> list[int]:
        """Worker 0, through whom all goes, and some of the others, others each time."""
        others = [other for other in range(1, len(self.peers)) if other != self.worker]
        if len(others) <= _ASKED_BY_OTHERS:
            return [0, *others]
        first = int((self.clock() - self.started) / ASK_EVERY_S) * _ASKED_BY_OTHERS % len(others)
        return [0, *(others * 2)[first : first + _ASKED_BY_OTHERS]]

    def _raise_if_late(self, now: float) -> None:
        """Raises if somebody is missing who has shown no progress for `limit_s`."""
        missing = self._find_missing()
        seen = self.signs.look(missing, now)
        late = [worker for worker in missing if now - seen[worker] >= self.limit_s]
        if late:
            self._raise_if_given_up()
            raise PeerError(f"{self._text(late)}{self.hint}")

    def _find_missing(self) -> list[int]:
        """Who has left no message; worker 0 if not even our own can be found, since they are all there."""
        if self._get(self.key(self.worker), self.slice_s) is None:
            return [0]
        others = (other for other in range(len(self.peers)) if other != self.worker)
        missing = [other for other in others if self._get(self.key(other), _LOOK_S) is None]
        return missing or ([0] if self.worker else [])

    def _text(self, missing: Sequence[int]) -> str:
        """Who has not come, as the field's logs say it."""
        verb = "has" if len(missing) == 1 else "have"
        doing = self.signs.doing
        busy = "; ".join(f"worker {w} is busy with {doing[w]}" for w in missing[:_NAMED] if w in doing)
        waited_s = self.clock() - self.started
        return (
            f"{self._names(missing)} {verb} not reached {self.call}, where worker {self.worker} has waited for "
            f"{waited_s:.0f} s{f' ({busy})' if busy else ''}"
        )

    def _gone_text(self, gone: dict[int, Answer]) -> str:
        return f"{', '.join(f'{self._names([w])} {a.value}' for w, a in sorted(gone.items())[:_NAMED])}, in {self.call}"

    def _names(self, workers: Sequence[int]) -> str:
        """How workers are called in a message: "worker 1 of 3 (host:port)"."""
        named = [f"{worker} ({self.peers[worker].address})" for worker in workers[:_NAMED]]
        more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
        return f"worker{'s' if len(workers) > 1 else ''} {', '.join(named)}{more} of {len(self.peers)}"


def _checked(text: str, worker: int, call: str) -> bytes:
    """The message, if it is JSON: what cannot be read must not keep the others from reading all."""
    data = text.encode()
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise PeerError(f"worker {worker}'s message in {call} cannot be read: {error}") from error
    return data
