"""Named tensors as the first checkpoint of a run: whole, lazily read, and on from there as from any other."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptflow.errors import (
    CorruptCheckpointError,
    SaveFailedError,
    StorageFullError,
    UnsupportedStateError,
    UsageError,
)
from ckptflow.format import dtypes
from ckptflow.format.dtypes import Array
from ckptflow.format.object_graph import GraphNode, ObjectGraph
from ckptflow.interop import tensors as module
from ckptflow.interop.tensors import NamedTensors, TensorInfo, bytes_of
from ckptflow.job import alone
from ckptflow.reading import list_checkpoints, open_checkpoint
from ckptflow.storage.opening import open_store
from ckptflow.testing import MemoryStore
from ckptflow.transfer.writer import FETCH_BYTES
from tests.interop.named import commit_tensors
from tests.places.test_files import make_place
from tests.places.test_files_faults import files_at_most
from tests.roots import make_root
from tests.speed.stores import MeasuredStore
from tests.waiting import HANG_S

SHARD_BYTES = 2**17


def named(arrays: dict[str, Array], **more: Any) -> NamedTensors:
    """Arrays as named tensors; arrays of objects are strings."""
    infos = {
        name: TensorInfo("string" if array.dtype == object else array.dtype.name, array.shape)
        for name, array in arrays.items()
    }
    return NamedTensors(infos, arrays.__getitem__, **more)


def sample() -> dict[str, Array]:
    """One array of every dtype, one that takes several shards, and odd shapes."""
    random = np.random.default_rng(5)
    arrays: dict[str, Array] = {
        f"of/{name}": (random.integers(0, 2, (3, 2)).astype(dtypes.numpy_dtype(name)))
        for name in dtypes.names()
        if not dtypes.is_encoded(name)
    }
    return arrays | {
        "large": random.standard_normal((1000, 100), dtype=np.float32),
        "wide": random.standard_normal((3, 60_000)),
        "scalar": np.asarray(7, np.int64),
        "empty": np.zeros((0, 5), np.float32),
        "strings": np.asarray([[b"a", b"bc"], [b"", "ü".encode()]], object),
        "bfloat16": np.arange(5, dtype=ml_dtypes.bfloat16),
    }


def same(one: Array, other: Array) -> bool:
    """Bit for bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype == object else bytes_of(one).tobytes() == bytes_of(other).tobytes()


