"""What the others are told of an error: by messages, notes and receipts alike."""

from __future__ import annotations

from collections.abc import Callable

from ckptflow.format.failure import Failure
from ckptflow.printable import said
from ckptflow.storage.redaction import redact

MAX_CHARACTERS = 4000


def failure_of(error: BaseException, tell: Callable[[str], str] = str) -> Failure:
    """What `tell` makes of its text without credentials, a few thousand characters at most."""
    shown = tell(redact(said(error))).encode("utf-8", "replace").decode()[:MAX_CHARACTERS]
    cause = type(error.__cause__).__name__ if error.__cause__ is not None else ""
    return Failure(kind=type(error).__name__, message=shown, cause=cause)
