"""What the reader asks of other workers, of whom it knows nothing else: ranges that several want are read by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ckptflow.transfer.ranges import Range


@dataclass(frozen=True, slots=True)
class Division:
    """This worker's part in what is read together: what it reads for others as well, and what it gets of them.

    Each in the order in which it is to be read, or asked for: nobody waits for ever only if all keep to it.
    `read_buffers`: of the pool, for what comes from storage, one at least; the rest is for what comes from others.
    """

    own: Sequence[Range] = ()
    others: Sequence[Range] = ()
    read_buffers: int = 0


class Moved(NamedTuple):
    """How many bytes came from where."""

    storage_bytes: int = 0
    peer_bytes: int = 0


class Sharing(Protocol):
    """The other workers, in one reading of one checkpoint. All but `division` is for the reader's threads.

    Nothing of it raises for what others do, or fail to do: whatever cannot be had of them is read from storage.
    """

    @property
    def division(self) -> Division: ...

    def pull(self, number: int, into: memoryview, is_stopped: Callable[[], bool]) -> bool:
        """Fills it with `division.others[number]`, not to be trusted; False: it has to be read from storage.

        To be called once for each number, in their order. Raises `StoppedError` once `is_stopped`.
        """

    def distrust(self, number: int, why: str) -> None:
        """What came of `division.others[number]` was wrong: its owner is not asked again."""

    def lend(self, number: int, view: memoryview, give_back: Callable[[], None]) -> None:
        """`division.own[number]` is here, and stays as it is until `give_back` is called. Whole slices in it are
        verified; what is part of one may be wrong, which whoever has all its parts finds."""

    def advance(self) -> None:
        """A request to the storage has ended: those who wait for what this worker reads may wait on."""

    def press(self) -> None:
        """A buffer is waited for: nothing is kept for those who do not come, also of what was read before."""
