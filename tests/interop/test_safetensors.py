"""One safetensors file: what stock readers find in it, what comes back of it, and files that lie."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy

from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageFullError,
    UnsupportedStateError,
)
from ckptflow.format.object_graph import GraphNode, ObjectGraph
from ckptflow.format.spec import TensorSpec
from ckptflow.interop import safetensors_file as module
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.safetensors_file import read_provenance, read_safetensors, write_safetensors
from ckptflow.reading import OpenCheckpoint, open_checkpoint
from ckptflow.storage.opening import open_store
from tests.interop.named import commit_tensors
from tests.interop.stock import run_stock
from tests.interop.test_commit_tensors import SHARD_BYTES, named, same, sample
from tests.places.test_files_faults import files_at_most
from tests.roots import Life
from tests.waiting import HANG_S

GRAPH = ObjectGraph(nodes=(GraphNode(children={"large": 1}), "large"))
NUMPY_HAS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
             "float64", "complex64", "bfloat16")  # fmt: skip # with ml_dtypes, and so the stock reader
STATE = {"epoch": 3, "data": {"$tuple": [1, {"$int": "0x20000000000001"}]}}


def run_of(folder: Path, **more: Any) -> OpenCheckpoint:
    """A run's checkpoint with everything in it that one can hold."""
    tensors = named(
        sample() | {"__metadata__": np.asarray([1, 2], np.float32)},
        aliases={"large": ("also/large",)},
        metrics=frozenset({"scalar"}),
        python_state=STATE,
        models={"model": {"kind": "model", "config": {"name": "ü" * 10}}},
        object_graph=GRAPH,
        **more,
    )
    commit_tensors(folder, 4, tensors, shard_bytes=SHARD_BYTES)
    return open_checkpoint(folder)


def origin(opened: OpenCheckpoint) -> Provenance:
    manifest = opened.manifest
    return Provenance(
        run_url="s3://bucket/run",
        run_id=manifest.run_id,
        folder=manifest.folder,
        step=manifest.step,
        incarnation=manifest.incarnation,
        manifest_sha256=opened.manifest_sha256(),
        format="safetensors",
        ckptflow="0",
        exported_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, OpenCheckpoint]:
    """An export, and the checkpoint that it holds. Not to be written to."""
    folder = tmp_path_factory.mktemp("exported")
    opened = run_of(folder / "run")
    path = str(folder / "m.safetensors")
    assert write_safetensors(path, opened, origin(opened)) == ()
    return path, opened


# ---- the way there and back


def test_a_stock_process_reads_it(exported: tuple[str, OpenCheckpoint], tmp_path: Path) -> None:
    path, opened = exported
    plain = [name for name in opened if opened.spec(name).dtype in NUMPY_HAS and name != "__metadata__"]
    for number, name in enumerate(plain):
        np.save(tmp_path / f"{number}.npy", opened[name].view(np.uint8) if opened[name].ndim else opened[name])
    answer = run_stock(
        """
        import numpy as np, ml_dtypes, safetensors, safetensors.numpy
        path, folder, names = argument
        found = {}
        with safetensors.safe_open(path, "numpy") as file:
            for number, name in enumerate(names):
                value = file.get_tensor(name)
                expected = np.load(f"{folder}/{number}.npy")
                value = value.view(np.uint8) if value.ndim else value
                if not np.array_equal(value, expected):
                    found[name] = [str(value.dtype), str(expected.dtype)]
            complex128 = file.get_tensor("of/complex128")
            answer = {"wrong": found, "keys": sorted(file.keys()), "metadata": file.metadata(),
                      "pairs": list(complex128.shape), "int4": str(file.get_tensor("of/int4").dtype)}
        """,
        [path, str(tmp_path), plain],
    )
    assert answer["wrong"] == {}
    assert len(plain) == 19
    assert answer["keys"] == sorted({"__metadata__1" if name == "__metadata__" else name for name in opened})
    assert (answer["pairs"], answer["int4"]) == ([3, 2, 2], "int8")
    assert json.loads(answer["metadata"]["ckptflow"])["run_url"] == "s3://bucket/run"
    assert answer["metadata"]["format"] == "tf"


def test_a_stock_process_loads_all_of_it(tmp_path: Path) -> None:
    arrays = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int64(5), "flag": np.array([True])}
    commit_tensors(tmp_path / "run", 0, named({name: np.asarray(array) for name, array in arrays.items()}))
    opened = open_checkpoint(tmp_path / "run")
    path = str(tmp_path / "m.safetensors")
    write_safetensors(path, opened, origin(opened))
    answer = run_stock(
        """
        import safetensors.numpy, safetensors.tensorflow
        answer = {name: value.tolist() for name, value in safetensors.numpy.load_file(argument).items()}
        answer["tf"] = {name: value.numpy().tolist() for name, value in
                        safetensors.tensorflow.load_file(argument).items()}
        """,
        path,
    )
    expected = {name: array.tolist() for name, array in arrays.items()}
    assert answer == expected | {"tf": expected}


