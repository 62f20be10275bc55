"""A committed checkpoint as programs see it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# Times are for people. A day from both ends of the calendar, so that whatever shows one has a place for it.
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: what its manifest says, without its tensors.

    `created_at` is aware of its time zone; `size_bytes` counts the shards, and `copied_bytes` those of them that were
    copied inside the storage, from an older checkpoint, and not sent; `url` is the checkpoint's folder. `metrics` and
    `metadata` are copies each time: changing them changes no checkpoint.
    """

    step: int
    incarnation: int
    metrics: Mapping[str, float]
    metadata: Any
    created_at: datetime
    size_bytes: int
    url: str
    copied_bytes: int = 0

    def __repr__(self) -> str:
        made = self.created_at.isoformat(" ", "seconds")
        return f"<Checkpoint {self.url!r}: step {self.step}, {self.size_bytes:,} bytes, {made}, {dict(self.metrics)}>"


class _Copied:
    # A field that is copied on its way in and on its way out: whatever hooks, policies and programs do with what they
    # get, retention, which reads the same one, does not see it.

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else copy.deepcopy(vars(owner)[self._name])

    def __set__(self, owner: Any, value: Any) -> None:
        vars(owner)[self._name] = copy.deepcopy(value)


for _name in ("metrics", "metadata"):
    setattr(Checkpoint, _name, _Copied(_name))  # afterwards: for the class's own fields it would be a default


def as_time(text: str) -> datetime:
    """The time that a record holds, in UTC. Raises ValueError for what is none."""
    time = datetime.fromisoformat(text)
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return min(max(time, _FIRST), _LAST).astimezone(UTC)
