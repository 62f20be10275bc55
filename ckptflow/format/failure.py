"""Why something failed on another worker, as messages and receipts say it: the class of the error and its text."""

from __future__ import annotations

from collections.abc import Callable

from ckptflow import errors
from ckptflow.errors import CkptflowError
from ckptflow.format.record import Record
from ckptflow.printable import lines_of

MAX_CHARACTERS = 4000


class Failure(Record, frozen=True, kw_only=True):
    """What one worker raised: the name of its class, and its message."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def rebuild(self) -> CkptflowError | None:
        """The error as another worker raises it: of its own class, None if that is not one of ours."""
        kind = getattr(errors, self.kind, None) if self.kind in errors.__all__ else None
        if isinstance(kind, type) and issubclass(kind, CkptflowError):
            return kind(lines_of(self.message))
        return None


def failure_of(error: BaseException, tell: Callable[[str], str] = str) -> Failure:
    """What is told of an error: what `tell` makes of its text, a few thousand characters at most. Never raises for a
    text that cannot be had."""
    try:
        text = str(error)
    except Exception:  # of a class that is not ours
        text = "(it has no text)"
    shown = tell(text).encode("utf-8", "replace").decode()[:MAX_CHARACTERS]
    return Failure(kind=type(error).__name__, message=shown)