def test_a_run_comes_back(exported: tuple[str, OpenCheckpoint], tmp_path: Path) -> None:
    path, before = exported
    assert any(len(record.slices) > 1 and record.slices[0].shape[0] == 3 < record.slices[0].shape[-1] <
               record.shape[-1] for record in before.manifest.tensors)  # fmt: skip # slices that are no single run
    commit_tensors(tmp_path, 9, read_safetensors(path))
    with open_checkpoint(tmp_path) as after:
        assert list(after) == list(before)
        assert all(same(after[name], before[name]) for name in before)
        for name in before:
            one, other = after.spec(name), before.spec(name)
            assert (one.dtype, one.shape, one.aliases, one.metric) == (
                other.dtype, other.shape, other.aliases, other.metric)  # fmt: skip
        for field in ("python_state", "models", "object_graph", "per_worker"):
            assert getattr(after.manifest, field) == getattr(before.manifest, field)


def test_what_workers_held_each_for_itself(tmp_path: Path) -> None:
    """Components come as they are restored; what several workers had each as its own is left out, by name."""
    life = Life(open_store(str(tmp_path / "run")), world_size=3, shard_bytes=SHARD_BYTES)
    arrays = sample() | {name: np.arange(4, dtype=np.float32) for name in ("mean", "sum", "first")}
    kinds: tuple[Literal["mean", "sum", "first"], ...] = ("mean", "sum", "first")
    specs: dict[str, TensorSpec] = {kind: TensorSpec(kind, "float32", (4,), components=kind) for kind in kinds}
    life.save(3, arrays, specs=specs)
    with open_checkpoint(tmp_path / "run") as opened:
        write_safetensors(str(tmp_path / "m.safetensors"), opened, origin(opened))
        found = read_safetensors(str(tmp_path / "m.safetensors"))
        assert found.infos.keys() == arrays.keys()
        assert all(same(found.read(name), opened[name]) for name in arrays)
        assert found.read("sum").tolist() == [0, 3, 6, 9]


def test_each_workers_own(tmp_path: Path) -> None:
    own = {"data/worker-0/at": np.zeros(3), "data/worker-1/at": np.ones(3), "database": np.ones(2)}
    state = {"data/worker-0": 1, "data/worker-1": 2, "epoch": 3}
    graph = ObjectGraph(nodes=(GraphNode(children={"at": 1}), "data/worker-0/at"))
    more = {"per_worker": ("data",), "python_state": state, "object_graph": graph}
    commit_tensors(tmp_path / "run", 0, named(own, **more))
    opened = open_checkpoint(tmp_path / "run")
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    assert write_safetensors(paths[0], opened, origin(opened)) == ()
    alone = read_safetensors(paths[0])
    assert (alone.per_worker, alone.python_state, alone.object_graph) == (("data",), state, graph)
    opened.manifest = _of_two_workers(opened)
    lost = ("data/worker-0", "data/worker-0/at", "data/worker-1", "data/worker-1/at")
    assert write_safetensors(paths[1], opened, origin(opened)) == (*lost, "object_graph")
    several = read_safetensors(paths[1])
    assert (several.per_worker, several.python_state, set(several.infos)) == ((), {"epoch": 3}, {"database"})


def _of_two_workers(opened: OpenCheckpoint) -> Any:
    import msgspec

    return msgspec.structs.replace(opened.manifest, world_size=2)


def test_provenance(exported: tuple[str, OpenCheckpoint], tmp_path: Path) -> None:
    path, opened = exported
    with open(path, "rb") as file:
        assert read_provenance(file, path) == origin(opened)
        assert file.tell() < os.path.getsize(path) / 10
    for content in (b"", b"\x89HDF", os.urandom(100)):
        with pytest.raises(CorruptCheckpointError, match=r"there is not a safetensors file"):
            read_provenance(io.BytesIO(content), "there")
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "other")
    with open(tmp_path / "other", "rb") as file:
        assert read_provenance(file, "there") is None
    for text in ("{}", "x" * 10**6, "[" * 10**5, '{"run_url": 3}'):
        safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "other", {"ckptflow": text})
        with open(tmp_path / "other", "rb") as file, pytest.raises(CorruptCheckpointError, match=r"^there: its prov"):
            read_provenance(file, "there")


# ---- the writing