@pytest.mark.parametrize("kind", ["local", "memory", "seaweedfs", "fake_gcs"])
def test_all_of_it_counts(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = make_place(kind, request, tmp_path)
    options = place.options if kind != "seaweedfs" else place.options | {"client": "fsspec"}
    arrays = sample()
    graph = ObjectGraph(nodes=(GraphNode(children={"large": 1}), "large"))
    tensors = named(
        arrays,
        aliases={"large": ("also/large", "and/again")},
        metrics=frozenset({"scalar"}),
        per_worker=("data",),
        python_state={"epoch": 3, "data/worker-0": {"$tuple": [1, 2]}},
        models={"model": {"kind": "model"}},
        object_graph=graph,
    )
    done = commit_tensors(place.url, 7, tensors, metadata={"from": ("x",)}, storage_options=options,
                          shard_bytes=SHARD_BYTES)  # fmt: skip
    assert list_checkpoints(place.url, storage_options=options) == [done]
    assert (done.step, done.incarnation, done.metadata) == (7, 1, {"from": ("x",)})
    with open_checkpoint(place.url, storage_options=options) as opened:
        assert list(opened) == sorted(arrays)
        assert all(same(opened[name], array) for name, array in arrays.items())
        assert same(opened["and/again"], arrays["large"])
        assert opened.python_state == {"epoch": 3, "data/worker-0": (1, 2)}
        assert opened.spec("scalar").metric
        assert not opened.spec("large").metric
        manifest = opened.manifest
        assert (manifest.models, manifest.object_graph, manifest.per_worker) == (tensors.models, graph, ("data",))
        assert opened.verify() == []
        assert len(manifest.shards) > 5
        assert len(opened.spec("wide").slices) > 5


def test_a_used_root_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_root(str(tmp_path), [1, 2])
    before = {entry.key for entry in open_store(str(tmp_path)).list()}
    with pytest.raises(UsageError, match=r"holds 2 checkpoint.*fresh=True"):
        commit_tensors(tmp_path, 0, named(sample()))
    assert {entry.key for entry in open_store(str(tmp_path)).list()} == before


def test_what_it_asks_of_a_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root is listed once before the claim and once after it; the claim is looked at as in any other save."""
    store = MeasuredStore(MemoryStore({}))
    monkeypatch.setattr(alone, "open_store", lambda url, options: store)
    commit_tensors("memory://run", 0, named({"x": np.zeros(3)}))
    assert Counter(store.keys("list")) == {"": 3, "lineage/": 2}  # the third numbers the claim
    assert store.kinds("get") == {"claim": 3}
    assert store.kinds("put") + store.kinds("create") == {"shard": 1, "receipt": 1, "claim": 2, "manifest": 1}


def test_the_job_goes_on_from_there(tmp_path: Path) -> None:
    import tensorflow as tf

    import ckptflow

    arrays = {"net/w": np.arange(6, dtype=np.float32).reshape(2, 3), "words": np.asarray([b"a", b"bc"], object)}
    commit_tensors(tmp_path, 5, named(arrays, metrics=frozenset({"words"}), python_state={"epoch": 3}))
    net = tf.Module()
    net.w = tf.Variable(tf.zeros((2, 3)))
    with ckptflow.CheckpointManager(tmp_path, {"net": net}) as manager:
        with pytest.raises(ckptflow.StateMismatchError, match="epoch"):
            manager.restore_latest()
        restored = manager.restore_latest(partial=True)
        assert restored is not None
        assert restored.step == 5
        assert same(net.w.numpy(), arrays["net/w"])
        assert manager.save(6).result() is not None
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [5, 6]


def test_each_is_read_once_and_few_are_held(tmp_path: Path) -> None:
    reads: Counter[str] = Counter()
    alive: Counter[str] = Counter()
    most, lock = [0], threading.Lock()

    def let_go() -> None:
        with lock:
            alive["now"] -= 1

    def read(name: str) -> Array:
        with lock:
            reads[name] += 1
            alive["now"] += 1
            most[0] = max(most[0], alive["now"])
        array = np.full(SHARD_BYTES, 1, np.uint8)  # more than one shard of it
        weakref.finalize(array, let_go)
        return array

    infos = {f"{number}": TensorInfo("uint8", (SHARD_BYTES,)) for number in range(40)}
    commit_tensors(tmp_path, 0, NamedTensors(infos, read), shard_bytes=SHARD_BYTES)
    assert reads == dict.fromkeys(infos, 1)
    assert most[0] <= 8


def test_large_ones_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 2**16)
    arrays = sample()
    parts: list[int] = []

    def read(name: str) -> Array:
        assert arrays[name].nbytes <= 2**16 or arrays[name].dtype == object
        return arrays[name]

    def read_part(name: str, begin: int, end: int) -> Array:
        parts.append(end - begin)
        return bytes_of(arrays[name])[begin:end]

    tensors = NamedTensors(named(arrays).infos, read, read_part=read_part)
    commit_tensors(tmp_path, 0, tensors, shard_bytes=SHARD_BYTES)
    with open_checkpoint(tmp_path) as opened:
        assert all(same(opened[name], array) for name, array in arrays.items())
    assert sum(parts) == arrays["large"].nbytes + arrays["wide"].nbytes
    assert max(parts) <= FETCH_BYTES


class BrokenError(Exception):
    """Not one of ours."""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(CorruptCheckpointError("x ends within 'k'"), CorruptCheckpointError), (BrokenError("boom"), SaveFailedError)],
)
def test_a_source_that_fails_leaves_nothing_but_the_claim(
    tmp_path: Path, raised: Exception, expected: type[Exception]
) -> None:
    arrays = {f"{number}": np.zeros(SHARD_BYTES // 2, np.uint8) for number in range(10)}

    def read(name: str) -> Array:
        if name == "7":
            raise raised
        return arrays[name]

    with pytest.raises(expected, match=str(raised)) as caught:
        commit_tensors(tmp_path, 0, NamedTensors(named(arrays).infos, read), shard_bytes=SHARD_BYTES)
    assert raised in (caught.value, caught.value.__cause__)
    assert [entry.key for entry in open_store(str(tmp_path)).list()] == ["lineage/000001.json"]
    commit_tensors(tmp_path, 0, named(arrays))  # the root is free for another try
    assert [checkpoint.incarnation for checkpoint in list_checkpoints(tmp_path)] == [2]


@pytest.mark.parametrize("array", [np.zeros(3, np.int32), np.zeros((3, 1), np.float32), np.asarray([b""] * 3, object)])
def test_a_tensor_that_is_not_what_was_said(tmp_path: Path, array: Array) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"'x' was to be float32 of shape \[3\], and is"):
        commit_tensors(tmp_path, 0, NamedTensors({"x": TensorInfo("float32", (3,))}, lambda name: array))


def test_what_no_checkpoint_holds(tmp_path: Path) -> None:
    for name in ("", "n" * 5000, "\ud800"):
        with pytest.raises(UnsupportedStateError, match="a tensor cannot be saved under the name"):
            commit_tensors(tmp_path, 0, named({name: np.zeros(3)}))
    with pytest.raises(ValueError, match="'qint8' is not one"):
        commit_tensors(tmp_path, 0, NamedTensors({"x": TensorInfo("qint8", (3,))}, lambda name: np.zeros(3)))
    for step in (-1, 2**62):
        with pytest.raises(ValueError, match="a step is"):
            commit_tensors(tmp_path, step, named(sample()))
    with pytest.raises(CorruptCheckpointError, match="'y' is the name of two tensors"):
        commit_tensors(tmp_path, 0, named({"x": np.zeros(3), "y": np.zeros(3)}, aliases={"x": ("y",)}))
    assert list_checkpoints(tmp_path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with files_at_most(SHARD_BYTES // 2), pytest.raises(StorageFullError):
        commit_tensors(tmp_path, 0, named(sample()), shard_bytes=SHARD_BYTES)
    assert [entry.key for entry in open_store(str(tmp_path)).list()] == ["lineage/000001.json"]


def test_tensorflow_is_not_loaded() -> None:
    program = "import sys, ckptflow.interop.import_, ckptflow.job.alone; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=HANG_S, check=False).returncode == 0
