"""Slices out of shards: read in few ranges through pooled buffers, each checked against its checksum before use."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt

from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError
from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, SliceRecord, TensorRecord
from ckptflow.format.shard import crc32c_combine
from ckptflow.format.spec import Bytes1D, Target, Wanted
from ckptflow.spans import span
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.pipeline import run, thread_count

PAGE_BYTES = 4096  # ranges start at multiples of this, so that a local disk can be read past the page cache
MAX_GAP_BYTES = 2**18  # unwanted bytes between two slices that are read rather than asked for anew


def check_sizes(manifest: Manifest, files: Mapping[str, int], where: str) -> None:
    """Raises `CorruptCheckpointError` unless every shard is in `files` (name in the folder -> bytes) at its size."""
    wrong = [
        f"{shard.name} is missing"
        if shard.name not in files
        else f"{shard.name} has {files[shard.name]:,} bytes, the manifest says {shard.size_bytes:,}"
        for shard in manifest.shards
        if files.get(shard.name) != shard.size_bytes
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CorruptCheckpointError(f"{where}: {'; '.join(wrong[:3])}{more}")


def read_tensors(
    store: Store,
    folder: Folder,
    manifest: Manifest,
    wanted: Iterable[Wanted],
    target: Target,
    pool: BufferPool,
    *,
    verify_first: bool = False,
    threads: int | None = None,
) -> None:
    """Brings what is wanted, tensors and boxes of tensors, into the target's memory, all bytes verified.

    Threads read and verify; the calling thread alone opens, copies and finishes, and finishes what is wanted only when
    all slices that it touches have passed their checksums. A slice is read once, however many wanted boxes it touches.
    Big tensors first, the slices of one tensor close together. With `verify_first` everything is read and verified once
    before the first `open`. Raises `CorruptCheckpointError` (what is, and what the manifest says) for a failed
    checksum, a short or a missing shard, and `StorageError` unchanged.
    """
    landings = {each: _Landing(manifest, each) for each in wanted}
    of_tensor: dict[int, list[_Landing]] = {}
    for landing in sorted(landings.values(), key=lambda landing: (-landing.size_bytes, landing.wanted.tensor)):
        of_tensor.setdefault(landing.wanted.tensor, []).append(landing)
    pieces = [
        (index, piece)
        for index, needed in of_tensor.items()
        for piece in manifest.tensors[index].slices
        if any(landing.touches(piece) for landing in needed)
    ]

    def users(part: Part) -> list[Wanted]:
        return [landing.wanted for landing in of_tensor[part.tensor] if landing.touches(part.slice)]

    def finish(each: Wanted) -> None:
        landings[each].open(target)  # one without elements has not been opened yet: nothing was read
        landings[each].memory = None
        target.finish(each)

    reading = _Reading(store, folder, manifest, pool, threads or thread_count(store), users)
    ranges = plan_ranges(manifest, pieces, pool.buffer_bytes)
    if verify_first:
        reading.run(ranges, lambda each, part, data: None, lambda each: None)
    reading.run(ranges, lambda each, part, data: landings[each].take(target, part, data), finish)
    for each, landing in landings.items():
        if not landing.size_bytes:
            finish(each)


class _Landing:
    """One wanted tensor or box on its way into the target's memory."""

    def __init__(self, manifest: Manifest, wanted: Wanted) -> None:
        self._tensor = tensor = manifest.tensors[wanted.tensor]
        self._item = dtypes.item_size_bytes(tensor.dtype)
        self._box = boxes.whole(tensor.storage_shape) if wanted.box is None else wanted.box
        check_box(tensor, self._box)
        self.wanted = wanted
        self.size_bytes = boxes.volume(self._box[1]) * self._item
        self.memory: Bytes1D | None = None

    def touches(self, piece: SliceRecord) -> bool:
        """Whether a slice has elements of it."""
        return self.wanted.box is None or boxes.intersect(self._box, (piece.start, piece.shape)) is not None

    def open(self, target: Target) -> Bytes1D:
        """Its memory, asked for once."""
        if self.memory is None:
            self.memory = target.open(self.wanted)
            if self.memory.size != self.size_bytes:
                raise ValueError(
                    f"{self._tensor.name!r}: {self.memory.size:,} bytes were opened for {self.size_bytes:,}"
                )
        return self.memory

    def take(self, target: Target, part: Part, data: Bytes1D) -> None:
        """Copies what it needs of a part's verified bytes."""
        into, piece = self.open(target), part.slice
        if part.is_whole and (piece.start, piece.shape) == self._box:
            into[:] = data
        elif self.wanted.box is None and boxes.is_contiguous(self._box[1], piece.shape):
            begin = boxes.row_major_offset(self._box[1], piece.start) * self._item + part.begin - piece.offset
            into[begin : begin + data.size] = data
        else:
            _scatter(dtypes.as_words(into, self._item).reshape(self._box[1]), self._box, part, data, self._item)


