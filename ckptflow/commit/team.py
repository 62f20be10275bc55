"""What all workers decide together: votes and the chief's word, over one collective that carries int64 rows.

Every method here is a collective on the main thread: all workers call it, in the same order, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

from ckptflow import errors
from ckptflow.errors import LEAVING, CkptflowError, FencedError, PeerError, UsageError
from ckptflow.printable import lines_of

_NUMBERS = 8  # numbers that a vote carries beside its outcome
_TEXT_WORDS = 128  # seven bytes of text in each, so that a word stays below 2**62
_WORD_BYTES = 7


class Cluster(Protocol):
    """Who I am among the workers, and the one collective."""

    @property
    def worker(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def is_chief(self) -> bool: ...

    def exchange(self, row: Sequence[int]) -> list[tuple[int, ...]]:
        """Every worker gives a row of one length (0 ≤ each < 2**62) and gets all rows, in the order of workers."""


class Outcome(IntEnum):
    """How one worker's part went."""

    FINE = 0
    GONE = 1
    DAMAGED = 2
    FAILED = 3
    FENCED = 4


@dataclass(frozen=True, slots=True)
class Vote:
    """One worker's outcome, why, and up to eight numbers that go with it."""

    outcome: Outcome
    text: str = ""
    numbers: tuple[int, ...] = ()


def vote(cluster: Cluster, mine: Vote) -> list[Vote]:
    """Every worker's vote, in the order of workers. Text is cut to 896 bytes on its way."""
    if cluster.world_size == 1:
        return [mine]
    numbers = [*mine.numbers, *[0] * (_NUMBERS - len(mine.numbers))]
    rows = cluster.exchange([int(mine.outcome), *numbers, *_pack(mine.text)])
    return [Vote(Outcome(row[0]), _unpack(row[1 + _NUMBERS :]), tuple(row[1 : 1 + _NUMBERS])) for row in rows]


def raise_together(votes: Sequence[Vote], mine: BaseException | None, *, worker: int) -> None:
    """Raises where any vote is FAILED or FENCED: this worker's own error, else one that carries the other's message.

    Being fenced goes before everything: no worker may end as if a restart would help.
    """
    fenced = [v.text for i, v in enumerate(votes) if i != worker and v.outcome is Outcome.FENCED]
    if fenced and not isinstance(mine, FencedError):
        raise FencedError(lines_of(fenced[0])) from mine
    if mine is not None:
        raise mine
    for index, other in enumerate(votes):
        if index != worker and other.outcome is Outcome.FAILED:
            raise PeerError(lines_of(f"worker {index} failed, so this one stops too: {other.text}"))


def agree(cluster: Cluster, call: tuple[int, ...], do: Callable[[], tuple[int, ...]]) -> list[Vote]:
    """The one small reduction: every worker does its part, and all go on or all raise. Returns what `do` returned.

    `call` says in numbers what is called, and how: where workers differ in it, their next collectives would be taken
    for one another's.
    """
    error: BaseException | None = None
    try:
        mine = Vote(Outcome.FINE, "", (*call, *do()))
    except BaseException as caught:
        error, mine = caught, vote_for(caught)
    try:
        votes = vote(cluster, mine)
    except PeerError as peer:
        if isinstance(error, FencedError):  # a restart would not help
            raise error from peer
        raise peer from (error or peer.__cause__)
    raise_together(votes, error, worker=cluster.worker)
    calls = {worker: tuple(v.numbers[: len(call)]) for worker, v in enumerate(votes)}
    if set(calls.values()) != {call}:
        raise UsageError(
            "workers call different methods, or with different arguments (restore's step, read_only, fresh): all must "
            f"make the same calls at the same points; (call, arguments…) by worker: {calls}"
        )
    return [replace(v, numbers=v.numbers[len(call) :]) for v in votes]


def chief_says(cluster: Cluster, decide: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """The chief runs `decide`; every worker gets its numbers (up to eight, 0 ≤ each < 2**62), or its error."""
    error: BaseException | None = None
    mine = Vote(Outcome.FINE)
    if cluster.is_chief:
        try:
            mine = Vote(Outcome.FINE, "", decide())
        except BaseException as caught:
            error = caught
            mine = vote_for(caught)
    chief = vote(cluster, mine)[0]
    if error is not None:
        raise error
    if chief.outcome is not Outcome.FINE:
        raise _rebuild(chief)
    return chief.numbers


def vote_for(error: BaseException) -> Vote:
    """The vote of a worker that raised, unless it raised to leave the program: then it leaves, without a collective."""
    if isinstance(error, LEAVING):
        raise error
    outcome = Outcome.FENCED if isinstance(error, FencedError) else Outcome.FAILED
    text = str(error) if isinstance(error, FencedError) else f"{type(error).__name__}: {error}"
    return Vote(outcome, text)


def _rebuild(vote: Vote) -> CkptflowError:
    """The chief's error as every worker raises it: of its own class where that is one of ours."""
    if vote.outcome is Outcome.FENCED:
        return FencedError(lines_of(vote.text))
    name, _, message = vote.text.partition(": ")
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if isinstance(kind, type) and issubclass(kind, CkptflowError):
        return kind(lines_of(message))
    return PeerError(lines_of(f"the chief failed, so this worker stops too: {vote.text}"))


def _pack(text: str) -> list[int]:
    data = text.encode("utf-8", "replace")[: _TEXT_WORDS * _WORD_BYTES].ljust(_TEXT_WORDS * _WORD_BYTES, b"\0")
    return [int.from_bytes(data[i : i + _WORD_BYTES], "little") for i in range(0, len(data), _WORD_BYTES)]


def _unpack(words: Sequence[int]) -> str:
    data = b"".join(word.to_bytes(_WORD_BYTES, "little") for word in words)
    return data.rstrip(b"\0").decode("utf-8", "ignore")
