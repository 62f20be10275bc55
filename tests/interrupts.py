"""Ctrl-C at a chosen line: KeyboardInterrupt in this thread, in the place of one line of ckptflow that it runs.

A real signal comes between two bytecodes, and so at the beginning of a line as well; here each line has its turn.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ckptflow

_PACKAGE = os.path.dirname(os.path.abspath(ckptflow.__file__)) + os.sep
_FOR_TESTS = os.path.join(_PACKAGE, "storage", "wrappers.py")


@dataclass(frozen=True)
class Ended:
    """How a call ended: what it raised; where the interrupt struck, as `saver.py:123`; how many lines were run."""

    error: BaseException | None
    struck: str | None
    line_count: int

    @property
    def text(self) -> str:
        """All that a traceback of it shows."""
        return "".join(traceback.format_exception(self.error))


def interrupted(call: Callable[[], object], at: int | None = None) -> Ended:
    """Calls it, with an interrupt in the place of line number `at` (from 0) of those that it runs here; None: none."""
    count, struck = 0, None

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count, struck
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) or name == _FOR_TESTS:
            return None
        if event == "line":
            count += 1
            if count - 1 == at:
                struck = f"{name.removeprefix(_PACKAGE)}:{frame.f_lineno}"
                raise KeyboardInterrupt  # and with it Python ends the tracing
        return trace

    before, error = sys.gettrace(), None
    sys.settrace(trace)
    try:
        next(_apart(call))
    except BaseException as caught:
        error = caught
    finally:
        sys.settrace(before)
    return Ended(error, struck, count)


def _apart(call: Callable[[], object]) -> Iterator[object]:
    """An interrupt as a handler begins or ends leaves its error as the one that is handled, for ever: in a generator
    only for as long as that runs. Whatever is raised later would have it as its context."""
    yield call()
