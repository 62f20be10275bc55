"""Reading a root without TensorFlow: its current checkpoints, and their tensors as NumPy arrays. Never claims."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from ckptflow.commit.catalog import (
    Checkpoint,
    Summaries,
    read_manifest,
    read_sealed,
    summarize,
)
from ckptflow.commit.finding import TRIES, find_folder, list_counting
from ckptflow.commit.listing import list_pin_names
from ckptflow.commit.retention import Mode, best_first, choose_mode
from ckptflow.errors import (
    CheckpointGoneError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectNotFoundError,
    UsageError,
)
from ckptflow.format import dtypes
from ckptflow.format.components import aggregate
from ckptflow.format.dtypes import Array
from ckptflow.format.layout import Folder, parse_folder
from ckptflow.format.manifest import Manifest, TensorRecord
from ckptflow.format.spec import Bytes1D, Target, Wanted
from ckptflow.format.values import from_json
from ckptflow.storage.opening import open_store
from ckptflow.storage.redaction import redact_url
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import filled_bytes
from ckptflow.transfer.buffers import BufferPool, memory_for
from ckptflow.transfer.reader import check_shards, read_tensors
from ckptflow.transfer.streams import Streams, pool_for_reading, streams_for
from ckptflow.transfer.verify import Sound, verify_checkpoint


def list_checkpoints(
    url: str | os.PathLike[str],
    *,
    best: str | None = None,
    mode: Mode | None = None,
    storage_options: dict[str, Any] | None = None,
) -> list[Checkpoint]:
    """The current checkpoints of the root `url`, oldest first; an empty list if there are none.

    With `best`, the name of a metric: only those that have it, the best value first, one for each step. `mode` is as in
    `KeepBest`: "min", "max", or left out for the name of a loss or an error.

    Reads manifests, no tensor; does not import TensorFlow; never claims or writes. A checkpoint whose manifest is
    damaged is left out, with a warning; if its incarnation has no other one, older ones are left out as well, since
    nothing says whether it continued from them (`restore_latest` takes the newest valid one). Raises ValueError for
    an unknown scheme, or if neither `mode` nor the metric's name says which value is best, `StorageError` if the
    storage refuses.
    """
    if best is None and mode is not None:
        raise ValueError("mode= says which value of a metric is best: give the metric's name as best=")
    if best is not None:
        choose_mode(best, mode)  # refused before anything is read
    with contextlib.closing(open_store(run_url(url), storage_options)) as store:
        found = list_counting(store, Summaries(store))
    return found if best is None else best_first(found, best, mode)


def open_checkpoint(
    url: str | os.PathLike[str], step: int | None = None, *, storage_options: dict[str, Any] | None = None
) -> OpenCheckpoint:
    """A checkpoint as a mapping from tensor name to NumPy array, each read and checked on access.

    `url` is a run's root, or one checkpoint's folder (`Checkpoint.url`). Without `step`: the newest current
    checkpoint whose manifest can be read. Does not import TensorFlow, never claims. Pin what must
    stay while you read it: a running job may prune what you have opened, and reading then raises
    `CheckpointGoneError`. Raises `CheckpointNotFoundError` if there is no such checkpoint.
    """
    return _open(os.fsdecode(url), step, storage_options, is_for_show=False)[0]


def open_to_show(
    url: str, step: int | None = None, *, storage_options: dict[str, Any] | None = None
) -> tuple[OpenCheckpoint, Summaries]:
    """The same for display: a file that cannot be read is skipped, and the summaries record it."""
    return _open(url, step, storage_options, is_for_show=True)


def _open(
    url: str, step: int | None, storage_options: dict[str, Any] | None, *, is_for_show: bool
) -> tuple[OpenCheckpoint, Summaries]:
    root, folder = split_url(url)
    if folder is not None and step not in (None, folder.step):
        raise ValueError(f"{folder} is the checkpoint of step {folder.step}, not {step}")
    store = open_store(root, storage_options)
    summaries = Summaries(store, is_for_show=is_for_show)
    try:
        manifest = _read(store, folder) if folder else _read_newest(store, summaries, step)
    except BaseException:
        store.close()
        raise
    return OpenCheckpoint(store, manifest), summaries


def split_url(url: str) -> tuple[str, Folder | None]:
    """The root's URL, and the checkpoint's folder if `url` names a checkpoint instead of a root."""
    root, separator, last = url.rstrip("/").rpartition("/")
    folder = parse_folder(last) if not root.endswith(":/") else None  # a bucket is no checkpoint, whatever its name
    return (url, None) if folder is None else (root or separator or ".", folder)


def url_below(url: str, name: str) -> str:
    """The URL of `name` in the folder `url`, to be opened: what a store shows as its URL may lack a part."""
    scheme, separator, path = url.rpartition("://")
    return f"{scheme}{separator}{path.rstrip('/')}/{name}"


def run_url(url: str | os.PathLike[str]) -> str:
    """The URL of a run's root as a string. Raises `UsageError` for the URL of a checkpoint: the run is not listed
    there, and a run started there would be deleted with it."""
    text = os.fsdecode(url)
    root, folder = split_url(text)
    if folder is not None:
        raise UsageError(f"{redact_url(text)} is one checkpoint's folder; the run's root is {redact_url(root)}")
    return text


class OpenCheckpoint(Mapping[str, Array]):
    """One checkpoint, opened: `checkpoint["model/dense/kernel"]` reads that tensor and no other.

    Arrays have the tensor's global shape and dtype (bfloat16 and the like by `ml_dtypes`; strings as objects of bytes).
    A variable of which each worker had its own value is returned as it is restored: their sum, their mean, or the
    first.
    Every byte is checked against its checksum before an array is returned: `CorruptCheckpointError` otherwise.
    `[...]` and `in` also find aliases; iteration yields each tensor once, by its name.
    """

    def __init__(
        self, store: Store, manifest: Manifest, pool: BufferPool | None = None, streams: Streams | None = None
    ) -> None:
        """`pool`: staging memory to use, which is closed with this, and the turns to take; by default allocated when
        first needed."""
        folder = parse_folder(manifest.folder)
        if folder is None:
            raise CorruptCheckpointError(f"{store.url}: {manifest.folder!r} is not a checkpoint folder")
        self._store = store
        self._folder = folder
        self._pool = pool
        self._streams = streams
        self._is_checked = False
        self._index = {name: i for i, tensor in enumerate(manifest.tensors) for name in (tensor.name, *tensor.aliases)}
        self.manifest = manifest
        self.checkpoint = summarize(manifest, store.url).checkpoint

    @property
    def python_state(self) -> dict[str, Any]:
        """The plain Python state, by its name in the state."""
        return {name: from_json(value, name) for name, value in self.manifest.python_state.items()}

    def spec(self, name: str) -> TensorRecord:
        """A tensor's dtype, shape and slices, without reading it. Raises KeyError."""
        return self.manifest.tensors[self._index[name]]

    def read(self, names: Iterable[str]) -> dict[str, Array]:
        """Reads several tensors at once, in the fastest order. One alone is `checkpoint[name]`.

        Raises KeyError, and TypeError for a string in place of names.
        """
        if isinstance(names, str):
            raise TypeError(f"read takes a list of names, not a string: read([{names!r}]), or checkpoint[{names!r}]")
        wanted = {name: self._index[name] for name in names}
        target = ArrayTarget(self.manifest)
        self.read_into([Wanted(index) for index in sorted(set(wanted.values()))], target)
        return {name: target.arrays[index] for name, index in wanted.items()}

    def read_into(self, wanted: Sequence[Wanted], target: Target) -> None:
        """Reads tensors, or boxes of them, into `target`, each checked before it is passed on."""
        try:
            self._check_shards()
            pool = self._buffers()
            if self._streams is None:
                self._streams = streams_for(self._store, pool)
            read_tensors(self._store, self._folder, self.manifest, wanted, target, pool, streams=self._streams)
        except CorruptCheckpointError as error:
            self._raise_if_gone(error)
            raise

    def stored_bytes(self) -> int:
        """The bytes that there are for its tensors: of shards as long as the manifest says, without holes in a file.

        Raises `CorruptCheckpointError` where a shard has another length, `CheckpointGoneError`, `StorageError`.
        """
        total = 0
        try:
            self._check_shards()
            for shard in self.manifest.shards:
                filled = filled_bytes(self._store, self._folder.key(shard.name))
                total += shard.size_bytes if filled is None else filled
        except (CorruptCheckpointError, ObjectNotFoundError) as error:
            self._raise_if_gone(error)
            raise
        return total

    def manifest_sha256(self) -> str:
        """The SHA-256 of `manifest.json` as stored, in hex.

        Raises `CheckpointGoneError`, and `CorruptCheckpointError` if it is damaged.
        """
        try:
            _, data = read_sealed(self._store, self._folder)
        except ObjectNotFoundError as error:
            raise CheckpointGoneError(
                f"{self.checkpoint.url} was pruned while it was read; pin what must stay"
            ) from error
        return hashlib.sha256(data).hexdigest()

    def pin_names(self) -> tuple[str, ...] | None:
        """The names of its pin, perhaps none; None if it is not pinned. Lists the pins."""
        return list_pin_names(self._store).get(self._folder)

    def verify(self, sound: Sound | None = None, only: Collection[int] | None = None) -> list[str]:
        """Reads every byte and returns a message for each problem; an empty list if there is none.

        Pass one dictionary as `sound` for several checkpoints of a root to read files that they share only once. With
        `only`, the numbers of some shards in the manifest, only these are read.
        """
        problems = [str(problem) for problem in verify_checkpoint(
            self._store, self._folder, self.manifest, self._buffers(), sound=sound, only=only)]  # fmt: skip
        if problems:
            self._raise_if_gone(None)
        return problems

    def close(self) -> None:
        """Releases memory and connections."""
        if self._pool is not None:
            self._pool.close()
        self._store.close()

    def __getitem__(self, name: str) -> Array:
        return self.read([name])[name]

    def __iter__(self) -> Iterator[str]:
        return (tensor.name for tensor in self.manifest.tensors)

    def __len__(self) -> int:
        return len(self.manifest.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        found = self.checkpoint
        return f"<OpenCheckpoint {found.url!r}: step {found.step}, {len(self)} tensors, {found.size_bytes:,} bytes>"

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _buffers(self) -> BufferPool:
        if self._pool is None:
            self._pool = pool_for_reading(self._store)
        return self._pool

    def _check_shards(self) -> None:
        """Once, before memory is taken on the manifest's word: are the shards as long as it says?"""
        if not self._is_checked:
            check_shards(self._store, self._folder, self.manifest)
            self._is_checked = True

    def _raise_if_gone(self, error: Exception | None) -> None:
        """A prune deletes the manifest first: what then looks damaged was on its way out."""
        try:
            read_manifest(self._store, self._folder)
        except ObjectNotFoundError:
            raise CheckpointGoneError(
                f"{self.checkpoint.url} was pruned while it was read; pin what must stay, or open the newest again"
            ) from error
        except CorruptCheckpointError:
            pass


class ArrayTarget:
    """Puts tensors into new NumPy arrays."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._bytes: dict[int, Bytes1D] = {}
        self.arrays: dict[int, Array] = {}

    def open(self, wanted: Wanted) -> Bytes1D:
        tensor = self._manifest.tensors[wanted.tensor]
        self._bytes[wanted.tensor] = memory_for(f"tensor {tensor.name!r}", tensor.size_bytes)
        return self._bytes[wanted.tensor]

    def finish(self, wanted: Wanted) -> None:
        self.arrays[wanted.tensor] = to_array(self._manifest.tensors[wanted.tensor], self._bytes.pop(wanted.tensor))


def to_array(tensor: TensorRecord, data: Bytes1D) -> Array:
    """The array of a tensor's stored bytes, with its components combined."""
    if dtypes.is_encoded(tensor.dtype):
        try:
            return dtypes.decode_strings(data, tensor.shape)
        except ValueError as error:
            raise CorruptCheckpointError(f"tensor {tensor.name!r}: {error}") from error
    array = data.view(dtypes.numpy_dtype(tensor.dtype)).reshape(tensor.shape)
    if tensor.components is not None:
        array = aggregate(array, tensor.components)
    return array


def _read(store: Store, folder: Folder) -> Manifest:
    try:
        return read_manifest(store, folder)
    except ObjectNotFoundError as error:
        raise CheckpointNotFoundError(f"{store.url}/{folder} has no committed checkpoint") from error


def _read_newest(store: Store, summaries: Summaries, step: int | None) -> Manifest:
    for _ in range(TRIES):
        try:
            return read_manifest(store, find_folder(store, summaries, step))
        except ObjectNotFoundError:
            continue
    raise CheckpointGoneError(f"{store.url}: checkpoints are deleted faster than they can be opened; pin one")
