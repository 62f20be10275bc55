"""A dictionary as a store, arrays as a snapshot, and a whole checkpoint of several workers by the real writer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ckptflow.errors import ObjectExistsError, ObjectNotFoundError
from ckptflow.format import dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, ShardRecord, SliceRecord, TensorRecord, encode
from ckptflow.format.object_graph import ObjectGraph
from ckptflow.format.spec import Bytes1D, TensorSpec, Wanted
from ckptflow.storage.store import Entry, Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.packing import SMALL_BYTES
from ckptflow.transfer.plan import WorkerPlan, plan_dynamic, plan_shards
from ckptflow.transfer.sources import NO_SOURCES, Sources
from ckptflow.transfer.writer import WrittenShards, write_shards

FOLDER = Folder(1000, 7)
Array = npt.NDArray[Any]


class DictStore:
    """The verbs on a dictionary that tests may look into and change."""

    url = "dict://root"
    is_create_only = True
    can_copy = False

    def __init__(self, *, is_object_store: bool = False) -> None:
        self.is_object_store = is_object_store
        self.objects: dict[str, bytes] = {}
        self.gets: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    def put(self, key: str, data: memoryview) -> str | None:
        self.objects[key] = bytes(data)
        return None

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        raise NotImplementedError

    def create(self, key: str, data: memoryview) -> None:
        with self._lock:
            if key in self.objects:
                raise ObjectExistsError(key)
            self.objects[key] = bytes(data)

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        self.gets.append((key, start, len(into)))
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        part = self.objects[key][start : start + len(into)]
        into[: len(part)] = part
        return len(part)

    def list(self, prefix: str = "") -> list[Entry]:
        return [Entry(key, len(data)) for key, data in self.objects.items() if key.startswith(prefix)]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def close(self) -> None:
        pass


class ArraySource:
    """A snapshot of NumPy arrays (of bytes objects, for encoded dtypes) as one worker holds them."""

    def __init__(self, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
        self._specs = tuple(specs)
        self._arrays: list[Array | None] = list(arrays)
        self.released: list[int] = []

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return self._specs

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self._held(index).shape)

    def data(self, index: int) -> Bytes1D:
        array = self._held(index)
        if dtypes.is_encoded(self._specs[index].dtype):
            return dtypes.encode_strings(array)
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def is_fetched(self, index: int) -> bool:
        return False

    def fetch(self, index: int, box: Box) -> Bytes1D:
        raise AssertionError("nothing here is remote")

    def release(self, index: int) -> None:
        assert self._arrays[index] is not None, "released twice"
        self._arrays[index] = None
        self.released.append(index)

    def _held(self, index: int) -> Array:
        array = self._arrays[index]
        assert array is not None, "used after its release"
        return array


class ArrayTarget:
    """Takes tensors into fresh memory; remembers the order of calls."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.calls: list[tuple[str, int]] = []
        self.arrays: dict[str, Array] = {}
        self._memory: dict[int, Bytes1D] = {}

    @property
    def open_now(self) -> int:
        return len(self._memory)

    def open(self, wanted: Wanted) -> Bytes1D:
        index = wanted.tensor
        self.calls.append(("open", index))
        self._memory[index] = np.full(self.manifest.tensors[index].size_bytes, 0xA5, np.uint8)
        return self._memory[index]

    def finish(self, wanted: Wanted) -> None:
        index = wanted.tensor
        self.calls.append(("finish", index))
        tensor, data = self.manifest.tensors[index], self._memory.pop(index)
        if dtypes.is_encoded(tensor.dtype):
            self.arrays[tensor.name] = dtypes.decode_strings(data, tensor.shape)
        else:
            self.arrays[tensor.name] = data.view(dtypes.numpy_dtype(tensor.dtype)).reshape(tensor.shape)


