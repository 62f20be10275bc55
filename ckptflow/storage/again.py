"""No verdict by one answer: what looks wrong is asked again, over new connections and past caches, until two agree.

A bit flips on its way, a gateway says 404 for what is there, a proxy sends a page of its own: once. Whoever would give
up a checkpoint for that asks here. Damage is what was read wrong twice, in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError, StorageUnavailableError
from ckptflow.storage.store import Store

_log = logging.getLogger("ckptflow.storage")

MAX_ANSWERS = 3
_PROBED_BYTES = 2**20  # what is longer is first asked whether it is too long
_LONGEST_STEP_BYTES = 16 * 2**20  # else the last one of a manifest of 96 MiB would take 256 MiB
_Answer = TypeVar("_Answer")
_Record = TypeVar("_Record")


def agreed(store: Store, key: str, ask: Callable[[], _Answer], is_right: Callable[[_Answer], bool]) -> _Answer:
    """The first answer that is right, else the wrong one that was given twice.

    `ask` reads `key` (or lists it, where it ends with "/") anew at each call, into the same memory. Raises
    `StorageUnavailableError` after three different wrong answers: they say nothing about what is stored.
    """
    wrong: list[_Answer] = []
    while True:
        answer = ask()
        if is_right(answer):
            if wrong:
                _log.warning(
                    "%s/%s was read wrong %d time(s), then right: look at the network, at proxies and at memory",
                    store.url,
                    key,
                    len(wrong),
                )
            return answer
        if answer in wrong:
            return answer
        wrong.append(answer)
        if len(wrong) == MAX_ANSWERS:
            raise StorageUnavailableError(
                f"{store.url}/{key}: was read {MAX_ANSWERS} times with {MAX_ANSWERS} different results, none of them "
                "right, so nothing is known of what is stored; look at the network, at proxies and at memory, and try "
                "again"
            )
        renew(store, key)


def renew(store: Store, key: str) -> None:
    """What is asked of `key` next comes from the storage itself: no kept connection, no cache. Not all stores can."""
    own = getattr(store, "renew", None)
    if own is not None:
        own(key)


def hurry(store: Store, timeout_s: float) -> None:
    """From any thread: from now on all retries together wait `timeout_s`. Not all stores try again."""
    own = getattr(store, "hurry", None)
    if own is not None:
        own(timeout_s)


def read_small(store: Store, key: str, max_bytes: int, end: bytes = b"") -> bytes:
    """The whole object at `key`, read in steps so that memory follows the bytes that really come, up to `max_bytes`.

    With `end`, one byte, no more than what stands before the first of these, and what comes after it may be of any
    size. Raises `ObjectNotFoundError`, or ValueError where what is read is longer than `max_bytes`.
    """
    parts: list[bytes] = []
    total, step = 0, 64 * 1024
    while total <= max_bytes:
        buffer = bytearray(min(step, max_bytes + 1 - total))
        count = store.get(key, memoryview(buffer), total)
        parts.append(bytes(memoryview(buffer)[:count]))
        total += count
        if count < len(buffer) or (end and end in parts[-1]):
            data = b"".join(parts)
            return data.partition(end)[0] if end else data
        if not end and total > _PROBED_BYTES and store.get(key, memoryview(bytearray(1)), max_bytes):
            break  # before all of it is read in vain
        step = min(8 * step, _LONGEST_STEP_BYTES)
    raise ValueError(f"{store.url}/{key} is longer than {max_bytes:,} bytes")


def is_there(store: Store, key: str) -> bool:
    """Whether there is an object at `key`: asked for by its name, and "no" only where that was the answer twice."""

    def ask() -> bool:
        try:
            store.get(key, memoryview(bytearray(1)))
        except ObjectNotFoundError:
            return False
        return True

    return agreed(store, key, ask, bool)


@dataclass(frozen=True, slots=True)
class _Read(Generic[_Record]):
    """One reading of a small object: equal to another that brought the same bytes, or nothing as well."""

    mark: int | str | None
    outcome: _Record | Exception = field(compare=False)


def read_record(
    store: Store,
    key: str,
    max_bytes: int,
    decode: Callable[[bytes], _Record],
    *,
    may_be_missing: bool = False,
    end: bytes = b"",
) -> _Record:
    """What `decode` makes of the object at `key`, or of what stands in it before `end`; it raises
    `CorruptCheckpointError` for wrong bytes.

    Raises that for bytes that came wrong twice, or are more than `max_bytes`; `ObjectNotFoundError` for what was
    missing twice, or, with `may_be_missing` (someone is still to write it), once.
    """

    def ask() -> _Read[_Record]:
        try:
            data = read_small(store, key, max_bytes, end)
        except ObjectNotFoundError as error:
            return _Read(None, error)
        except ValueError as error:  # too long
            return _Read("too long", CorruptCheckpointError(str(error)))
        try:
            return _Read(hash(data), decode(data))
        except CorruptCheckpointError as error:
            return _Read(hash(data), error)

    def is_right(read: _Read[_Record]) -> bool:
        return not isinstance(read.outcome, Exception) or (may_be_missing and read.mark is None)

    outcome = agreed(store, key, ask, is_right).outcome
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
