"""Why something failed on another worker, as messages and receipts say it: the class of the error and its text."""

from __future__ import annotations

from ckptflow import errors
from ckptflow.errors import CkptflowError
from ckptflow.format.record import Record
from ckptflow.printable import lines_of


class Failure(Record, frozen=True, kw_only=True):
    """What one worker raised: the name of its class, its message, and the class of what it was raised from."""

    kind: str
    message: str
    cause: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def rebuild(self) -> CkptflowError | None:
        """The error as another worker raises it: of its class, and from its cause; None if that is not one of ours."""
        error = _one_of_ours(self.kind, self.message)
        if error is not None and self.cause:
            error.__cause__ = _one_of_ours(self.cause, self.message)
        return error


def _one_of_ours(name: str, message: str) -> CkptflowError | None:
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    return kind(lines_of(message)) if isinstance(kind, type) and issubclass(kind, CkptflowError) else None
