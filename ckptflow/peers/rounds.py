"""One round of messages: every worker gives one and gets all; and what those who wait do while somebody is missing.

Worker 0 gathers the messages and publishes them, so that a round costs each of the others one write and one read.
Whoever waits tells after 15 s who is missing and in which call, asks whether they are there, and gives up at `limit_s`.
How a round ends is one text, written once: all messages, or why somebody gave up. The first one stays, for all.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ckptflow.decoding import decode_json
from ckptflow.errors import PeerError
from ckptflow.format.words import NAMED, workers_text
from ckptflow.peers.post import Post, Put, UnreachableError
from ckptflow.peers.progress import CALLS, MANY, STORAGE, WAITS_EVERY_S, Marks, Signs
from ckptflow.peers.watch import ASK_EVERY_S, ENDED_AFTER_S, Answer, Peer, Watch, in_turn, say_at
from ckptflow.stops import awake_s

logger = logging.getLogger("ckptflow")

SLICE_S = 0.5  # of waiting, so that a signal's handler gets its turn
_SHORTEST_LOOK_S = 0.001  # for a text that is there or not
_LOOK_IN_READS = 20  # times what it takes to read one that is there: then one that does not come is not there
_LONGEST_LOOK_S = 1.0
_LOOK_AGAIN_S = 0.25  # before somebody is named
_LOOKS_S = 2.0  # for all those who are looked for again, together
_SHORT_S, _PART_S = 0.1, 2.0
_TASK = re.compile(r"/job:\w+(?:/replica:\d+)?/task:\d+")


class _End(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a round ended: every worker's message, or why somebody gave up.

    `runs`: a message, and how many workers in a row have sent it. All of a thousand read what most of them say alike.
    """

    runs: list[tuple[msgspec.Raw, int]] = []
    problem: str = ""


