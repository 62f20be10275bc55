"""The exception tree, grouped by what a handler would do.

CkptflowError
├── StorageError (OSError)                      the storage refused or failed; the message says which key and why
│   ├── ObjectNotFoundError (FileNotFoundError)     nothing under this key
│   ├── ObjectExistsError (FileExistsError)         create-only found something there
│   ├── ObjectChangedError                          what was to be copied is another version: write it anew
│   ├── StorageUnavailableError (ConnectionError)   throttled, 5xx, timed out, after all retries: try again later
│   ├── StorageAccessError (PermissionError)        credentials, permissions, read-only mounts: a person must act
│   └── StorageFullError                            no space, quota or file-size limit: make room
├── CheckpointNotFoundError (FileNotFoundError) no such checkpoint
│   └── CheckpointGoneError                         it was there and was pruned while being read: pin it
├── CorruptCheckpointError (ValueError)         checksum mismatch, or a shard is missing
├── UnknownVersionError (ValueError)            written by a newer ckptflow: upgrade
├── StateMismatchError (ValueError)             checkpoint and state differ; the message tells how
├── UnsupportedStateError (TypeError)           an object in the state cannot be saved; named, with a way out
├── FencedError (RuntimeError)                  a newer incarnation holds this root: stop, do not restart
├── SaveFailedError (RuntimeError)              a save in the background failed; `__cause__` is why
│   ├── CommitTimeoutError (TimeoutError)           workers did not report before the deadline; they are named
│   └── CommitUnknownError                          the manifest was sent and no reply came: it may or may not count
├── PeerError (RuntimeError)                    another worker failed, or never came; what is known is carried along
└── UsageError (RuntimeError)                   wrong time, thread or order; the message says what to do
    └── StepOrderError (ValueError)                 a step below one that was saved or restored
"""

from __future__ import annotations

from ckptflow.printable import Lines, printable

__all__ = [
    "CheckpointGoneError",
    "CheckpointNotFoundError",
    "CkptflowError",
    "CommitTimeoutError",
    "CommitUnknownError",
    "CorruptCheckpointError",
    "FencedError",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "PeerError",
    "SaveFailedError",
    "StateMismatchError",
    "StepOrderError",
    "StorageAccessError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "UnknownVersionError",
    "UnsupportedStateError",
    "UsageError",
]

# How a program leaves, by Ctrl-C, by its own end, or out of a generator: on the main thread no failure of ours. What
# else is no Exception, as a client's panic, is an error like any other.
LEAVING = (KeyboardInterrupt, SystemExit, GeneratorExit)


class CkptflowError(Exception):
    """The root of everything that ckptflow raises on purpose."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.args and isinstance(self.args[0], Lines) else printable(text)


class StorageError(CkptflowError, OSError):
    """The storage refused or failed. Nothing that was committed before is touched."""


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """Nothing is stored under this key."""


class ObjectExistsError(StorageError, FileExistsError):
    """A create-only write found the key taken. After a lost reply the taker can be the caller itself: read it back."""


class ObjectChangedError(StorageError):
    """A copy inside the storage found its source replaced. A save then writes the bytes anew, and does not raise it."""


class StorageUnavailableError(StorageError, ConnectionError):
    """Throttled, failing or silent, still so after all retries. The same call may succeed later.

    `asks_for_less`: whether the storage asked for fewer requests; `is_unreachable`: whether nobody listens there.
    """

    asks_for_less: bool = False
    is_unreachable: bool = False


class StorageAccessError(StorageError, PermissionError):
    """Credentials, permissions or a read-only mount: no retry helps until a person acts. Never shows a credential."""


class StorageFullError(StorageError):
    """No space, quota or file-size limit. Nothing older is deleted to make room for what is not committed."""


class CheckpointNotFoundError(CkptflowError, FileNotFoundError):
    """No such checkpoint in this root."""


class CheckpointGoneError(CheckpointNotFoundError):
    """The checkpoint was there and was pruned while it was read. Pin what must stay while you read it."""


class CorruptCheckpointError(CkptflowError, ValueError):
    """Checksum mismatch, or a shard that the manifest names is missing, twice; says which, where and why."""


class UnknownVersionError(CkptflowError, ValueError):
    """The format version is not one that this ckptflow knows. Upgrade ckptflow; nothing is wrong with the data."""


class StateMismatchError(CkptflowError, ValueError):
    """Checkpoint and state differ: names, shapes, dtypes, or what a table, iterator or object takes. Says all of it."""


class UnsupportedStateError(CkptflowError, TypeError):
    """The state holds an object that cannot be saved; the message names it and says what can be done."""


class FencedError(CkptflowError, RuntimeError):
    """A newer incarnation holds this root: what this one writes from now on does not count.

    Stop this job and do not restart it: restarting jobs fence each other forever. An evaluation job next to a
    running one opens the root with `read_only=True`, which never fences.
    """


class SaveFailedError(CkptflowError, RuntimeError):
    """A save in the background failed; `__cause__` says why. Older checkpoints are untouched."""


class CommitTimeoutError(SaveFailedError, TimeoutError):
    """Workers did not report before `commit_timeout_s`; the message names them. The checkpoint does not count."""


class CommitUnknownError(SaveFailedError):
    """The manifest, or a worker's word that it has saved, was sent and never answered. The next restore finds out."""


class PeerError(CkptflowError, RuntimeError):
    """Another worker failed or never came, so this one raises instead of waiting for it; says what is known of it."""


class UsageError(CkptflowError, RuntimeError):
    """Called at the wrong time, from the wrong thread or in the wrong order; the message says what to do instead."""


class StepOrderError(UsageError, ValueError):
    """A step below one that this incarnation has saved or restored. To go back, restore an older step first, by
    `rollback(step)` or `restore(step)`."""
