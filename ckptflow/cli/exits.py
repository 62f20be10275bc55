"""Exit codes, one table for code, help and docs; and how an error becomes one message and one code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TextIO

from ckptflow.cli.options import print_json
from ckptflow.errors import (
    CheckpointNotFoundError,
    CkptflowError,
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.printable import lines_of, printable
from ckptflow.storage.redaction import redact

EXITS = {
    0: "success",
    1: "damage, a difference or a broken promise was found, or nothing was found",
    2: "the command line: a bad URL, scheme, argument or option, something that cannot be done here, or a package that "
    "it needs is not installed",
    3: "the storage refused access, even to one file: credentials, permissions, no such bucket",
    4: "the storage did not answer after all retries, even for one file: try again later",
    5: "written by a newer ckptflow: upgrade",
    70: "a bug in ckptflow: please report it",
    74: "standard output cannot be written, for example because the disk is full",
    130: "interrupted",
    141: "the reader of standard output has exited, as `head` does; nothing is printed about it",
    143: "ended by SIGTERM",
}

_CODES: tuple[tuple[type[BaseException], int], ...] = (  # the first that fits
    (UnknownVersionError, 5),
    (StorageUnavailableError, 4),
    (CheckpointNotFoundError, 1),
    (CorruptCheckpointError, 1),
    (ObjectNotFoundError, 1),
    (ObjectExistsError, 2),
    (StorageError, 3),
    (CkptflowError, 2),
    (ValueError, 2),
    (ImportError, 2),
)


def exit_code(error: BaseException) -> int:
    """The code that an error ends the command with."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 70)


def report(error: BaseException, *, as_json: bool = False) -> int:
    """Says on stderr what went wrong, in one message without a credential, and on stdout the same as JSON if that was
    asked for; returns the exit code. A traceback precedes it only if CKPTFLOW_TRACEBACK is set."""
    code = exit_code(error)
    text = redact(str(error)) or type(error).__name__
    if os.environ.get("CKPTFLOW_TRACEBACK"):
        print(lines_of(redact("".join(traceback.format_exception(error)).rstrip())), file=sys.stderr)
    if isinstance(error, FileNotFoundError) and code == 70 and _is_nowhere():
        code, text = 1, "the current directory was deleted: change to one that exists, or give absolute paths"
    if code == 70:
        text = f"{type(error).__name__}: {text}; this is a bug, CKPTFLOW_TRACEBACK=1 shows where"
    print(f"ckptflow: {printable(text)}", file=sys.stderr)
    if as_json:
        print_error(type(error).__name__, text, code)
    return code


def _is_nowhere() -> bool:
    """Whether there is no current directory, so that a relative path leads nowhere."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def print_error(kind: str, message: str, code: int) -> None:
    """The JSON of a command that failed, in the shape that docs/cli.md gives, on one line as `watch` has them. Where it
    cannot be written, the exit code and stderr say it."""
    try:
        print_json({"error": {"kind": kind, "message": message, "exit_code": code}}, indent=-1)
    except OSError:
        _write_no_more(sys.stdout)


def is_lost(output: TextIO, error: Exception) -> bool:
    """Whether output takes no more: an error of the system's own does not tell which file it is about."""
    if not isinstance(error, OSError) or isinstance(error, CkptflowError | FileNotFoundError):  # which no write raises
        return False
    try:
        output.write("\n")
        output.flush()
    except OSError:
        return True
    return False


def report_lost(output: TextIO, error: BaseException) -> int:
    """Says that output could not be written, unless its reader has gone and wants no more; returns the exit code, for
    the latter that of a program which SIGPIPE ends."""
    is_unread = isinstance(error, BrokenPipeError)
    if not is_unread:
        print(f"ckptflow: standard output cannot be written: {getattr(error, 'strerror', error)}", file=sys.stderr)
    _write_no_more(output)
    return 141 if is_unread else 74


def _write_no_more(output: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # Python flushes once more at its end


def exits_text() -> str:
    """The table as it is shown in the help."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXITS.items())
