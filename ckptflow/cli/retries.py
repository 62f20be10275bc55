"""How the command tries again what a storage did not answer: not for long where nobody listens, and in few words."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIES = 3
_LINE = 120  # characters


class _Brief(logging.Handler):
    """What the storage's logger says, on stderr, a line of bounded length each: the last message has all of it."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if len(text) > _LINE:  # the address, in the middle: the cause stands at the end
            text = f"{text[: _LINE // 3]} … {text[-_LINE + _LINE // 3 + 3 :]}"
        try:
            print(text, file=sys.stderr)
        except Exception:  # that nobody reads it must not end what is tried again
            self.handleError(record)


@contextmanager
def briefly_retrying() -> Iterator[None]:
    """In the block, stores are opened and log as befits somebody who waits in front of them."""
    from ckptflow.storage.retry import connect_tries

    logger, handler = logging.getLogger("ckptflow.storage"), _Brief(logging.WARNING)
    logger.addHandler(handler)
    token = connect_tries.set(_TRIES)
    try:
        yield
    finally:
        connect_tries.reset(token)
        logger.removeHandler(handler)
