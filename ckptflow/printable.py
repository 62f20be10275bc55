"""Text from storage and from files, made fit to be shown: at the edges, where messages, logs and pages leave us.

A name, a host or a server's answer may hold whatever its writer liked: a new line that begins a line of log, an escape
sequence that a terminal obeys, or a character that turns the order of what follows.
"""

from __future__ import annotations

import json
import logging

# Every logger of ours; a filter works on what is logged by that very logger, not by those below it.
LOGGERS = ("ckptflow", "ckptflow.bench", "ckptflow.events", "ckptflow.storage", "ckptflow.transfer")


def printable(text: str) -> str:
    """`text` on one line, each character that is not to be seen written as its escape (`\\n`, `\\x1b`, `\\u202e`)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_json(text: str) -> str:
    """The same JSON, with an escape for each character in its strings that is not to be seen."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def said(error: BaseException) -> str:
    """The text of an error of any class, also of one whose own code cannot make it: a failure must be told all the
    same."""
    try:
        return str(error)
    except Exception:
        return "(it has no text)"


class Lines(str):
    """A text that has several lines on purpose; made by `lines` or `lines_of`, each line of it printable."""

    __slots__ = ()


def lines(*parts: str) -> Lines:
    """The parts, each on a line of its own whatever is in it; what is `Lines` already stays."""
    return Lines("\n".join(part if isinstance(part, Lines) else printable(part) for part in parts))


def lines_of(text: str) -> Lines:
    """`text` with the lines that it has: of another worker, or of a library."""
    return lines(*text.split("\n"))


def one_line(record: logging.LogRecord) -> bool:
    """A filter for loggers: lets every record through, its message on one line."""
    try:
        message = record.getMessage()
    except Exception:  # arguments that do not fit: the handlers say so
        return True
    if not message.isprintable():
        record.msg, record.args = printable(message), ()
    return True


def loggers() -> list[logging.Logger]:
    """Every logger of ours."""
    return [logging.getLogger(_name) for _name in LOGGERS]


for _logger in loggers():
    _logger.addFilter(one_line)