def arrays_for(specs: Sequence[TensorSpec], seed: int = 0) -> list[Array]:
    """Random bits in every spec's shape and dtype."""
    random = np.random.default_rng(seed)
    found: list[Array] = []
    for spec in specs:
        if dtypes.is_encoded(spec.dtype):
            array = np.empty(spec.shape, dtype=object)
            array.reshape(-1)[:] = [random.bytes(int(n)) for n in random.integers(0, 9, array.size)]
        else:
            dtype = dtypes.numpy_dtype(spec.dtype)
            count = int(np.prod(spec.shape, dtype=np.int64))
            bits = random.integers(0, 2 if spec.dtype == "bool" else 256, count * dtype.itemsize, dtype=np.uint8)
            array = bits.view(dtype).reshape(spec.shape)
        found.append(array)
    return found


def same_bits(a: Array, b: Array) -> bool:
    """Equal shapes, dtypes and bits, NaN payloads included."""
    if a.dtype == object or b.dtype == object:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def write_checkpoint(
    store: Store,
    workers: Sequence[ArraySource],
    *,
    shard_bytes: int = 2**16,
    small_bytes: int = SMALL_BYTES,
    folder: Folder = FOLDER,
    pool: BufferPool | None = None,
    metadata: Any = None,
    python_state: Mapping[str, Any] | None = None,
    object_graph: ObjectGraph | None = None,
    plans: list[WorkerPlan] | None = None,
    earlier: Sources = NO_SOURCES,
) -> Manifest:
    """Every worker's shards by the real plan and writer, and the manifest that they add up to."""
    specs, world_size = workers[0].specs, len(workers)
    plans = plans or [
        plan_shards(specs, worker=w, world_size=world_size, shard_bytes=shard_bytes, small_bytes=small_bytes)
        for w in range(world_size)
    ]
    plans[0] = plan_dynamic(plans[0], workers[0], shard_bytes=shard_bytes)
    shapes = [workers[0].shape(i) for i in range(len(specs))]
    encoded = [workers[0].data(i).size if dtypes.is_encoded(spec.dtype) else None for i, spec in enumerate(specs)]
    pool = pool or BufferPool(4 * shard_bytes, shard_bytes)
    written = [
        write_shards(store, folder, plan, source, pool, earlier=earlier)
        for plan, source in zip(plans, workers, strict=True)
    ]
    tensors = [
        TensorRecord(
            name=spec.name,
            dtype=spec.dtype,
            shape=(world_size, *spec.shape) if spec.components else shapes[i],
            slices=(),
            encoded_bytes=encoded[i],
            components=spec.components,
            aliases=spec.aliases,
            metric=spec.metric,
        )
        for i, spec in enumerate(specs)
    ]
    manifest = make_manifest(folder, world_size, tensors, written, metadata=metadata, python_state=python_state)
    manifest = msgspec.structs.replace(manifest, object_graph=object_graph)
    store.create(folder.manifest_key, memoryview(encode(manifest)))
    return manifest


def make_manifest(
    folder: Folder,
    world_size: int,
    tensors: Sequence[TensorRecord],
    written: Sequence[WrittenShards],
    *,
    metadata: Any = None,
    python_state: Mapping[str, Any] | None = None,
) -> Manifest:
    shards: list[ShardRecord] = []
    slices: dict[str, list[SliceRecord]] = {tensor.name: [] for tensor in tensors}
    for part in written:
        for piece in part.slices:
            record = {name: getattr(piece, name) for name in SliceRecord.__struct_fields__}
            slices[piece.tensor].append(SliceRecord(**(record | {"shard": len(shards) + piece.shard})))
        shards += part.shards
    return Manifest(
        folder=str(folder),
        step=folder.step,
        incarnation=folder.incarnation,
        run_id="run",
        writer_id="writer",
        created_at="2026-01-02T03:04:05Z",
        world_size=world_size,
        reason="start",
        metadata=metadata,
        python_state=dict(python_state or {}),
        shards=tuple(shards),
        tensors=tuple(
            msgspec.structs.replace(tensor, slices=tuple(sorted(slices[tensor.name], key=lambda piece: piece.start)))
            for tensor in tensors
        ),
    )