def test_few_slices_are_held_at_once(
    exported: tuple[str, OpenCheckpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, opened = exported
    most = [0]
    real = module._FileTarget.open

    def open_(self: Any, wanted: Any) -> Any:
        memory = real(self, wanted)
        most[0] = max(most[0], sum(memory.size for memory in self._open.values()))
        return memory

    monkeypatch.setattr(module._FileTarget, "open", open_)
    write_safetensors(str(tmp_path / "m.safetensors"), opened, origin(opened))
    assert 0 < most[0] <= 2 * SHARD_BYTES
    assert opened.manifest.size_bytes > 10 * SHARD_BYTES


def test_damage_is_never_written_out(tmp_path: Path) -> None:
    with run_of(tmp_path / "run") as opened:
        shard = max((tmp_path / "run" / opened.manifest.folder).glob("shard-*"), key=os.path.getsize)
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        with pytest.raises(CorruptCheckpointError, match="crc32c"):
            write_safetensors(str(tmp_path / "m.safetensors"), opened, origin(opened))
    assert os.listdir(tmp_path) == ["run"]


def test_a_full_disk_and_a_file_that_is_there(exported: tuple[str, OpenCheckpoint], tmp_path: Path) -> None:
    _, opened = exported
    path = str(tmp_path / "m.safetensors")
    with files_at_most(2**20), pytest.raises(StorageFullError, match=r"m\.safetensors: cannot write"):
        write_safetensors(path, opened, origin(opened))
    assert os.listdir(tmp_path) == []
    Path(path).write_bytes(b"mine")
    with pytest.raises(ObjectExistsError):
        write_safetensors(path, opened, origin(opened))
    assert Path(path).read_bytes() == b"mine"


def test_a_header_that_would_become_too_long(
    exported: tuple[str, OpenCheckpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = exported
    full = len(Path(path).read_bytes()[: 8 + int.from_bytes(Path(path).read_bytes()[:8], "little")])
    graph, models = len('"object_graph":{"nodes":[{"children":{"large":1}},"large"]},'), 80
    for limit, lost in ((full, ()), (full - 1, ("object_graph",)), (full - graph - 64, ("object_graph", "models"))):
        monkeypatch.setattr(module, "MAX_HEADER_BYTES", limit)
        target = str(tmp_path / f"{limit}.safetensors")
        assert write_safetensors(target, opened, origin(opened)) == lost
        found = read_safetensors(target)
        assert (found.object_graph is None, not found.models) == ("object_graph" in lost, "models" in lost)
        assert found.python_state == STATE
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", full - graph - models - 1000)
    with pytest.raises(UnsupportedStateError, match=r"need a header of .* tf-checkpoint"):
        write_safetensors(str(tmp_path / "no.safetensors"), opened, origin(opened))
    assert not (tmp_path / "no.safetensors").exists()


# ---- others' files


def raw(path: Path, header: Any, data: bytes = b"") -> str:
    """A file of this header (JSON, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_package_writes(tmp_path: Path) -> None:
    arrays = {name: array for name, array in sample().items() if array.dtype.kind in "biufc" and
              array.dtype != np.complex128}  # fmt: skip
    arrays |= {"encoder.layer.0.weight": np.ones((2, 2), np.float16), "": np.zeros(1), "ü": np.zeros((2, 0))}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors", {"format": "pt"})
    found = read_safetensors(str(tmp_path / "m.safetensors"))
    assert found.infos.keys() == arrays.keys()
    assert all(same(found.read(name), np.asarray(array)) for name, array in arrays.items())
    assert (found.python_state, found.models, found.object_graph, found.left_out) == ({}, {}, None, ())


def test_dtypes_that_no_numpy_has(tmp_path: Path) -> None:
    header = {
        "bf16": entry("BF16", [2], 0, 4),
        "f8": entry("F8_E4M3", [4], 4, 8),
        "e8m0": entry("F8_E8M0", [4], 8, 12),
        "f4": entry("F4", [8], 12, 16),
        "f6": entry("F6_E2M3", [4], 16, 19),
        "last": entry("I8", [1], 19, 20),
    }
    found = read_safetensors(raw(tmp_path / "m", header, bytes(range(20))))
    assert {name: info.dtype for name, info in found.infos.items()} == {
        "bf16": "bfloat16", "f8": "float8_e4m3fn", "last": "int8"}  # fmt: skip
    assert found.left_out == ("e8m0", "f4", "f6")
    assert found.read("last").tolist() == [19]
    assert found.read("f8").view(np.uint8).tolist() == [4, 5, 6, 7]


A = entry("F32", [2], 0, 8)
CARRIED = "ckptflow.checkpoint"
BAD: dict[str, tuple[Any, bytes]] = {
    "longer than it says": ({"a": A}, bytes(9)),
    "shorter than it says": ({"a": A}, bytes(7)),
    "a gap": ({"a": A, "b": entry("U8", [1], 9, 10)}, bytes(10)),
    "an overlap": ({"a": A, "b": entry("U8", [2], 7, 9)}, bytes(9)),
    "a size that is not the shape's": ({"a": entry("F32", [3], 0, 8)}, bytes(8)),
    "a negative length": ({"a": entry("F32", [-1, -2], 0, 8)}, bytes(8)),
    "an endless shape": ({"a": entry("F32", [2**62, 2**62], 0, 8)}, bytes(8)),
    "half a byte": ({"a": entry("F4", [3], 0, 2)}, bytes(2)),
    "an unknown dtype": ({"a": entry("Q4", [8], 0, 8)}, bytes(8)),
    "an unknown member": ({"a": A | {"x": 1}}, bytes(8)),
    "no object": ([], b""),
    "not valid JSON": (b"{", b""),
    "no UTF-8": (b'{"\xff": {}}', b""),
    "one key twice": (b'{"a":%b,"a":%b}' % ((json.dumps(A).encode(),) * 2), bytes(8)),
    "too deep": (b'{"a":' * 5000, b""),
    "too many lists": (b'{"a":[' + b"[]," * 10**6 + b"[]]}", b""),
    "metadata that is no text": ({"__metadata__": {"a": 1}, "a": A}, bytes(8)),
    "carried: no JSON": ({"__metadata__": {CARRIED: "{"}, "a": A}, bytes(8)),
    "carried: too many lists": ({"__metadata__": {CARRIED: '{"models":[' + "[]," * 2**21 + "[]]}"}, "a": A}, bytes(8)),
    "carried: unknown member": ({"__metadata__": {CARRIED: '{"x":1}'}, "a": A}, bytes(8)),
    "carried: unknown version": ({"__metadata__": {CARRIED: '{"version":2}'}, "a": A}, bytes(8)),
    "carried: another size": ({"__metadata__": {CARRIED: json.dumps(
        {"disguised": {"a": {"dtype": "float64", "shape": [2]}}})}, "a": A}, bytes(8)),
    "carried: strings that are numbers": ({"__metadata__": {CARRIED: json.dumps(
        {"disguised": {"a": {"dtype": "string", "shape": [2]}}})}, "a": A}, bytes(8)),
    "carried: an unknown dtype": ({"__metadata__": {CARRIED: json.dumps(
        {"disguised": {"a": {"dtype": "resource", "shape": [2]}}})}, "a": A}, bytes(8)),
    "carried: one name for two": ({"__metadata__": {CARRIED: json.dumps({"names": {"a": "b"}})}, "a": A,
                                   "b": entry("U8", [], 8, 9)}, bytes(9)),
    "carried: Python state that is none": ({"__metadata__": {CARRIED: json.dumps(
        {"python_state": {"a": {"$eval": "1"}}})}, "a": A}, bytes(8)),
    "carried: a graph of nothing": ({"__metadata__": {CARRIED: json.dumps(
        {"object_graph": {"nodes": [{"children": {"x": 1}}, "x"]}})}, "a": A}, bytes(8)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_lie(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=str(tmp_path / "m")):
        read_safetensors(raw(tmp_path / "m", *BAD[case]))


def test_content_that_lies(tmp_path: Path) -> None:
    strings = {CARRIED: json.dumps({"disguised": {"s": {"dtype": "string", "shape": [2]}}})}
    header = {"__metadata__": strings, "flag": entry("BOOL", [2], 0, 2), "s": entry("U8", [30], 2, 32)}
    found = read_safetensors(raw(tmp_path / "m", header, b"\1\2" + bytes(30)))
    with pytest.raises(CorruptCheckpointError, match="'flag' has bytes that are not a bool"):
        found.read("flag")
    with pytest.raises(CorruptCheckpointError, match="'s': encoded strings"):
        found.read("s")


@pytest.mark.parametrize(
    "change",
    [lambda path: os.truncate(path, 60), lambda path: path.write_bytes(path.read_bytes() + b"x"), os.unlink],
    ids=["shorter", "longer", "gone"],
)
def test_a_file_that_changes_meanwhile(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "m"
    safetensors.numpy.save_file({"a": np.zeros(1000)}, path)
    found = read_safetensors(str(path))
    change(path)
    for read in (lambda: found.read("a"), lambda: found.read_part and found.read_part("a", 0, 8)):
        with pytest.raises((CorruptCheckpointError, ObjectNotFoundError), match=str(path)):
            read()


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("missing", ""):
        with pytest.raises(ObjectNotFoundError):
            read_safetensors(str(tmp_path / name))


def test_tensorflow_is_not_loaded() -> None:
    program = "import sys, ckptflow.interop.safetensors_file; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=HANG_S, check=False).returncode == 0
