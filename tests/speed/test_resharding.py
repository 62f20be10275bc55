"""What a restore reads beside what its worker needs, where the state was saved under another sharding: at most 5 %."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ckptflow import CheckpointManager
from ckptflow.format.boxes import Box, check_cover, volume
from ckptflow.format.dtypes import item_size_bytes
from ckptflow.format.manifest import Manifest, TensorRecord
from ckptflow.format.spec import Bytes1D, TensorSpec, Wanted
from ckptflow.testing import MemoryStore
from ckptflow.transfer import attempts
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_shards
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.writer import write_shards
from tests.speed.stores import MeasuredStore
from tests.speed.team import Team
from tests.transfer.helpers import FOLDER, Array, ArraySource, make_manifest
from tests.waiting import HANG_S

ALLOWED = 1.05
MIB = 2**20


@pytest.fixture(autouse=True)
def _nothing_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine makes slow is not requested twice: requests are counted here."""
    monkeypatch.setattr(attempts, "LEAST_S", HANG_S)


# ---- workers with whole copies: each needs all bytes, and one worker's are in all shards


def state() -> dict[str, tf.Variable]:
    """10 MiB that workers divide, 2.5 MiB in tensors that they do not, and many tiny ones."""
    large = {f"large{i}": tf.Variable(tf.ones([5 * MIB // 8])) for i in range(4)}
    medium = {f"medium{i}": tf.Variable(tf.ones([MIB // 8])) for i in range(5)}
    return large | medium | {f"tiny{i}": tf.Variable(tf.ones([8])) for i in range(100)}


@pytest.mark.parametrize(
    ("saved_by", "restored_by", "shard_bytes"),
    [(8, 3, MIB), (8, 3, 65 * MIB), (3, 8, 65 * MIB), (4, 1, MIB), (1, 4, 65 * MIB)],
)
def test_another_number_of_workers(
    saved_by: int, restored_by: int, shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = Team(monkeypatch)

    def manager() -> tuple[CheckpointManager, int]:
        held = state()
        needed = sum(4 * volume(variable.shape) for variable in held.values())
        return CheckpointManager(tmp_path, held, shard_bytes=shard_bytes), needed

    def save(worker: int) -> None:
        with manager()[0] as saving:
            saving.save(1)

    def restore(worker: int) -> int:
        restoring, needed = manager()
        with restoring:
            restoring.restore_latest()
        return needed

    team.run(saved_by, save)
    needed = team.run(restored_by, restore)
    for worker in range(restored_by):
        assert needed[worker] <= team.stores[worker].shard_bytes_read() <= ALLOWED * needed[worker]


# ---- blocks on a mesh of devices, several for each client, and the parts of a sharded variable

Mesh = tuple[int, int]
SHAPES = {"kernel": (2048, 4096), "wide": (512, 8192), "embedding": (32768, 128), "bias": (4096, 16)}


def block(shape: tuple[int, ...], mesh: Mesh, device: int) -> Box:
    """The block of one device: rows divided by the mesh's first dimension, columns by its second."""
    begins = [(size * at // count, size * (at + 1) // count)
              for size, count, at in zip(shape, mesh, divmod(device, mesh[1]), strict=True)]  # fmt: skip
    return tuple(begin for begin, _ in begins), tuple(end - begin for begin, end in begins)


def clients(mesh: Mesh, devices_each: int) -> list[list[dict[str, Box]]]:
    """For each client and each of its devices the block of every tensor that it holds."""
    found = [
        {name: block(shape, mesh, device) for name, shape in SHAPES.items()} for device in range(mesh[0] * mesh[1])
    ]
    return [found[first : first + devices_each] for first in range(0, len(found), devices_each)]


def cut(array: Array, box: Box) -> Array:
    return array[tuple(slice(at, at + extent) for at, extent in zip(*box, strict=True))]


class Saved:
    """A checkpoint that the clients of a mesh wrote, each the blocks of its devices."""

    def __init__(self, held: Sequence[Sequence[dict[str, Box]]], shard_bytes: int) -> None:
        random = np.random.default_rng(1)
        self.arrays = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
        self.store = MeasuredStore(MemoryStore())
        written = []
        for worker, devices in enumerate(held):
            blocks = [(name, device[name]) for name in SHAPES for device in devices]
            specs = [TensorSpec(name, "float32", SHAPES[name], box=box) for name, box in blocks]
            source = ArraySource(specs, [cut(self.arrays[name], box) for name, box in blocks])
            plan = plan_shards(specs, worker=worker, world_size=len(held), shard_bytes=shard_bytes)
            written.append(write_shards(self.store, FOLDER, plan, source, BufferPool(shard_bytes, shard_bytes)))
        tensors = [TensorRecord(name=name, dtype="float32", shape=shape, slices=()) for name, shape in SHAPES.items()]
        self.manifest: Manifest = make_manifest(FOLDER, len(held), tensors, written)
        for tensor in self.manifest.tensors:
            check_cover(tensor.shape, [(piece.start, piece.shape) for piece in tensor.slices])

    def read_by(self, devices: Sequence[dict[str, Box]]) -> float:
        """What one client reads for its devices, as a multiple of what it needs; it has its values afterwards."""
        names = [tensor.name for tensor in self.manifest.tensors]
        wanted = [Wanted(index, device[name]) for index, name in enumerate(names) for device in devices]
        target = _Blocks(wanted)
        self.store.forget()
        read_tensors(self.store, FOLDER, self.manifest, wanted, target, BufferPool(2 * MIB, MIB))
        for each, memory in target.memory.items():
            expected = cut(self.arrays[names[each.tensor]], each.box or ((), ()))
            np.testing.assert_array_equal(memory.view(np.float32).reshape(expected.shape), expected)
        return self.store.shard_bytes_read() / sum(memory.size for memory in target.memory.values())


class _Blocks:
    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self.memory = {each: np.empty(4 * volume(each.box[1]), np.uint8) for each in wanted if each.box}

    def open(self, wanted: Wanted) -> Bytes1D:
        return self.memory[wanted]

    def finish(self, wanted: Wanted) -> None:
        pass


@pytest.mark.parametrize(
    ("saved_on", "restored_on", "devices_each", "shard_bytes"),
    [
        ((2, 2), (4, 1), 1, 65 * MIB),
        ((2, 2), (4, 1), 1, MIB),
        ((2, 2), (4, 1), 2, 65 * MIB),
        ((2, 2), (4, 1), 4, 65 * MIB),
        ((4, 1), (2, 2), 1, 65 * MIB),
        ((4, 1), (2, 2), 1, MIB),
        ((4, 1), (2, 2), 2, 65 * MIB),
        ((2, 2), (1, 4), 1, 65 * MIB),
        ((4, 1), (1, 4), 1, 65 * MIB),
        ((8, 1), (2, 2), 1, 65 * MIB),
        ((2, 2), (2, 1), 1, 65 * MIB),
    ],
)
def test_another_mesh(saved_on: Mesh, restored_on: Mesh, devices_each: int, shard_bytes: int) -> None:
    """Up to four times as fine along either axis, of blocks that are large enough to be cut so.

    Blocks below 4 MiB are cut less, below 1 MiB not at all, and what a single client saved is cut only into shards: of
    those twice the bytes may be read.
    """
    saved = Saved(clients(saved_on, devices_each), shard_bytes)
    ratios = [saved.read_by(devices) for devices in clients(restored_on, devices_each)]
    assert max(ratios) <= ALLOWED, ratios


@given(
    st.lists(st.integers(1, 6) | st.integers(1, 3_000), min_size=1, max_size=7).filter(lambda s: volume(s) < 10**8),
    st.sampled_from(["uint8", "bfloat16", "float32", "complex128"]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_blocks_of_any_shape_are_covered_by_few_slices(sizes: list[int], dtype: str, mesh: Mesh) -> None:
    shape = (sizes[0] * mesh[0], *sizes[1:-1], sizes[-1] * mesh[1]) if len(sizes) > 1 else (sizes[0] * mesh[0],)
    grid = (mesh[0], *[1] * (len(shape) - 2), mesh[1]) if len(shape) > 1 else mesh[:1]
    count = volume(grid)
    extents = tuple(size // parts for size, parts in zip(shape, grid, strict=True))
    found: list[Box] = []
    for worker, at in enumerate(itertools.product(*map(range, grid))):
        start = tuple(number * extent for number, extent in zip(at, extents, strict=True))
        spec = TensorSpec("t", dtype, shape, box=(start, extents))
        plan = plan_shards([spec], worker=worker, world_size=count, shard_bytes=2**40)
        slices = [(piece.start, piece.shape) for shard in plan.shards for piece in shard.slices]
        size_bytes = volume(extents) * item_size_bytes(dtype)
        assert len(slices) <= (1 if size_bytes < MIB or count == 1 else 8 * min(64, size_bytes // 2**18))
        found += slices
    check_cover(shape, found)


def test_a_mesh_that_does_not_divide_the_other() -> None:
    """A third of what eighths were saved of: a row of slices too much at either end. Less than where they were whole:
    1.5 times the bytes."""
    saved = Saved(clients((8, 1), 1), 65 * MIB)
    ratios = [saved.read_by(devices) for devices in clients((3, 1), 1)]
    assert max(ratios) <= 1.15, ratios


@pytest.mark.parametrize(("parts", "parts_now"), [(2, 3), (3, 2), (5, 1)])
def test_another_number_of_parts(parts: int, parts_now: int) -> None:
    """Of a sharded variable: they are all the chief's, on however many servers."""
    saved = Saved(clients((parts, 1), parts), 65 * MIB)
    (chief,) = clients((parts_now, 1), parts_now)
    assert saved.read_by(chief) <= ALLOWED
