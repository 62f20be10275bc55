"""What all workers decide together: each does its part of a call, and every worker gets every worker's result.

Every function here is called by all workers, on the main thread, in the same order, or by none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import msgspec

from ckptflow.decoding import decode_json
from ckptflow.errors import LEAVING, FencedError, PeerError, UsageError
from ckptflow.format.failure import Failure
from ckptflow.format.words import NAMED, alike, some_of, workers_text
from ckptflow.peers.failing import failure_of
from ckptflow.printable import lines_of

MAX_MESSAGE_BYTES = 4 * 2**20

_Value = TypeVar("_Value")
_Kept = TypeVar("_Kept")


class Done(msgspec.Struct, frozen=True):
    """A worker's part is done, and has no result for the others."""


class Team(Protocol):
    """Who this worker is among how many, and how it reaches the others."""

    @property
    def worker(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def is_chief(self) -> bool: ...

    @property
    def carries_much(self) -> bool:
        """Whether a message of megabytes costs no more than its bytes. The same on all workers."""

    def exchange(self, message: bytes, call: str) -> list[bytes]:
        """Every worker gives a JSON document and gets all of them, in the order of workers.

        `call` is where this worker is, for the others to read if it is one of them that does not come.
        """

    def working(self, doing: str) -> AbstractContextManager[None]:
        """While it is open, this worker works for the others, who wait on for as long as its storage goes on."""

    def part(self) -> None:
        """Called by all: worker 0, in whose process messages may be, stays till the others have them, 2 s at most."""

    @property
    def is_lost(self) -> bool:
        """Whether an exchange has failed, so that no other one can be."""

    def leave(self, call: str, error: BaseException) -> None:
        """Tells the others that this worker leaves instead of coming to `call`."""


class Alone:
    """A cluster of one process."""

    worker = 0
    world_size = 1
    is_chief = True
    is_lost = False
    carries_much = True

    def exchange(self, message: bytes, call: str) -> list[bytes]:
        return [message]

    def working(self, doing: str) -> AbstractContextManager[None]:
        return nullcontext()

    def part(self) -> None:
        pass

    def leave(self, call: str, error: BaseException) -> None:
        pass


class Call(StrEnum):
    """What workers call together."""

    SAVE = "save"
    WAIT = "wait"
    RESTORE = "restore"
    ROLLBACK = "rollback"
    COMPARE = "compare the states of all workers"
    LOOK = "restore: choose a checkpoint"
    CLAIM = "restore: claim the root"
    SEE = "restore: look for the same storage"
    READ = "restore: read the manifest"
    DIVIDE = "restore: divide what is to be read"
    CHECK = "restore: compare it with the state"
    LOAD = "restore: read the values"
    COMPLETE = "restore: assign the last values"
    VERIFY = "restore: look for damage that another worker has met"
    START = "start without a checkpoint"
    TAKE_UP = "go on from what was restored"
    PREPARE = "work out how to save"
    CAPTURE_AGAIN = "restore: capture what was restored"
    SAVE_AGAIN = "restore: save again what was restored"
    CHECK_NOTICES = "PreemptionWatcher.check"
    LEAVE = "PreemptionWatcher: leave"
    READ_POSITION = "CheckpointCallback: read the position"
    LOOK_BACK = "CheckpointCallback: look at what was restored"
    BEGIN_FIT = "CheckpointCallback: begin the fit"
    END_FIT = "CheckpointCallback: end the fit"
    BUILD_METRICS = "CheckpointCallback: build the metrics"
    READ_METRICS = "CheckpointCallback: restore the metrics"
    READ_CLOCK = "CheckpointCallback: every_seconds"


@dataclass(frozen=True, slots=True)
class Called:
    """A call with the arguments in which workers must not differ."""

    call: Call
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """As in a program: `save(step=500)`."""
        if not self.arguments and " " in self.call:
            return str(self.call)
        return f"{self.call}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"


def called(call: Call, **arguments: Any) -> Called:
    """`called(Call.SAVE, step=500)`."""
    return Called(call, tuple(arguments.items()))


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker's part of a call: its result, or why there is none."""

    call: str
    value: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


def agree(cluster: Team, call: Called | Call, do: Callable[[], _Value]) -> list[_Value]:
    """Every worker's result of `do`, in the order of workers; or every worker raises.

    `do` returns one type on all workers, which msgspec can write as JSON. A worker on which it raises raises that
    error itself, the others `PeerError` with its text and the error as cause; if any of them was fenced, all of them
    `FencedError`: no worker may end as if a restart would help. What ends the program (Ctrl-C, SystemExit) is raised
    at once, without a word to the others.

    Raises `UsageError` if workers differ in the call or its arguments: what one waits for would never come.
    """

    def told() -> tuple[None, _Value]:
        return None, do()

    return agree_on(cluster, call, told)[1]


def agree_on(cluster: Team, call: Called | Call, do: Callable[[], tuple[_Kept, _Value]]) -> tuple[_Kept, list[_Value]]:
    """The same, where `do` has two results: one that this worker keeps to itself, and one for all."""
    if cluster.world_size == 1:
        kept, value = do()
        return kept, [value]
    where = str(call if isinstance(call, Called) else Called(call))
    results, error = _attempt(cluster, where, do)
    messages = _share(cluster, where, results[1] if results is not None else None, error)
    with _parting(cluster):
        _raise_together(messages, error, worker=cluster.worker)
        _check_calls([message.call for message in messages])
    if results is None:
        raise PeerError("a call has neither a result nor an error")
    kind = type(results[1])
    return results[0], [_decode(message, kind, worker) for worker, message in enumerate(messages)]


def chief_says(cluster: Team, call: Called | Call, decide: Callable[[], _Value], kind: type[_Value]) -> _Value:
    """What `decide` returns on the chief, on every worker; or the chief's error, of its own class.

    `kind` is the type that it returns. Only the chief runs it.
    """
    if cluster.world_size == 1:
        return decide()
    where = str(call if isinstance(call, Called) else Called(call))
    value, error = _attempt(cluster, where, decide) if cluster.is_chief else (None, None)
    messages = _share(cluster, where, value, error)
    with _parting(cluster):
        if error is not None:
            raise error
        failure = messages[0].failure
        if failure is not None:
            raise failure.rebuild() or PeerError(lines_of(f"the chief failed, so this worker stops too: {failure}"))
        _raise_together(messages, None, worker=cluster.worker)
        _check_calls([message.call for message in messages])
    return value if value is not None else _decode(messages[0], kind, 0)


@contextmanager
def _parting(cluster: Team) -> Iterator[None]:
    """What is raised in it is raised on all workers, and may end their processes: all are to learn of it first."""
    try:
        yield
    except BaseException:
        cluster.part()
        raise


def _attempt(cluster: Team, where: str, do: Callable[[], _Value]) -> tuple[_Value | None, BaseException | None]:
    """What `do` returned, or raised; but what leaves the program leaves it now."""
    try:
        with cluster.working(where):
            return do(), None
    except LEAVING as error:
        cluster.leave(where, error)
        raise
    except BaseException as error:
        return None, error


def _share(cluster: Team, where: str, value: object, error: BaseException | None) -> list[Message]:
    """Every worker's message. Raises `PeerError`, but for an own error after which a restart would not help."""
    try:
        mine = _write(cluster.worker, where, value, error)
        return [_read(data, worker) for worker, data in enumerate(cluster.exchange(mine, where))]
    except PeerError as peer:
        if isinstance(error, FencedError):
            raise error from peer
        raise peer from (error or peer.__cause__)


def _write(worker: int, where: str, value: object, error: BaseException | None) -> bytes:
    """Never raises: the others are told of what cannot be said."""
    if error is not None:
        return msgspec.json.encode(Message(where, failure=failure_of(error)))
    try:
        body = msgspec.json.encode(value)
    except Exception as wrong:
        failure = failure_of(wrong, lambda text: f"worker {worker}'s message in {where} cannot be written: {text}")
        return msgspec.json.encode(Message(where, failure=failure))
    if len(body) > MAX_MESSAGE_BYTES:
        text = f"worker {worker}'s message in {where} has {len(body):,} bytes, more than {MAX_MESSAGE_BYTES:,}"
        return msgspec.json.encode(Message(where, failure=Failure(kind=PeerError.__name__, message=text)))
    return msgspec.json.encode(Message(where, msgspec.Raw(body)))


def _read(data: bytes, worker: int) -> Message:
    try:
        if len(data) > 2 * MAX_MESSAGE_BYTES:
            raise ValueError(f"it has {len(data):,} bytes")
        return decode_json(data, Message)
    except ValueError as error:  # msgspec's are among them
        raise PeerError(f"worker {worker}'s message cannot be read: {error}") from error


def _decode(message: Message, kind: type[_Value], worker: int) -> _Value:
    try:
        return decode_json(message.value, kind)
    except ValueError as error:
        raise PeerError(f"worker {worker}'s message cannot be read: {error}") from error


def _raise_together(messages: Sequence[Message], mine: BaseException | None, *, worker: int) -> None:
    """Raises if any worker failed: its own error, else one that carries another's. Being fenced goes first."""
    others = {i: m.failure for i, m in enumerate(messages) if i != worker and m.failure is not None}
    fenced = next((f for f in others.values() if f.kind == FencedError.__name__), None)
    if fenced is not None and not isinstance(mine, FencedError):
        raise FencedError(lines_of(fenced.message)) from mine
    if mine is not None:
        raise mine
    for index, failure in others.items():
        text = f"worker {index} failed, so this one stops too: {failure}"
        raise PeerError(lines_of(text)) from failure.rebuild()
    own = messages[worker].failure
    if own is not None:  # what it meant to say could not be sent
        raise PeerError(f"worker {worker}: {own.message}")


def _check_calls(calls: Sequence[str]) -> None:
    if len(set(calls)) > 1:
        names = {call.partition("(")[0] for call in calls}
        what = "different methods" if len(names) > 1 else f"{names.pop()} with different arguments"
        by_worker = [f"{workers_text(workers)}: {call}" for workers, call in alike(enumerate(calls))]
        raise UsageError(
            f"workers call {what}: all must make the same calls at the same points. {some_of(by_worker, NAMED, '; ')}"
        )
