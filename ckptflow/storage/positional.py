"""Reads and writes at a position of an open file, whole: the system may do a part of one and say so."""

from __future__ import annotations

import os


def read_at(descriptor: int, into: memoryview, at: int) -> int:
    """Reads from byte `at` of the file on until `into` is full or the file ends. Returns how many bytes there were."""
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], at + done)
        if not count:
            break
        done += count
    return done


def write_at(descriptor: int, data: memoryview, at: int) -> None:
    """Writes all of `data` from byte `at` of the file on. On a full disk the second part of it raises."""
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count
