"""Python's cyclic garbage collector, kept from running where thousands of objects are made at once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keeps the collector from running in the block.

    Thousands of new objects make it run dozens of times, and every fourth time over everything that the process has:
    0.3 s with TensorFlow loaded, for objects that are in no cycle and gone a moment later, or kept.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
