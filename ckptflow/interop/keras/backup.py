"""What Keras's callbacks leave in a folder, and which file in it a run can start from. Opens next to nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

import h5py

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.format.words import some_of
from ckptflow.interop.keras.parts import INDEX_SUFFIX, shards_named
from ckptflow.interop.untrusted.hdf5_probe import check_survives
from ckptflow.interop.untrusted.private_copy import check_regular, open_regular
from ckptflow.places.names import listed

logger = logging.getLogger("ckptflow")

_LATEST, _METADATA = "latest.weights.h5", "training_metadata.json"  # of Keras 3's BackupAndRestore
_CHIEF = "chief"  # of tf_keras's, with a tf.train.CheckpointManager in it
# The longest that fits counts.
_SUFFIXES = {".keras": "keras", ".weights.h5": "weights", INDEX_SUFFIX: "weights", ".h5": "h5", ".hdf5": "h5"}
_MAX_JSON_BYTES = 2**16
_SHOWN = 10


def find_backup(folder: str) -> tuple[str, str, dict[str, Any]] | None:
    """The format, path and metadata of what Keras's `BackupAndRestore` or `ModelCheckpoint` left in a folder, or None.

    `BackupAndRestore` of Keras 3: its weights with the optimizer's state, as "weights"; the copy before them, which it
    keeps with `double_checkpoint=True`, where they are gone or damaged. Of tf_keras: "tf-checkpoint", the prefix that
    its manager names as the newest. `ModelCheckpoint`: the one `.keras`, `.h5` or `.weights.h5` file, or the newest
    tf-checkpoint where there is one. The metadata has `written_by` where that is certain (`BackupAndRestore`), and the
    `epoch` and `batch` that Keras 3 notes.
    Raises `UsageError` where there are several files, as only a person knows which is meant; `CorruptCheckpointError`
    where what is noted of a backup cannot be read.
    """
    names = listed(folder) if os.path.isdir(folder) else []
    backups = [suffix for suffix in ("", ".bkp") if _LATEST + suffix in names]
    for suffix in backups:
        path, note = os.path.join(folder, _LATEST + suffix), os.path.join(folder, _METADATA + suffix)
        if suffix != backups[-1] and not _is_hdf5(path):
            logger.warning("%s is damaged; taking the backup before it", path)
            continue
        check_regular([path], path)
        metadata = {"written_by": "BackupAndRestore", **(_read_note(note) if os.path.exists(note) else {})}
        return "weights", path, metadata
    if _CHIEF in names:
        prefix = _newest_prefix(os.path.join(folder, _CHIEF))
        if prefix is not None:
            return "tf-checkpoint", prefix, {"written_by": "BackupAndRestore"}
    newest = _newest_prefix(folder) if names else None
    if newest is not None:
        return "tf-checkpoint", newest, {}
    indexes = {name: shards_named(os.path.join(folder, name)) for name in names if name.endswith(INDEX_SUFFIX)}
    others = {name for name, shards in indexes.items() if not (shards or name.endswith(f".{INDEX_SUFFIX}"))}
    others.update(*indexes.values())  # parts
    files = [(name, found) for name in names if (found := _suffix_of(name)) is not None and name not in others]
    if len(files) > 1:
        raise UsageError(
            f"{folder} holds {len(files)} files that a run could start from; name one: "
            + some_of([name for name, _ in files], _SHOWN)
        )
    if not files:
        return None
    name, kind = files[0]
    return _SUFFIXES[kind], os.path.join(folder, name), {}


def _suffix_of(name: str) -> str | None:
    return max((suffix for suffix in _SUFFIXES if name.endswith(suffix)), key=len, default=None)


def _is_hdf5(path: str) -> bool:
    try:
        check_regular([path], path)
        check_survives(path)
        with h5py.File(path, "r", locking=False):
            return True
    except (OSError, CorruptCheckpointError, UsageError):  # the last: what stands in for it
        return False


def _read_note(path: str) -> dict[str, Any]:
    """The epoch and batch that Keras 3 notes beside a backup."""
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise ValueError(f"it is longer than {_MAX_JSON_BYTES:,} bytes")
        found = json.loads(data)
        return {key: int(found[key]) for key in ("epoch", "batch") if key in found}
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read: {error}") from error


def _newest_prefix(folder: str) -> str | None:
    """The newest tf-checkpoint in a folder: the one that its `checkpoint` file names, else the one with an index."""
    state, text = os.path.join(folder, "checkpoint"), ""
    if not os.path.isdir(state):
        with contextlib.suppress(OSError, UnicodeDecodeError), open_regular(state) as file:
            text = file.read(_MAX_JSON_BYTES).decode()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model_checkpoint_path":
            # The path may be from another machine; the folder is where it lies now.
            name = os.path.basename(value.strip().strip('"'))
            if os.path.isfile(os.path.join(folder, f"{name}.index")):
                return os.path.join(folder, name)
    found = [name for name in listed(folder) if name.endswith(".index")]
    return os.path.join(folder, found[0].removesuffix(".index")) if len(found) == 1 else None
