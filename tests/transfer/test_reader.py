"""What was written comes back bit for bit, and what was damaged never reaches the target."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError, StorageUnavailableError
from ckptflow.format import boxes, dtypes
from ckptflow.format.manifest import Manifest, decode
from ckptflow.format.spec import Bytes1D, TensorSpec, Wanted
from ckptflow.storage.store import Entry
from ckptflow.transfer import reader, streams
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.ranges import plan_ranges
from ckptflow.transfer.reader import check_sizes, read_tensors
from ckptflow.transfer.streams import Streams
from ckptflow.transfer.verify import verify_checkpoint
from tests.transfer.helpers import (
    FOLDER,
    Array,
    ArraySource,
    ArrayTarget,
    DictStore,
    arrays_for,
    same_bits,
    write_checkpoint,
)
from tests.transfer.test_buffers import all_free
from tests.transfer.test_plan import states

SPECS = [
    TensorSpec("kernel", "float32", (300, 1000)),
    TensorSpec("wide", "bfloat16", (3, 50_000)),
    TensorSpec("phase", "complex128", (3, 9, 700)),
    TensorSpec("words", "string", (3, 4), dynamic=True),
    TensorSpec("scalar", "bool", ()),
    TensorSpec("empty", "int64", (0, 3)),
    TensorSpec("sum", "float64", (5, 5), components="sum"),
]


def written(
    world_size: int = 2, specs: Sequence[TensorSpec] = SPECS, small_bytes: int = 2**10, shard_bytes: int = 2**16
) -> tuple[DictStore, Manifest, list[Array]]:
    """A checkpoint, and what each of its tensors must come back as."""
    shared = arrays_for(specs)
    own = [arrays_for(specs, seed=w + 1) for w in range(world_size)]
    workers = [
        ArraySource(specs, [own[w][i] if spec.components else shared[i] for i, spec in enumerate(specs)])
        for w in range(world_size)
    ]
    store = DictStore()
    write_checkpoint(store, workers, small_bytes=small_bytes, shard_bytes=shard_bytes)
    manifest = decode(store.objects[FOLDER.manifest_key], Manifest, "manifest")
    expected = [np.stack([part[i] for part in own]) if spec.components else shared[i] for i, spec in enumerate(specs)]
    store.gets.clear()
    return store, manifest, expected


def read_all(
    store: DictStore, manifest: Manifest, pool: BufferPool | None = None, *, only_verify: bool = False
) -> ArrayTarget:
    target = ArrayTarget(manifest)
    pool = pool or BufferPool(3 * 2**16, 2**16)
    read_tensors(
        store, FOLDER, manifest, map(Wanted, range(len(manifest.tensors))), target, pool, only_verify=only_verify
    )
    return target


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("buffer_bytes", [2**13, 2**16, 2**20])
def test_every_tensor_comes_back(world_size: int, buffer_bytes: int) -> None:
    """Also through buffers that are far smaller, or larger, than the shards."""
    store, manifest, expected = written(world_size)
    pool = BufferPool(3 * buffer_bytes, buffer_bytes)
    target = read_all(store, manifest, pool)
    for spec, array in zip(SPECS, expected, strict=True):
        assert same_bits(target.arrays[spec.name], array), spec
    assert all_free(pool)
    assert verify_checkpoint(store, FOLDER, manifest, pool) == []


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(states(), st.integers(1, 4), st.sampled_from([0, 2**12]), st.sampled_from([2**12, 2**16]))
def test_random_states_come_back(specs: list[TensorSpec], world_size: int, small_bytes: int, buffer_bytes: int) -> None:
    store, manifest, expected = written(world_size, specs, small_bytes)
    target = read_all(store, manifest, BufferPool(2 * buffer_bytes, buffer_bytes))
    assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(specs, expected, strict=True))


def test_only_what_is_wanted_is_read() -> None:
    store, manifest, expected = written()
    target = ArrayTarget(manifest)
    read_tensors(store, FOLDER, manifest, [Wanted(4)], target, BufferPool(2**16, 2**16))
    assert same_bits(target.arrays["scalar"], expected[4])
    assert list(target.arrays) == ["scalar"]
    assert len(store.gets) == 1
    assert store.gets[0][2] <= 4096 + 1


def test_neighbours_are_read_at_once_and_ranges_start_at_pages() -> None:
    specs = [TensorSpec(f"t{i}", "float32", (100,)) for i in range(100)]
    store, manifest, expected = written(1, specs)
    target = read_all(store, manifest)
    assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(specs, expected, strict=True))
    assert len(store.gets) == len(manifest.shards)
    assert all(start % 4096 == 0 for _, start, _ in store.gets)


def test_wanted_may_repeat_and_be_empty() -> None:
    store, manifest, _ = written()
    target = ArrayTarget(manifest)
    read_tensors(store, FOLDER, manifest, [], target, BufferPool(2**16, 2**16))
    assert target.calls == []
    read_tensors(store, FOLDER, manifest, [Wanted(4), Wanted(4), Wanted(5)], target, BufferPool(2**16, 2**16))
    assert sorted(target.calls) == [("finish", 4), ("finish", 5), ("open", 4), ("open", 5)]


def test_big_tensors_come_first_and_few_are_open_at_once() -> None:
    specs = [TensorSpec(f"t{i}", "float32", (20_000 + 1000 * i,)) for i in range(12)]
    store, manifest, _ = written(3, specs)
    most = 0

    class Watching(ArrayTarget):
        def open(self, wanted: Wanted) -> Bytes1D:
            nonlocal most
            memory = super().open(wanted)
            most = max(most, self.open_now)
            return memory

    target = Watching(manifest)
    read_tensors(
        store, FOLDER, manifest, map(Wanted, range(12)), target, BufferPool(2**17, 2**16), streams=Streams(1, fixed=1)
    )
    assert target.calls[0] == ("open", 11)
    assert most <= 4


# ---- damage


def flip(store: DictStore, key: str, position: int) -> None:
    data = bytearray(store.objects[key])
    data[position] ^= 0x10
    store.objects[key] = bytes(data)


@pytest.mark.parametrize("buffer_bytes", [2**13, 2**16])
@pytest.mark.parametrize("index", range(len(SPECS)))
def test_a_flipped_bit_is_told_and_never_finished(index: int, buffer_bytes: int) -> None:
    store, manifest, _ = written()
    tensor = manifest.tensors[index]
    if not tensor.size_bytes:
        return
    piece = tensor.slices[-1]
    shard = manifest.shards[piece.shard].name
    size = int(np.prod(piece.shape, dtype=np.int64)) * dtypes.item_size_bytes(tensor.dtype)
    flip(store, FOLDER.key(shard), piece.offset + size - 1)
    target, pool = ArrayTarget(manifest), BufferPool(3 * buffer_bytes, buffer_bytes)
    with pytest.raises(CorruptCheckpointError, match=rf"{FOLDER}/{shard}: .*'{tensor.name}'.* the manifest says"):
        read_tensors(store, FOLDER, manifest, map(Wanted, range(len(SPECS))), target, pool)
    assert ("finish", index) not in target.calls
    assert all_free(pool)
    assert [problem.shard for problem in verify_checkpoint(store, FOLDER, manifest, pool)] == [shard, shard]


def test_only_to_verify_opens_nothing() -> None:
    store, manifest, _ = written()
    target, pool = ArrayTarget(manifest), BufferPool(3 * 2**16, 2**16)
    read_tensors(store, FOLDER, manifest, map(Wanted, range(len(SPECS))), target, pool, only_verify=True)
    flip(store, FOLDER.key(manifest.shards[-1].name), -1)
    with pytest.raises(CorruptCheckpointError):
        read_tensors(store, FOLDER, manifest, map(Wanted, range(len(SPECS))), target, pool, only_verify=True)
    assert target.calls == []


def test_a_missing_shard_is_damage_and_says_so() -> None:
    store, manifest, _ = written()
    name = manifest.shards[0].name
    del store.objects[FOLDER.key(name)]
    with pytest.raises(CorruptCheckpointError, match=f"{name} is missing; the manifest says") as raised:
        read_all(store, manifest)
    assert isinstance(raised.value.__cause__, ObjectNotFoundError)
    (problem,) = verify_checkpoint(store, FOLDER, manifest, BufferPool(2**16, 2**16))
    assert str(problem) == f"{name}: is missing"


def test_a_short_or_long_shard_is_damage() -> None:
    store, manifest, _ = written()
    key, whole = FOLDER.key(manifest.shards[0].name), store.objects[FOLDER.key(manifest.shards[0].name)]
    store.objects[key] = whole[:-1]
    with pytest.raises(CorruptCheckpointError, match=r"ends at byte .*, the manifest says"):
        read_all(store, manifest)
    for changed in (whole[:-1], whole + b"\0", b""):
        store.objects[key] = changed
        (problem,) = verify_checkpoint(store, FOLDER, manifest, BufferPool(2**16, 2**16))
        assert f"has {len(changed):,} bytes" in problem.what


@pytest.mark.parametrize("left_bytes", [0, 5, 20])
def test_a_shard_that_becomes_shorter_while_it_is_read_is_told_so(left_bytes: int) -> None:
    """Not that its header is malformed: nobody wrote one that is."""
    store, manifest, _ = written()
    key = FOLDER.key(manifest.shards[0].name)
    store.objects[key], listed = store.objects[key][:left_bytes], store.list()
    store.list = lambda prefix="": [  # type: ignore[method-assign]
        Entry(each.key, manifest.shards[0].size_bytes) if each.key == key else each for each in listed
    ]
    (problem,) = verify_checkpoint(store, FOLDER, manifest, BufferPool(2**16, 2**16))
    assert str(problem) == f"{manifest.shards[0].name}: became shorter while it was read"


def test_swapped_shards_are_damage() -> None:
    specs = [TensorSpec("t", "uint8", (2**18,))]
    store, manifest, _ = written(1, specs, 0)
    a, b = (FOLDER.key(shard.name) for shard in manifest.shards[:2])
    store.objects[a], store.objects[b] = store.objects[b], store.objects[a]
    with pytest.raises(CorruptCheckpointError):
        read_all(store, manifest)
    assert verify_checkpoint(store, FOLDER, manifest, BufferPool(2**16, 2**16))


def test_a_changed_header_is_found_by_verify() -> None:
    store, manifest, _ = written()
    key = FOLDER.key(manifest.shards[0].name)
    store.objects[key] = store.objects[key].replace(b'"kernel[', b'"kernal[', 1)
    problems = verify_checkpoint(store, FOLDER, manifest, BufferPool(2**16, 2**16))
    assert ["header" in str(problem) for problem in problems] == [True, False]
    assert same_bits(read_all(store, manifest).arrays["scalar"], written()[2][4])  # readers go by the manifest


def test_storage_trouble_is_not_damage() -> None:
    class Throttled(DictStore):
        def get(self, key: str, into: memoryview, start: int = 0) -> int:
            raise StorageUnavailableError("slow down")

    store, manifest, _ = written()
    throttled, pool = Throttled(), BufferPool(2**16, 2**16)
    throttled.objects = store.objects
    for call in (
        lambda: read_all(throttled, manifest, pool),
        lambda: verify_checkpoint(throttled, FOLDER, manifest, pool),
    ):
        with pytest.raises(StorageUnavailableError, match="slow down"):
            call()
    assert all_free(pool)


def test_a_failing_target_gives_all_buffers_back() -> None:
    class Refusing(ArrayTarget):
        def finish(self, wanted: Wanted) -> None:
            raise MemoryError

    store, manifest, _ = written()
    pool = BufferPool(3 * 2**16, 2**16)
    with pytest.raises(MemoryError):
        read_tensors(store, FOLDER, manifest, map(Wanted, range(len(SPECS))), Refusing(manifest), pool)
    assert all_free(pool)


def test_a_target_of_another_size_is_refused() -> None:
    class Wrong(ArrayTarget):
        def open(self, wanted: Wanted) -> Bytes1D:
            return np.empty(1, np.uint8)

    store, manifest, _ = written()
    with pytest.raises(ValueError, match="were opened for"):
        read_tensors(store, FOLDER, manifest, [Wanted(0)], Wrong(manifest), BufferPool(2**16, 2**16))


def test_sizes_are_checked_against_a_listing() -> None:
    store, manifest, _ = written()
    files = {key.partition("/")[2]: len(data) for key, data in store.objects.items()}
    check_sizes(manifest, files, "root/folder")
    with pytest.raises(CorruptCheckpointError, match=r"root/folder: shard.*is missing; .*\(and \d+ more\)"):
        check_sizes(manifest, {}, "root/folder")
    name = manifest.shards[1].name
    with pytest.raises(CorruptCheckpointError, match=rf"{name} has 7 bytes, the manifest says"):
        check_sizes(manifest, files | {name: 7}, "root/folder")


# ---- parts of tensors


class _BoxTarget:
    def __init__(self, size_bytes: int) -> None:
        self.memory = np.zeros(size_bytes, np.uint8)

    def open(self, wanted: Wanted) -> Bytes1D:
        return self.memory

    def finish(self, wanted: Wanted) -> None:
        pass


def read_box(
    store: DictStore, manifest: Manifest, index: int, start: tuple[int, ...], shape: tuple[int, ...], buffer_bytes: int
) -> Array:
    """One box of one tensor, in its dtype; of an encoded one, of its words' bytes."""
    dtype = manifest.tensors[index].dtype
    target = _BoxTarget(boxes.volume(shape) * dtypes.item_size_bytes(dtype))
    pool = BufferPool(2 * buffer_bytes, buffer_bytes)
    read_tensors(store, FOLDER, manifest, [Wanted(index, (start, shape))], target, pool)
    return target.memory.view(np.uint8 if dtypes.is_encoded(dtype) else dtypes.numpy_dtype(dtype)).reshape(shape)