def check_box(tensor: TensorRecord, box: Box) -> None:
    """Raises ValueError for a box that does not lie in the tensor."""
    shape = tensor.storage_shape
    if len(box[0]) != len(shape) or any(
        at < 0 or extent < 0 or at + extent > length for at, extent, length in zip(*box, shape, strict=True)
    ):
        raise ValueError(f"the box {box} does not lie in {tensor.name!r} of shape {list(shape)}")


def read_box(
    store: Store,
    folder: Folder,
    manifest: Manifest,
    index: int,
    start: Sequence[int],
    shape: Sequence[int],
    pool: BufferPool,
) -> npt.NDArray[Any]:
    """One box of one tensor, as an array in the tensor's dtype (uint8 for encoded ones, whose boxes are of bytes).

    Reads the slices that the box touches, each whole, because only whole slices can be verified. Raises ValueError for
    a box outside the tensor, else as `read_tensors`.
    """
    tensor = manifest.tensors[index]
    wanted = Wanted(index, (tuple(start), tuple(shape)))
    target = _BoxTarget(boxes.volume(shape) * dtypes.item_size_bytes(tensor.dtype))
    read_tensors(store, folder, manifest, [wanted], target, pool)
    dtype = np.dtype(np.uint8) if dtypes.is_encoded(tensor.dtype) else dtypes.numpy_dtype(tensor.dtype)
    return target.memory.view(dtype).reshape(tuple(shape))


class _BoxTarget:
    def __init__(self, size_bytes: int) -> None:
        self.memory: Bytes1D = np.empty(size_bytes, dtype=np.uint8)

    def open(self, wanted: Wanted) -> Bytes1D:
        return self.memory

    def finish(self, wanted: Wanted) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Part:
    """A slice, or, where that is larger than a buffer, a part of one: the bytes `begin` … `end` of its shard."""

    tensor: int
    slice: SliceRecord
    begin: int
    end: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of one shard that are read at once, at most a buffer long."""

    shard: int
    begin: int
    end: int
    parts: tuple[Part, ...]


def plan_ranges(manifest: Manifest, pieces: Iterable[tuple[int, SliceRecord]], buffer_bytes: int) -> tuple[Range, ...]:
    """The ranges to read for these (tensor, slice) pairs: neighbours together, ordered by each one's first pair."""
    ranked = [
        (rank, part)
        for rank, (tensor, piece) in enumerate(pieces)
        for part in _cut(manifest, tensor, piece, buffer_bytes)
    ]
    ranked.sort(key=lambda item: (item[1].slice.shard, item[1].begin))
    found: list[tuple[int, list[Part]]] = []
    for rank, part in ranked:
        if found:
            first, last = found[-1][1][0], found[-1][1][-1]
            if (
                part.slice.shard == last.slice.shard
                and part.begin - last.end <= MAX_GAP_BYTES
                and part.end - _page(first.begin) <= buffer_bytes
            ):
                found[-1][1].append(part)
                found[-1] = min(rank, found[-1][0]), found[-1][1]
                continue
        found.append((rank, [part]))
    found.sort(key=lambda item: item[0])
    return tuple(Range(parts[0].slice.shard, _page(parts[0].begin), parts[-1].end, tuple(parts)) for _, parts in found)


def _cut(manifest: Manifest, tensor: int, piece: SliceRecord, buffer_bytes: int) -> list[Part]:
    """The parts of a slice that each fit a buffer; parts of elements there are none."""
    item = dtypes.item_size_bytes(manifest.tensors[tensor].dtype)
    end = piece.offset + boxes.volume(piece.shape) * item
    if end - _page(piece.offset) <= buffer_bytes:
        return [Part(tensor, piece, piece.offset, end, is_whole=True)] if end > piece.offset else []
    parts, begin = [], piece.offset
    while begin < end:
        room = (buffer_bytes - (begin - _page(begin))) // item * item
        parts.append(Part(tensor, piece, begin, min(end, begin + room), is_whole=False))
        begin = parts[-1].end
    return parts


def _page(position: int) -> int:
    return position // PAGE_BYTES * PAGE_BYTES


