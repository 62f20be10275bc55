"""Lists in messages: the first few, and how many more."""

from __future__ import annotations

from collections.abc import Sequence


def some_of(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """At most so many of the items, and how many there are beside them."""
    more = len(items) - most
    return separator.join(items[:most]) + (f" and {more} more" if more > 0 else "")
