"""How lists, sizes and ages are said: in messages, in the terminal, on pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

NAMED = 8  # workers, or texts of different ones, in one message


def some_of(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """At most so many of the items, and how many more there are."""
    more = len(items) - most
    return separator.join(items[:most]) + (f" and {more} more" if more > 0 else "")


def workers_text(workers: Sequence[int], tell: Callable[[int], str] = str) -> str:
    """worker 3; workers 1, 2 and 990 more: eight are named. `tell` says of one what is said of each."""
    return f"worker{'s' if len(workers) > 1 else ''} {some_of([tell(each) for each in workers], NAMED)}"


def alike(texts: Iterable[tuple[int, str]]) -> list[tuple[list[int], str]]:
    """What workers say: each text once, with those who say it, and what few say first."""
    workers_of: dict[str, list[int]] = {}
    for worker, text in texts:
        workers_of.setdefault(text, []).append(worker)
    return sorted(((who, text) for text, who in workers_of.items()), key=lambda group: len(group[0]))


def count_text(count: int, what: str) -> str:
    """1 save, 2 saves."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size_text(size_bytes: int) -> str:
    """999 B, 1.50 KiB, 23.4 GiB; decimal units are not used."""
    size, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1000 or unit == "PiB":
            break
        size /= 1024
    return f"{size_bytes} B" if unit == "B" else f"{size:.{2 if size < 10 else 1}f} {unit}"


def age_text(created_at: datetime, now: datetime) -> str:
    """How long ago; clocks differ, so what lies ahead is "just now"."""
    seconds = (now - created_at).total_seconds()
    for unit, unit_s in (("y", 365 * 86_400), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 2 * unit_s:
            return f"{int(seconds // unit_s)} {unit} ago"
    return "just now"