@given(st.data())
def test_a_box_of_a_tensor(data: st.DataObject) -> None:
    store, manifest, expected = BOXED
    index = data.draw(st.sampled_from([0, 1, 2, 4, 6]))
    array = expected[index]
    start = tuple(data.draw(st.integers(0, n)) for n in array.shape)
    shape = tuple(data.draw(st.integers(0, n - at)) for n, at in zip(array.shape, start, strict=True))
    buffer_bytes = data.draw(st.sampled_from([2**12, 2**16]))
    found = read_box(store, manifest, index, start, shape, buffer_bytes)
    assert same_bits(found, array[tuple(slice(at, at + n) for at, n in zip(start, shape, strict=True))])


BOXED = written(3)


def test_a_box_reads_only_the_slices_that_it_touches() -> None:
    store, manifest, expected = written(1)
    found = read_box(store, manifest, 0, (0, 0), (1, 10), 2**16)
    assert same_bits(found, expected[0][:1, :10])
    assert len(store.gets) == 1
    with pytest.raises(ValueError, match="does not lie in"):
        read_box(store, manifest, 0, (0, 0), (301, 10), 2**16)
    words = read_box(store, manifest, 3, (0,), (8,), 2**16)
    assert words.tobytes() == (12).to_bytes(8, "little")


