"""What happens to checkpoints, as typed events: for `CheckpointManager(on_event=…)`, its log and its metrics.

Every worker emits its own events. An event is plain data without tensors or secrets: its fields are numbers,
strings and times, so `dataclasses.asdict` gives what any log or queue accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

__all__ = [
    "Claimed",
    "Committed",
    "Damaged",
    "Event",
    "NotFinite",
    "Pruned",
    "Restored",
    "Retried",
    "SaveBegan",
    "SaveFailed",
    "ShardsWritten",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have: `url`, the root of the run; `worker`, which emitted it; `at`, by its clock."""

    url: str = ""
    worker: int = 0
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> str:
        """The class's name as a word of a log, as `save_began` for `SaveBegan`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(Event):
    """This attempt of the job has claimed the root. `reason`: start, resume, rollback, damage, outside or fresh."""

    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(Event):
    """The state is that of `folder`, committed at `created_at`; restoring took `restore_s`, agreement of all workers
    included.

    This worker has read `storage_bytes` of shards from storage, and got `peer_bytes` from other workers.
    `is_only_read`: by `restore(step)`, to look at it; it need not be the newest.
    """

    step: int
    folder: str
    size_bytes: int
    restore_s: float
    created_at: datetime
    storage_bytes: int = 0
    peer_bytes: int = 0
    is_only_read: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged(Event):
    """`folder` cannot be restored, so the one before it is tried; `error` says why."""

    step: int
    folder: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveBegan(Event):
    """`save` is about to return; it blocked the training thread for `blocked_s`.

    Of this, `capture_s` was taking references to the values; the rest was waiting for the previous save, for the
    other workers, and, at the first save of an attempt that restored nothing, for the claim.
    """

    step: int
    folder: str
    blocked_s: float
    capture_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsWritten(Event):
    """This worker's shards, `size_bytes` in all, and its receipt are durable, `write_s` after `save` was called.

    Of these, `copied_bytes` were not sent: the storage copied them from an earlier checkpoint.
    """

    step: int
    folder: str
    size_bytes: int
    copied_bytes: int = 0
    write_s: float

    @property
    def sent_bytes(self) -> int:
        return self.size_bytes - self.copied_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinite(Event):
    """With `check_finite=True`: of what this worker has written of a save, `value_count` values are NaN or Inf.

    They are in `tensor_count` tensors; `tensors` has the first 20 of these by name, each with its count. What another
    worker has written is not in it, nor what was copied because it is proved not to have changed. What is read and
    compared first, as in the first save after a restart, is looked at even where it is then copied.
    """

    step: int
    folder: str
    value_count: int
    tensor_count: int
    tensors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Event):
    """Only the chief: the checkpoint is committed and acknowledged, `save_s` after `save` was called.

    `size_bytes` counts the shards of all workers; `gib_per_s` is that over `save_s`. Of these, `copied_bytes` were not
    sent: the storage copied them from an earlier checkpoint.
    """

    step: int
    folder: str
    size_bytes: int
    copied_bytes: int = 0
    save_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def sent_bytes(self) -> int:
        return self.size_bytes - self.copied_bytes

    @property
    def gib_per_s(self) -> float:
        return self.size_bytes / 2**30 / self.save_s if self.save_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFailed(Event):
    """This worker's part of a save failed in the background. `error` begins with the error's class."""

    step: int
    folder: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned(Event):
    """Only the chief: `folder`, `size_bytes` in all its files, was deleted, and why.

    Of these, `freed_bytes` became free: on a disk, files that other checkpoints share do not.
    """

    step: int
    folder: str
    size_bytes: int
    freed_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(Event):
    """A request to the storage failed for the `tries`-th time and is retried after `wait_s`."""

    verb: str
    key: str
    tries: int
    wait_s: float
    error: str
    asks_for_less: bool = False  # whether the storage asked for fewer requests


Tell = Callable[[Event], None]


def tell_nobody(event: Event) -> None:
    """The callback where there is no manager."""
