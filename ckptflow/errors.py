"""The exception tree, grouped by what a handler would do.

CkptflowError
├── StorageError (OSError)                      the storage refused or failed; the message says which key and why
│   ├── ObjectNotFoundError (FileNotFoundError)     no object under this key
│   ├── ObjectExistsError (FileExistsError)         create-only found something there
│   ├── ObjectChangedError                          the source of a copy was replaced: write the bytes again
│   ├── StorageUnavailableError (ConnectionError)   throttled, 5xx, timed out, after all retries: try again later
│   ├── StorageAccessError (PermissionError)        credentials, permissions, read-only mounts: a person must act
│   └── StorageFullError                            no space, quota or file-size limit: make room
├── CheckpointNotFoundError (FileNotFoundError) no such checkpoint
│   └── CheckpointGoneError                         it was there and was pruned while being read: pin it
├── CorruptCheckpointError (ValueError)         checksum mismatch, or a shard is missing
├── UnknownVersionError (ValueError)            written by a newer ckptflow: upgrade
├── StateMismatchError (ValueError)             checkpoint and state differ; the message says how
├── UnsupportedStateError (TypeError)           an object in the state cannot be saved; named, with an alternative
├── FencedError (RuntimeError)                  a newer incarnation has claimed this root: stop, do not restart
├── SaveFailedError (RuntimeError)              a save in the background failed; `__cause__` is why
│   ├── CommitTimeoutError (TimeoutError)           workers did not report before the deadline; they are named
│   └── CommitUnknownError                          the manifest was sent, no reply came: it may or may not be committed
├── PeerError (RuntimeError)                    another worker failed or never arrived; the message says what is known
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
    """There is no object under this key."""


class ObjectExistsError(StorageError, FileExistsError):
    """A create-only write found the key taken. After a lost reply the taker can be the caller itself: read it back."""


class ObjectChangedError(StorageError):
    """A copy inside the storage found its source replaced. A save writes the bytes again instead of raising it."""


class StorageUnavailableError(StorageError, ConnectionError):
    """Throttled, failing or silent, still so after all retries. The same call may succeed later.

    `asks_for_less`: whether the storage asked for fewer requests; `is_unreachable`: whether nothing listens there.
    """

    asks_for_less: bool = False
    is_unreachable: bool = False


class StorageAccessError(StorageError, PermissionError):
    """Credentials, permissions or a read-only mount: a person must act, retrying does not help. Shows no credential."""


class StorageFullError(StorageError):
    """No space, quota or file-size limit. No older checkpoint is deleted to make room for an uncommitted one."""


class CheckpointNotFoundError(CkptflowError, FileNotFoundError):
    """No such checkpoint in this root."""


class CheckpointGoneError(CheckpointNotFoundError):
    """The checkpoint was there and was pruned while it was read. Pin what must stay while you read it."""


class CorruptCheckpointError(CkptflowError, ValueError):
    """Checksum mismatch, or a shard that the manifest names is missing, twice; says which, where and why."""


class UnknownVersionError(CkptflowError, ValueError):
    """The format version is not one that this ckptflow knows. Upgrade ckptflow; nothing is wrong with the data."""


class StateMismatchError(CkptflowError, ValueError):
    """Checkpoint and state differ: names, shapes, dtypes, or what a table, iterator or object accepts; says which."""


class UnsupportedStateError(CkptflowError, TypeError):
    """The state contains an object that cannot be saved; the message names it and says what to do."""


class FencedError(CkptflowError, RuntimeError):
    """A newer incarnation has claimed this root: what this one saves from now on is not used.

    Stop this job and do not restart it: restarting jobs fence each other forever. An evaluation job next to a
    running one opens the root with `read_only=True`, which never fences.
    """


class SaveFailedError(CkptflowError, RuntimeError):
    """A save in the background failed; `__cause__` says why. Older checkpoints are untouched."""


class CommitTimeoutError(SaveFailedError, TimeoutError):
    """Workers did not report before `commit_timeout_s`; the message names them. The checkpoint is not committed."""


class CommitUnknownError(SaveFailedError):
    """The manifest, or a worker's word that it has saved, was sent and not answered. The next restore finds out."""


class PeerError(CkptflowError, RuntimeError):
    """Another worker failed or never came, so this one raises instead of waiting; the message says what is known."""


class UsageError(CkptflowError, RuntimeError):
    """Called at the wrong time, from the wrong thread or in the wrong order; the message says what to do instead."""


class StepOrderError(UsageError, ValueError):
    """A step below one that this incarnation has saved or restored. To go back, restore an older step first, by
    `rollback(step)` or `restore(step)`."""