def test_ranges_cover_what_is_wanted_in_the_order_of_rank() -> None:
    _, manifest, _ = written(2)
    pieces = [(i, piece) for i in (2, 0, 1) for piece in manifest.tensors[i].slices]
    ranges = plan_ranges(manifest, pieces, 2**16)
    assert any(part.tensor == 2 for part in ranges[0].parts)
    assert any(part.tensor == 1 for part in ranges[-1].parts)
    assert sum(part.end - part.begin for each in ranges for part in each.parts) == sum(
        manifest.tensors[i].size_bytes for i in range(3)
    )
    for each in ranges:
        assert each.begin % 4096 == 0
        assert each.end - each.begin <= 2**16
        assert all(each.begin <= part.begin <= part.end <= each.end for part in each.parts)


def test_unaligned_shards_of_another_writer_are_read() -> None:
    """Data that starts anywhere: only our writer aligns, no reader relies on it."""
    store, manifest, expected = written(1)
    pad = 3
    for shard in manifest.shards:
        key = FOLDER.key(shard.name)
        head = int.from_bytes(store.objects[key][:8], "little")
        data = store.objects[key]
        store.objects[key] = (head + pad).to_bytes(8, "little") + data[8 : 8 + head] + b" " * pad + data[8 + head :]
    moved = msgspec.structs.replace(
        manifest,
        shards=tuple(msgspec.structs.replace(shard, size_bytes=shard.size_bytes + pad) for shard in manifest.shards),
        tensors=tuple(
            msgspec.structs.replace(
                tensor,
                slices=tuple(msgspec.structs.replace(piece, offset=piece.offset + pad) for piece in tensor.slices),
            )
            for tensor in manifest.tensors
        ),
    )
    for buffer_bytes in (2**13, 2**17):
        target = read_all(store, moved, BufferPool(2 * buffer_bytes, buffer_bytes))
        assert all(same_bits(target.arrays[s.name], array) for s, array in zip(SPECS, expected, strict=True))