class Rounds:
    """The rounds of one worker, in the order in which all workers make them."""

    def __init__(self, post: Post, worker: int, peers: Sequence[Peer], watch: Watch, limit_s: float) -> None:
        """`limit_s`: how long a worker is waited for that neither comes nor shows progress."""
        self._post = post
        self._worker = worker
        self._peers = peers
        self._watch = watch
        self._limit_s = limit_s
        self._marks = Marks(post, worker, limit_s)

    def gather(
        self,
        topic: str,
        message: bytes,
        call: str,
        *,
        limit_s: float,
        hint: str = "",
        elsewhere: Sequence[str] = (),
    ) -> list[bytes]:
        """Every worker's message, in the order of workers, on every worker. A topic serves once.

        Raises `PeerError` with the names of those who have ended, do not answer, or have not come within `limit_s`;
        `hint` then says which limit that is, and what to do. If it does so on one worker it does on all that come, but
        for those that cannot reach worker 0. So it does after 15 s for those who wait in `elsewhere`, topics of rounds
        to which this worker cannot come before this one has ended.
        """
        started = awake_s()
        peers, post = self._peers, self._post
        signs = Signs(post, CALLS, started, limit_s, self._marks.every_s, len(peers), topic)
        wait = _Wait(post, self._watch, signs, self._worker, peers, topic, call, limit_s, hint, elsewhere, started)
        try:
            wait.send(message.decode())
            end = wait.receive_end() if self._worker else wait.publish(_End(runs=self._collect(wait, message)))
        except PeerError as error:
            found = wait.give_up(error)
            if found is None:
                raise
            end = found
        except BaseException as error:  # as Ctrl-C: the others need not wait for one that never comes
            self.give_up(topic, f"worker {self._worker} of {len(self._peers)} left {call} by {type(error).__name__}")
            raise
        if end.problem:
            raise PeerError(end.problem)
        return [text for raw, count in end.runs for text in [bytes(raw)] * count]

    def forget(self, topic: str) -> None:
        """Deletes what was gathered. Only when all workers are known to have read it."""
        self._post.forget(topic)

    def show_progress(self, kind: str, doing: str) -> None:
        """Leaves a sign of progress for those who wait for this worker; seldom, however often it is called."""
        self._marks.leave(kind, doing)

    def storage_signs(self, started: float) -> Signs:
        """The signs of other workers' storage, for one who waits for them since `started`."""
        return Signs(self._post, STORAGE, started, self._limit_s, self._marks.every_s, len(self._peers))

    def give_up(self, topic: str, why: str) -> None:
        """Ends a round that this worker does not come to. Waits hardly at all."""
        with contextlib.suppress(UnreachableError):
            self._post.put(f"{topic}/all", msgspec.json.encode(_End(problem=why)).decode(), _SHORT_S)

    def part(self, topic: str) -> bool:
        """Tells worker 0 that this worker needs no message any more; there, waits a moment until all have said so.

        Whether they have, on worker 0.
        """
        with contextlib.suppress(UnreachableError):
            if self._worker:
                self._post.put(f"{topic}/{self._worker}", "", _PART_S)
                return False
            deadline = time.monotonic() + _PART_S
            for other in range(1, len(self._peers)):
                while self._post.get(f"{topic}/{other}", min(SLICE_S, deadline - time.monotonic())) is None:
                    if time.monotonic() >= deadline:
                        return False
            self._post.forget(topic)
            return True
        return False

    def _collect(self, wait: _Wait, message: bytes) -> list[tuple[msgspec.Raw, int]]:
        """All messages, on worker 0."""
        count = len(self._peers)
        others = [_checked(wait.receive(str(n), range(n, count)), n, wait.call) for n in range(1, count)]
        return [(msgspec.Raw(text), len(list(alike))) for text, alike in itertools.groupby((message, *others))]


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
    elsewhere: Sequence[str]
    started: float
    clock: Callable[[], float] = lambda: awake_s()  # found anew at each call: a model has a time of its own
    asked: float = field(init=False)
    unreachable_since: float | None = None

    def __post_init__(self) -> None:
        self.asked = self.started
        self.slice_s = min(SLICE_S, self.limit_s / 8)
        self.look_s = _SHORTEST_LOOK_S
        self._marks = Marks(self.post, self.worker, self.limit_s, WAITS_EVERY_S)
        self._say_at = say_at()
        self._say_next = next(self._say_at)

    def key(self, name: int | str) -> str:
        return f"{self.topic}/{name}"

    def send(self, text: str) -> None:
        """Leaves this worker's message."""
        while True:
            try:
                if self.post.put(self.key(self.worker), text, self.slice_s) is not Put.UNKNOWN:
                    return
            except UnreachableError as error:
                self._cannot_reach(error)
                time.sleep(self.slice_s)
            self._look_after([0])

    def receive(self, name: str, awaited: Sequence[int]) -> str:
        """The text `name`; `awaited` are those of whom one or all must come first."""
        while True:
            text = self._get(self.key(name), self.slice_s)
            if text is not None:
                return text
            self._look_after(awaited)

    def receive_end(self) -> _End:
        """How the round ended."""
        return self._read_end(self.receive("all", [0]))

    def publish(self, end: _End) -> _End:
        """Ends the round, on worker 0, whose own process holds the service. What it returns is how it ended."""
        try:
            put = self.post.put(self.key("all"), msgspec.json.encode(end).decode(), self.limit_s)
            if put is Put.UNKNOWN:
                raise PeerError(f"the coordination service in this process does not answer{self.hint}")
        except UnreachableError as error:
            raise PeerError(f"the coordination service in this process does not answer: {error}") from error
        return end if put is Put.WRITTEN else self.receive_end()

    def give_up(self, error: PeerError) -> _End | None:
        """Ends the round for all by what made this worker give up. How it ended, if another was faster."""
        end = _End(problem=str(error))
        try:
            self.post.put(self.key("all"), msgspec.json.encode(end).decode(), self.slice_s)
            # Read back whatever is said of it: it may have been this worker's own, sent before, that was written.
            text = self.post.look(self.key("all"), _LONGEST_LOOK_S)
            return self._read_end(text) if text is not None else None
        except (UnreachableError, PeerError):
            return None

    def _read_end(self, text: str) -> _End:
        try:
            end = decode_json(text, _End)
        except msgspec.DecodeError as error:
            raise PeerError(f"worker 0's message in {self.call} cannot be read: {error}") from error
        counts = [count for _, count in end.runs]
        if not end.problem and (min(counts, default=0) < 1 or sum(counts) != len(self.peers)):
            raise PeerError(f"worker 0's message in {self.call} does not hold one message of each worker")
        return end

    def _get(self, key: str, timeout_s: float) -> str | None:
        return self._reach(lambda: self.post.get(key, timeout_s))

    def _look(self, worker: int, timeout_s: float) -> bool:
        """Whether that worker's message is there."""
        return self._reach(lambda: self.post.look(self.key(worker), timeout_s)) is not None

    def _reach(self, read: Callable[[], str | None]) -> str | None:
        try:
            text = read()
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
            lost = self._lost_in(str(error))
            if lost:
                raise PeerError(f"{self._names(lost)} cannot be reached, in {self.call}: {error}") from error
            raise PeerError(
                f"{self._names([0])} has ended or cannot be reached: the coordination service runs in its process "
                f"({error})"
            ) from error

    def _lost_in(self, text: str) -> list[int]:
        """The workers that TensorFlow names in an error, if neither this one nor worker 0 is among them."""
        tasks = {_short(task) for task in _TASK.findall(text)}
        named = [worker for worker, peer in enumerate(self.peers) if _short(peer.task) in tasks]
        return [] if {0, self.worker} & set(named) else named

    def _look_after(self, awaited: Sequence[int]) -> None:
        """What is to be done while nothing comes: ask, say, give up."""
        now = self.clock()
        if len(self.peers) > MANY and not self.worker and awaited[0]:  # the others look for nobody but worker 0 then
            self._marks.leave(CALLS, f"waiting for {self._names(awaited[:1])}", self.topic)
        if now - self.asked >= ASK_EVERY_S or now - self.started >= self.limit_s:
            self.asked = now
            self._raise_if_given_up()
            self._raise_if_gone(awaited)
        if now - self.started >= self._say_next:
            self._say_next = next(self._say_at)
            missing = self._find_missing()
            self.signs.look(missing, now)
            if missing:
                logger.warning("%s", self._text(missing))
                self._raise_if_elsewhere(missing[0])
        if self.signs.is_due(now):
            self._raise_if_late(now - self.started >= self.limit_s)

    def _raise_if_given_up(self) -> None:
        """Worker 0 waits for messages one by one: another may have learnt meanwhile who is missing."""
        text = None if self.worker else self._get(self.key("all"), 0.0)
        if text is not None:
            raise PeerError(self._read_end(text).problem)

    def _raise_if_elsewhere(self, worker: int) -> None:
        """Raises if that worker waits for this one in another round: they would wait for one another for ever."""
        deadline = time.monotonic() + _LOOKS_S
        for topic in self.elsewhere:
            if time.monotonic() >= deadline:
                return
            is_there = self._read(f"{topic}/{worker}") is not None
            if not is_there or self._read(f"{topic}/all") is not None:  # the latter: it waits no more
                continue
            text = (
                f"{self._names([worker])} waits in a call of another CheckpointManager, and worker {self.worker} in "
                f"{self.call} of this one: all workers must make the same managers, and the same calls of them, in "
                "the same order"
            )
            problem = msgspec.json.encode(_End(problem=text)).decode()
            with contextlib.suppress(UnreachableError):
                # This round first: if it has ended, that worker came to it meanwhile, and has gone on to the other.
                if self.post.put(self.key("all"), problem, self.slice_s) is Put.WRITTEN:
                    self.post.put(f"{topic}/all", problem, _SHORT_S)
                    raise PeerError(text)
            return

    def _read(self, key: str) -> str | None:
        """A text that is there, or not."""
        return self._reach(lambda: self.post.look(key, max(self.look_s, _LOOK_AGAIN_S)))

    def _raise_if_gone(self, awaited: Sequence[int]) -> None:
        gone = self.watch.find_gone(self._asked_now(awaited), self.started)
        if not gone:
            return
        missing = set(self._find_missing())
        lost = {worker: gone[worker] for worker in self._look_again([w for w in gone if w in missing])}
        if lost:
            raise PeerError(f"{self._answers(lost)}, in {self.call}")

    def _asked_now(self, awaited: Sequence[int]) -> list[int]:
        """Those who must come first, worker 0, through whom all goes, and some of the others, others each time."""
        first = [worker for worker in (awaited if self.worker == 0 else [0]) if worker != self.worker]
        others = [other for other in range(1, len(self.peers)) if other != self.worker and other not in first]
        return [*first, *in_turn(others, int((self.clock() - self.started) / ASK_EVERY_S))]

    def _raise_if_late(self, is_over: bool) -> None:
        """Raises if somebody is missing who has shown no progress for `limit_s`."""
        missing = self._find_missing()
        if is_over and not self.worker and not self._look(0, self.slice_s):
            raise PeerError(f"the coordination service in this process, worker 0's, does not answer{self.hint}")
        late = self._look_again(self.signs.find_idle(missing))
        if not late:
            return
        # Who has sent its message and stopped may still be what holds up another, in a step that they share.
        silent = self.watch.find_silent(self.started)
        also = f"; {self._answers(silent)}" if silent else ""
        raise PeerError(f"{self._text(late)}{also}{self.hint}")

    def _find_missing(self) -> list[int]:
        """Who has left no message; worker 0 if not even our own can be found, or if all are there: it ends the round.

        Of many workers worker 0 looks for all, and leaves signs while it waits; the others look for worker 0 alone.
        """
        began = time.monotonic()
        if not self._look(self.worker, self.slice_s):
            return [0] if self.worker else []
        read_s = time.monotonic() - began
        self.look_s = min(max(_SHORTEST_LOOK_S, _LOOK_IN_READS * read_s), _LONGEST_LOOK_S)
        if self.worker and len(self.peers) > MANY:  # all of them looking for all of them would keep worker 0 from it
            return [0]
        deadline = began + _LOOKS_S
        missing = [
            other
            for other in range(len(self.peers))
            if other != self.worker
            and not self._look(other, self.look_s if time.monotonic() < deadline else _SHORTEST_LOOK_S + 2 * read_s)
        ]
        return missing or ([0] if self.worker else [])

    def _look_again(self, missing: Sequence[int]) -> list[int]:
        """Those of these who are missing indeed: before they are named."""
        timeout_s = max(self.look_s, _LOOK_AGAIN_S)
        if missing == [0] and self.worker:  # it is what publishes that is missing, whether or not its message is there
            return [] if self._get(self.key("all"), timeout_s) is not None else [0]
        confirmed = [worker for worker in missing[:NAMED] if not self._look(worker, timeout_s)]
        return [*confirmed, *missing[NAMED:]] if confirmed else []  # the rest is counted, and not named

    def _text(self, missing: Sequence[int]) -> str:
        """Who has not come, as the field's logs say it."""
        verb = "has" if len(missing) == 1 else "have"
        doing = self.signs.doing
        busy = "; ".join(f"worker {w} is busy with {doing[w]}" for w in missing[:NAMED] if w in doing)
        waited_s = self.clock() - self.started
        has_come = missing == [0] and self._look(0, self.look_s)
        return (
            f"{self._names(missing)} {verb} not reached {'the end of ' if has_come else ''}{self.call}, where worker "
            f"{self.worker} has waited for {waited_s:.0f} s{f' ({busy})' if busy else ''}"
        )

    def _answers(self, gone: dict[int, Answer]) -> str:
        return ", ".join(f"{self._names([worker])} {gone[worker].value}" for worker in sorted(gone)[:NAMED])

    def _names(self, workers: Sequence[int]) -> str:
        """How workers are called in a message: "worker 1 of 3 (host:port)"."""
        named = workers_text(workers, lambda worker: f"{worker} ({self.peers[worker].address})")
        return f"{named} of {len(self.peers)}"


def _checked(text: str, worker: int, call: str) -> bytes:
    """The message, if it is JSON: what cannot be read must not keep the others from reading all."""
    data = text.encode()
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise PeerError(f"worker {worker}'s message in {call} cannot be read: {error}") from error
    return data


def _short(task: str) -> str:
    """TensorFlow names a task with its replica, which is always 0, or without."""
    return task.replace("/replica:0", "")
