"""Roots written for tests by the real planner, writer and coordinator, from NumPy arrays: no TensorFlow is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Checkpoint, Summaries, read_manifest
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Resume, Start
from ckptflow.commit.retention import KeepLast, Policy
from ckptflow.format import dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import Folder, receipt_name
from ckptflow.format.manifest import Receipt, TensorRecord, encode
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.format.values import to_json
from ckptflow.peers.team import Alone as Alone
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_dynamic, plan_shards
from ckptflow.transfer.writer import write_shards

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

SHARD_BYTES = 2**18
KEEP_ALL = (KeepLast(10**9),)


class ArraySource:
    """A snapshot made of NumPy arrays. Arrays of objects are strings (bytes each)."""

    def __init__(self, arrays: Arrays, specs: Mapping[str, TensorSpec] | None = None) -> None:
        self._arrays = [np.asarray(array) for array in arrays.values()]
        made = (_spec(name, array) for name, array in arrays.items())
        self.specs = tuple((specs or {}).get(spec.name, spec) for spec in made)

    def shape(self, index: int) -> tuple[int, ...]:
        return self._arrays[index].shape

    def data(self, index: int) -> Bytes1D:
        array = self._arrays[index]
        if dtypes.is_encoded(self.specs[index].dtype):
            return dtypes.encode_strings(array)
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def is_fetched(self, index: int) -> bool:
        return False

    def fetch(self, index: int, box: Box) -> Bytes1D:
        raise AssertionError("nothing here is remote")

    def release(self, index: int) -> None:
        pass


def _spec(name: str, array: Array) -> TensorSpec:
    if array.dtype == object:
        return TensorSpec(name, "string", (), dynamic=True)
    return TensorSpec(name, array.dtype.name, array.shape)


class Life:
    """One incarnation of a job, from its claim on. `step` restores that one; else the newest, if there is any."""

    def __init__(
        self,
        store: Store,
        *,
        step: int | None = None,
        fresh: bool = False,
        world_size: int = 1,
        keep: Sequence[Policy] = KEEP_ALL,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.store = store
        self.world_size = world_size
        self._shard_bytes = shard_bytes
        self._summaries = Summaries(store)
        resume = Resume(store, Alone(), self._summaries, check=lambda _: None, load=lambda *_: None)
        self.start: Start = resume.start_anew(fresh=True) if fresh else resume.run(step)
        if self.start.held is None:
            raise ValueError("the claim is missing")
        self.held: Held = self.start.held
        self._coordinator = Coordinator(store, self.start, self._summaries, keep, commit_timeout_s=60)
        self._calls: dict[int, int] = {}

    def save(
        self,
        step: int,
        arrays: Arrays | None = None,
        *,
        specs: Mapping[str, TensorSpec] | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Any = None,
        python_state: Mapping[str, Any] | None = None,
        software: Mapping[str, str] | None = None,
        commit: bool = True,
        before_commit: Callable[[Folder], None] | None = None,
    ) -> Folder:
        """Saves `arrays` (default: `sample_arrays(step)`) as all workers together; without `commit` only the shards."""
        prunes = bool(self._calls) or not self.start.save_again  # as the manager does: rule 5
        self._calls[step] = self._calls.get(step, 0) + 1
        folder = Folder(step, self.held.number, self._calls[step])
        source = ArraySource(sample_arrays(step) if arrays is None else arrays, specs)
        receipts = [self._write(folder, source, worker) for worker in range(self.world_size)]
        if before_commit is not None:
            before_commit(folder)
        if commit:
            draft = Draft(
                folder=folder,
                world_size=self.world_size,
                tensors=tuple(self._record(source, index) for index in range(len(source.specs))),
                metrics=metrics or {},
                metadata=to_json(metadata, "metadata"),
                python_state=to_json(dict(python_state or {}), "state"),
                software=software or {"ckptflow": "0", "python": "3"},
            )
            self._coordinator.commit(draft, receipts[0], prune=prunes)
            self._coordinator.prune()
        return folder

    def _write(self, folder: Folder, source: ArraySource, worker: int) -> Receipt:
        plan = plan_shards(source.specs, worker=worker, world_size=self.world_size, shard_bytes=self._shard_bytes,
                           small_bytes=2**12)  # fmt: skip
        if worker == 0:
            plan = plan_dynamic(plan, source, shard_bytes=self._shard_bytes)
        pool = BufferPool(2 * self._shard_bytes, self._shard_bytes)
        try:
            written = write_shards(self.store, folder, plan, source, pool, tag=self.held.tag)
        finally:
            pool.close()
        receipt = Receipt(
            folder=str(folder),
            writer_id=self.held.writer_id,
            worker=worker,
            world_size=self.world_size,
            shards=written.shards,
            slices=written.slices,
        )
        self.store.put(folder.key(receipt_name(worker, self.world_size, self.held.tag)), memoryview(encode(receipt)))
        return receipt

    def _record(self, source: ArraySource, index: int) -> TensorRecord:
        spec = source.specs[index]
        return TensorRecord(
            name=spec.name,
            dtype=spec.dtype,
            shape=(self.world_size, *spec.shape) if spec.components else source.shape(index),
            slices=(),
            encoded_bytes=source.data(index).size if dtypes.is_encoded(spec.dtype) else None,
            components=spec.components,
            aliases=spec.aliases,
            metric=spec.metric,
        )


def make_linked_root(root: str) -> int:
    """Steps 100, 200 and 300 with the same values; the last has a shard of the first, as a hard link. Returns its size.

    It is as a save leaves it that copies on a disk, but for the other shards.
    """
    make_root(root, (100, 200, 300), arrays=sample_arrays(1), metrics={"loss": 0.5})
    source, folder = Folder(100, 1), Folder(300, 1)
    store = open_store(root)
    manifest = read_manifest(store, folder)
    first, *rest = manifest.shards
    copied = structs.replace(first, copied_from=f"{source}/{first.name}")
    store.put(folder.manifest_key, memoryview(encode(structs.replace(manifest, shards=(copied, *rest)))))
    store.close()
    os.unlink(f"{root}/{folder.key(first.name)}")
    os.link(f"{root}/{source.key(first.name)}", f"{root}/{folder.key(first.name)}")
    return first.size_bytes


def sample_arrays(step: int) -> dict[str, Array]:
    """A small model's worth of arrays, other values for each step."""
    random = np.random.default_rng(step)
    return {
        "model/embedding": random.standard_normal((500, 64), dtype=np.float32),
        "model/dense/kernel": random.standard_normal((64, 10), dtype=np.float32),
        "model/dense/bias": random.standard_normal(10, dtype=np.float32),
        "model/optimizer/iterations": np.asarray(step, np.int64),
        "vocabulary": np.asarray([b"a", b"bc", "é".encode()], object),
    }


def make_root(where: str | Store, steps: Iterable[int], *, world_size: int = 1, **saving: Any) -> list[Checkpoint]:
    """One more life of the job on the root `where` (a path, a URL or a store), saving `steps`.

    `saving` goes to each `Life.save`. Returns the checkpoints that then count, oldest first.
    """
    from ckptflow.commit.finding import list_counting

    store = open_store(where) if isinstance(where, str) else where
    life = Life(store, world_size=world_size)
    for step in steps:
        life.save(step, **saving)
    found = list_counting(store, Summaries(store))
    if isinstance(where, str):
        store.close()
    return found