# ---- streams


def test_a_long_range_of_an_object_store_comes_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them at most so long; on a disk it is one."""
    monkeypatch.setattr(streams, "PIECE_BYTES", 2**13)
    monkeypatch.setattr(reader, "LEAST_PIECE_BYTES", 2**13)
    for is_object_store in (True, False):
        store, manifest, expected = written(1)
        store.is_object_store = is_object_store
        store.gets.clear()
        target = read_all(store, manifest, BufferPool(3 * 2**16, 2**16))
        assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(SPECS, expected, strict=True))
        longest = max(size for _, _, size in store.gets)
        assert (longest < 2 * 2**13) == is_object_store


def test_one_of_several_requests_that_is_short_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PIECE_BYTES", 2**12)
    monkeypatch.setattr(reader, "LEAST_PIECE_BYTES", 2**12)
    store, manifest, _ = written(1)
    store.is_object_store = True
    key = FOLDER.key(max(manifest.shards, key=lambda shard: shard.size_bytes).name)
    store.objects[key] = store.objects[key][: len(store.objects[key]) // 2 + 100]
    with pytest.raises(CorruptCheckpointError, match=f"ends at byte {len(store.objects[key]):,}"):
        read_all(store, manifest, BufferPool(3 * 2**16, 2**16))
