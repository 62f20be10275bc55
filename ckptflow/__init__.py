"""Asynchronous, sharded checkpoints for TensorFlow under `tf.distribute`, on local disk, Google Cloud Storage or S3.

Importing this package loads no TensorFlow; the names that need it load it when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckptflow.errors import (
    CheckpointGoneError,
    CheckpointNotFoundError,
    CkptflowError,
    CommitTimeoutError,
    CommitUnknownError,
    CorruptCheckpointError,
    FencedError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    PeerError,
    SaveFailedError,
    StateMismatchError,
    StepOrderError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnknownVersionError,
    UnsupportedStateError,
    UsageError,
)

if TYPE_CHECKING:
    from ckptflow.callbacks.callback import CheckpointCallback
    from ckptflow.commit.catalog import Checkpoint
    from ckptflow.commit.retention import KeepBest, KeepEvery, KeepLast
    from ckptflow.interop.export import export_checkpoint
    from ckptflow.interop.import_ import import_model
    from ckptflow.job.pending import PendingCheckpoint
    from ckptflow.manager import CheckpointManager
    from ckptflow.preemption import PreemptionWatcher
    from ckptflow.reading import list_checkpoints, open_checkpoint
    from ckptflow.state.per_worker import PerWorker

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointCallback",
    "CheckpointGoneError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "CkptflowError",
    "CommitTimeoutError",
    "CommitUnknownError",
    "CorruptCheckpointError",
    "FencedError",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "PeerError",
    "PendingCheckpoint",
    "PerWorker",
    "PreemptionWatcher",
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
    "__version__",
    "export_checkpoint",
    "import_model",
    "list_checkpoints",
    "open_checkpoint",
]

_LAZY = {
    "Checkpoint": "ckptflow.commit.catalog",
    "CheckpointCallback": "ckptflow.callbacks.callback",
    "CheckpointManager": "ckptflow.manager",
    "KeepBest": "ckptflow.commit.retention",
    "KeepEvery": "ckptflow.commit.retention",
    "KeepLast": "ckptflow.commit.retention",
    "PendingCheckpoint": "ckptflow.job.pending",
    "PerWorker": "ckptflow.state.per_worker",
    "PreemptionWatcher": "ckptflow.preemption",
    "export_checkpoint": "ckptflow.interop.export",
    "import_model": "ckptflow.interop.import_",
    "list_checkpoints": "ckptflow.reading",
    "open_checkpoint": "ckptflow.reading",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ckptflow' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
