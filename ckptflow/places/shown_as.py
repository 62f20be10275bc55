"""What stands in for a file or folder of the user's for a while is never named: messages say what the user gave."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckptflow.printable import Lines, lines, loggers
from ckptflow.storage.faults import chain


@contextmanager
def shown_as(path: str, shown: str) -> Iterator[None]:
    """Errors that leave the block, what they were raised from, and what is logged in it name `shown` for `path`."""

    def name_it(record: logging.LogRecord) -> bool:
        with suppress(Exception):  # arguments that do not fit: the handlers say so
            message = record.getMessage()
            if path in message:
                record.msg, record.args = message.replace(path, shown), ()
        return True

    ours = loggers()
    for logger in ours:
        logger.filters.insert(0, name_it)  # the innermost says it first
    try:
        yield
    except Exception as error:
        for link in chain(error):
            _rename(link, path, shown)
        raise
    finally:
        for logger in ours:
            logger.removeFilter(name_it)


@contextmanager
def private_folder(prefix: str, shown: str, *, beside: str | None = None) -> Iterator[str]:
    """A folder of this user's alone, where TMPDIR says or in the folder `beside`, which goes when the block is left.

    Messages name `shown` for what is in it. For a disk that is full they name the folder, which tells which disk.
    """
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as folder,
        shown_as(os.path.join(folder, ""), os.path.join(shown, "")),
    ):
        yield folder


@contextmanager
def private_file(prefix: str, name: str, shown: str, *, beside: str | None = None) -> Iterator[str]:
    """A path in such a folder, where nothing is yet; messages name `shown` for it."""
    with private_folder(prefix, shown, beside=beside) as folder:
        path = os.path.join(folder, name)
        with shown_as(path, shown):
            yield path


def _rename(error: BaseException, path: str, shown: str) -> None:
    if path in str(error):
        with suppress(Exception):
            error.args = tuple(_renamed(each, path, shown) if isinstance(each, str) else each for each in error.args)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = error.filename.replace(path, shown)
    if path in "".join(notes := getattr(error, "__notes__", [])):
        notes[:] = [note.replace(path, shown) for note in notes]


def _renamed(text: str, path: str, shown: str) -> str:
    if isinstance(text, Lines):
        return lines(*(line.replace(path, shown) for line in text.split("\n")))
    return text.replace(path, shown)