def _scatter(into: npt.NDArray[Any], box: Box, part: Part, data: Bytes1D, item_size: int) -> None:
    """Copies into the array of `box` what lies in it of a part's elements; both are boxes of one tensor."""
    begin = (part.begin - part.slice.offset) // item_size
    words, at = dtypes.as_words(data, item_size), 0
    for start, shape in boxes.runs(part.slice.shape, begin, begin + words.size):
        held = words[at : at + boxes.volume(shape)].reshape(shape)
        at += held.size
        origin = tuple(a + b for a, b in zip(part.slice.start, start, strict=True))
        overlap = boxes.intersect(box, (origin, shape))
        if overlap is not None:
            extents, to, here = overlap
            into[_slices(to, extents)] = held[_slices(here, extents)]


def _slices(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(at, at + extent) for at, extent in zip(start, shape, strict=True))


class _Reading:
    """Reads ranges of one checkpoint and hands over their parts, verified, to those who use them."""

    def __init__(
        self,
        store: Store,
        folder: Folder,
        manifest: Manifest,
        pool: BufferPool,
        threads: int,
        users: Callable[[Part], Sequence[Wanted]],
    ) -> None:
        self._store = store
        self._folder = folder
        self._manifest = manifest
        self._pool = pool
        self._threads = threads
        self._users = users

    def run(
        self,
        ranges: Sequence[Range],
        copy: Callable[[Wanted, Part, Bytes1D], None],
        finish: Callable[[Wanted], None],
    ) -> None:
        """Calls `copy` with each part's bytes for each of its users, and `finish` once a user has had all its parts.

        Whole slices are verified before they are copied, parts of slices when the last one is there.
        """
        left: Counter[Wanted] = Counter()
        divided: dict[Wanted, list[Part]] = {}
        for part in (part for each in ranges for part in each.parts):
            for user in self._users(part):
                left[user] += 1
                if not part.is_whole:
                    divided.setdefault(user, []).append(part)
        checksums: dict[Part, int] = {}

        def read(number: int, buffer: Buffer) -> None:
            each = ranges[number]
            view = buffer.view[: each.end - each.begin]
            shard = self._manifest.shards[each.shard].name
            with span("read", shard=shard, size_bytes=len(view)):
                self._fetch(each.shard, view, each.begin)
            with span("verify", shard=shard):
                for part in each.parts:
                    checksum = crc32c.crc32c(view[part.begin - each.begin : part.end - each.begin])
                    if not part.is_whole:
                        checksums[part] = checksum
                    elif checksum != part.slice.crc32c:
                        raise self._mismatch(part, checksum)

        def consume(number: int, buffer: Buffer) -> None:
            each = ranges[number]
            with span("assign", size_bytes=each.end - each.begin):
                hand_over(each, buffer)

        def hand_over(each: Range, buffer: Buffer) -> None:
            for part in each.parts:
                for user in self._users(part):
                    copy(user, part, buffer.array[part.begin - each.begin : part.end - each.begin])
                    left[user] -= 1
                    if not left[user]:
                        self._check_divided(divided.get(user, ()), checksums)
                        finish(user)

        run(self._pool, len(ranges), read, consume, threads=self._threads)

    def _fetch(self, shard: int, view: memoryview, begin: int) -> None:
        record = self._manifest.shards[shard]
        where = f"{self._store.url}/{self._folder}/{record.name}"
        try:
            count = self._store.get(self._folder.key(record.name), view, begin)
        except ObjectNotFoundError as error:
            raise CorruptCheckpointError(
                f"{where} is missing; the manifest says that it has {record.size_bytes:,} bytes"
            ) from error
        if count < len(view):
            raise CorruptCheckpointError(
                f"{where} ends at byte {begin + count:,}, the manifest says that it has {record.size_bytes:,} bytes"
            )

    def _check_divided(self, parts: Iterable[Part], checksums: Mapping[Part, int]) -> None:
        """Raises unless the slices that were read in parts have the checksums that the manifest says."""
        by_slice = sorted(parts, key=lambda part: (part.slice.shard, part.begin))
        for _, group in itertools.groupby(by_slice, key=lambda part: (part.slice.shard, part.slice.offset)):
            checksum = 0
            for part in group:
                checksum = crc32c_combine(checksum, checksums[part], part.end - part.begin)
            if checksum != part.slice.crc32c:
                raise self._mismatch(part, checksum)

    def _mismatch(self, part: Part, checksum: int) -> CorruptCheckpointError:
        tensor, record = self._manifest.tensors[part.tensor], self._manifest.shards[part.slice.shard]
        return CorruptCheckpointError(
            f"{self._store.url}/{self._folder}/{record.name}: the slice of {tensor.name!r} at byte "
            f"{part.slice.offset:,} has crc32c {checksum:08x}, the manifest says {part.slice.crc32c:08x}"
        )
