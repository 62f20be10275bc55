"""Named tensors, wherever they come from, as the first checkpoint of a run: committed as any other one is."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckptflow.commit.catalog import Checkpoint, Summaries, list_root
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.resume import Resume
from ckptflow.errors import LEAVING, CkptflowError, CorruptCheckpointError, SaveFailedError, UsageError
from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import Folder
from ckptflow.format.object_graph import ObjectGraph
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.format.values import to_json
from ckptflow.interop.tensors import NamedTensors, bytes_of
from ckptflow.job.arguments import (
    DEFAULT_COMMIT_TIMEOUT_S,
    DEFAULT_KEEP,
    DEFAULT_MEMORY_BUDGET_BYTES,
    check_step,
    default_shard_bytes,
)
from ckptflow.job.saver import Job, Saver, software_versions
from ckptflow.peers.team import Alone
from ckptflow.storage.store import Store, open_store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_shards
from ckptflow.transfer.streams import streams_for

LARGE_BYTES = 2**26


def commit_tensors(
    url: str | os.PathLike[str],
    step: int,
    tensors: NamedTensors,
    *,
    metadata: Any = None,
    storage_options: dict[str, Any] | None = None,
    shard_bytes: int | None = None,
    fresh: bool = False,
) -> Checkpoint:
    """Commits the tensors, and what belongs to them, as the checkpoint of `step` that begins the run at `url`.

    Returns once it is durable and counts: the run's `restore_latest()` goes on from it. Each tensor is read when its
    shard is packed and let go then, so that memory holds the staging buffers and a few tensors, never all. Nothing is
    committed, and nothing but the claim is left, unless all of them could be read.

    Raises `UsageError` on a root that holds checkpoints, unless `fresh` starts over on it; `CorruptCheckpointError`
    where a tensor is not what its `TensorInfo` says, and whatever else reading it raises of ours; `StorageError`,
    `FencedError`, `SaveFailedError`.
    """
    number = check_step(step)
    captured = _Captured(tensors)
    store = open_store(os.fspath(url), storage_options)
    shard_size = shard_bytes or default_shard_bytes(
        is_object_store=store.is_object_store, memory_budget_bytes=DEFAULT_MEMORY_BUDGET_BYTES
    )
    pool = BufferPool(max(DEFAULT_MEMORY_BUDGET_BYTES, shard_size), shard_size)
    try:
        if not fresh:
            _refuse_used(store)
        summaries = Summaries(store)
        start = Resume(store, Alone(), summaries, check=lambda _: None, load=lambda *_: None).start_anew(fresh=fresh)
        if start.held is None:
            raise UsageError(f"{store.url} was not claimed")
        coordinator = Coordinator(store, start, summaries, DEFAULT_KEEP, commit_timeout_s=DEFAULT_COMMIT_TIMEOUT_S)
        saver = Saver(
            store=store,
            cluster=Alone(),
            pool=pool,
            held=start.held,
            coordinator=coordinator,
            shard_bytes=shard_size,
            verify_replicas="small",
            streams=streams_for(store, pool),
            software=software_versions(),
        )
        job = Job(
            folder=Folder(number, start.held.number),
            snapshot=captured,
            plan=lambda size: plan_shards(captured.specs, worker=0, world_size=1, shard_bytes=size),
            metrics={},
            metadata=to_json(metadata, "metadata"),
            prune=False,
        )
        return _run(saver, coordinator, job)
    finally:
        pool.close()
        store.close()


def _refuse_used(store: Store) -> None:
    committed = list_root(store).committed
    if committed:
        raise UsageError(
            f"{store.url} holds {len(committed)} checkpoint(s), the newest {committed[-1]}: an import begins a run; "
            "name an empty root, or say fresh=True to start over in this one"
        )


def _run(saver: Saver, coordinator: Coordinator, job: Job) -> Checkpoint:
    acknowledged: list[Checkpoint | None] = []
    try:
        saver.run(job, acknowledged.append)
    except SaveFailedError as error:
        with contextlib.suppress(CkptflowError):
            coordinator.sweep_partials()
        if isinstance(error.__cause__, (CkptflowError, *LEAVING)):  # no workers to speak of, and the caller's thread
            raise error.__cause__ from error.__cause__.__cause__
        raise
    if not acknowledged or acknowledged[0] is None:
        raise SaveFailedError(f"{job.folder} was saved and not acknowledged")
    return acknowledged[0]


class _Captured:
    """Named tensors as a save wants its snapshot: each is read when it is first asked for. Thread-safe."""

    own_names: frozenset[str] = frozenset()

    def __init__(self, tensors: NamedTensors) -> None:
        self._tensors = tensors
        self._names = sorted(tensors.infos)
        counts = Counter(name for names in (self._names, *tensors.aliases.values()) for name in names)
        if len(counts) < counts.total():
            raise CorruptCheckpointError(f"{counts.most_common(1)[0][0]!r} is the name of two tensors")
        self.specs = tuple(map(self._spec, self._names))
        self._locks = [threading.Lock() for _ in self._names]
        self._held: list[Bytes1D | None] = [None] * len(self._names)

    @property
    def per_worker(self) -> tuple[str, ...]:
        return self._tensors.per_worker

    @property
    def python_state(self) -> Mapping[str, Any]:
        return self._tensors.python_state

    @property
    def models(self) -> Mapping[str, Any]:
        return self._tensors.models

    @property
    def object_graph(self) -> ObjectGraph | None:
        graph: ObjectGraph | None = self._tensors.object_graph
        return graph

    def _spec(self, name: str) -> TensorSpec:
        info = self._tensors.infos[name]
        dtypes.item_size_bytes(info.dtype)
        is_encoded = dtypes.is_encoded(info.dtype)
        return TensorSpec(
            name,
            info.dtype,
            () if is_encoded else tuple(info.shape),
            dynamic=is_encoded,
            aliases=tuple(self._tensors.aliases.get(name, ())),
            metric=name in self._tensors.metrics,
        )

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self._tensors.infos[self._names[index]].shape)

    def data(self, index: int) -> Bytes1D:
        with self._locks[index]:
            held = self._held[index]
            if held is None:
                held = self._held[index] = self._read(self._names[index])
            return held

    def _read(self, name: str) -> Bytes1D:
        info = self._tensors.infos[name]
        array = self._tensors.read(name)
        if array.dtype != dtypes.numpy_dtype(info.dtype) or array.shape != tuple(info.shape):
            raise CorruptCheckpointError(
                f"{name!r} was to be {info.dtype} of shape {list(info.shape)}, and is {array.dtype} of shape "
                f"{list(array.shape)}"
            )
        return dtypes.encode_strings(array) if dtypes.is_encoded(info.dtype) else bytes_of(array)

    def is_remote(self, index: int) -> bool:
        """Whether it is fetched in parts: no large tensor need ever be in memory as a whole."""
        info = self._tensors.infos[self._names[index]]
        size_bytes = boxes.volume(info.shape) * dtypes.item_size_bytes(info.dtype)
        return self._tensors.read_part is not None and not dtypes.is_encoded(info.dtype) and size_bytes > LARGE_BYTES

    def fetch(self, index: int, box: Box) -> Bytes1D:
        name = self._names[index]
        info, read_part = self._tensors.infos[name], self._tensors.read_part
        if read_part is None:
            raise UsageError(f"{name} is not read in parts")
        item = dtypes.item_size_bytes(info.dtype)
        parts = [
            read_part(name, there * item, (there + count) * item) for there, _, count in boxes.spans(info.shape, box)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def release(self, index: int) -> None:
        self._held[index] = None
