"""Which worker reads what several of them want, and who gets it of whom: a pure plan, the same on every worker.

Slices that one worker alone wants are not in it, nor those that no worker can serve.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ckptflow.format import boxes
from ckptflow.format.manifest import Manifest, SliceRecord
from ckptflow.format.spec import Wanted
from ckptflow.transfer.ranges import PAGE_BYTES, Range, plan_ranges

Bits = npt.NDArray[np.bool_]  # one for each slice of a manifest, in its order

LEAST_BUFFERS = 2  # of each worker: one to read into, one to get into what others have read
LEAST_RANGE_BYTES = 2**20  # what is less is no request of its own
_SHARES = 20  # ranges of each owner, at least, so that their bytes differ by 5 % at most
_MAX_CELLS = 2**28  # different wants times slices: more are not worked out


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one worker says before checkpoints are read together: where it listens, what it wants, what it has room for.

    `early` and `rest` are bits over the manifest's slices, packed (see `pack`). `token` is the chief's. `is_checked`:
    this worker has read before what is read early, and need not again.
    """

    address: str = ""  # empty: nobody can come to this worker
    port: int = 0
    buffer_bytes: int = 0
    buffer_count: int = 0
    early: bytes = b""
    rest: bytes = b""
    token: bytes = b""
    is_checked: bool = False

    @property
    def can_serve(self) -> bool:
        return bool(self.address)

    @property
    def problem(self) -> str:
        """What of it no worker says that works; empty where all makes sense."""
        if self.buffer_count > 0 and self.buffer_bytes < PAGE_BYTES:
            return f"{self.buffer_count} buffers of {self.buffer_bytes} bytes"
        return f"port {self.port}" if not 0 <= self.port < 2**16 else ""


@dataclass(frozen=True, slots=True)
class SharedRange:
    """Bytes that several workers want: `owner` reads them, the other `wanters` get them of it.

    `row` counts the ranges of an owner. All workers go through the rows in order.
    """

    range: Range
    owner: int
    row: int
    wanters: frozenset[int]


def wants_of(manifest: Manifest, wanted: Iterable[Wanted]) -> Bits:
    """Which slices have elements of what is wanted."""
    of_tensor: dict[int, list[Wanted]] = {}
    for each in wanted:
        of_tensor.setdefault(each.tensor, []).append(each)
    return np.fromiter(
        (
            any(_touches(each, piece) for each in of_tensor.get(index, ()))
            for index, tensor in enumerate(manifest.tensors)
            for piece in tensor.slices
        ),
        np.bool_,
    )


def _touches(wanted: Wanted, piece: SliceRecord) -> bool:
    return wanted.box is None or boxes.intersect(wanted.box, (piece.start, piece.shape)) is not None


def pack(bits: Bits) -> bytes:
    """As they are sent: some bytes where all are alike."""
    return zlib.compress(np.packbits(bits).tobytes(), 9)


def unpack(packed: bytes, count: int) -> Bits:
    """Raises ValueError unless these are so many bits."""
    size_bytes = -(-count // 8)
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, size_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"no packed bits: {error}") from error
    if len(data) != size_bytes:
        raise ValueError(f"{len(data)} bytes or more for {count} bits")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(np.bool_)


def plan_exchange(
    manifest: Manifest, wants: Sequence[Bits], can_serve: Sequence[bool], buffer_bytes: int
) -> tuple[SharedRange, ...]:
    """The ranges that are shared, by rows. `wants` and `can_serve` are of each worker.

    Each byte that two workers want, and one of them can serve, lies in one range, whose owner wants it. The owners'
    bytes differ by 5 % of a share at most, or by one slice, or by 1 MiB. A range is at most `buffer_bytes` long.
    Largest tensors first, as everybody reads by itself.
    """
    tensors = manifest.tensors
    firsts = [0, *itertools.accumulate(len(tensor.slices) for tensor in tensors)]
    by_size = sorted(range(len(tensors)), key=lambda index: (-tensors[index].size_bytes, index))
    order = [(firsts[index] + at, index) for index in by_size for at in range(len(tensors[index].slices))]
    total_bytes = sum(tensor.size_bytes for tensor in tensors)
    join_bytes = min(buffer_bytes, max(LEAST_RANGE_BYTES, total_bytes // max(1, len(wants)) // _SHARES))
    groups = _groups(wants, firsts[-1])
    ranks: dict[tuple[int, int], int] = {}  # of a slice, by its shard and offset
    pieces: list[list[tuple[int, SliceRecord]]] = [[] for _ in groups.members]
    for rank, (place, index) in enumerate(order):
        piece = tensors[index].slices[place - firsts[index]]
        ranks[piece.shard, piece.offset] = rank
        pieces[groups.of[place]].append((index, piece))
    found = [
        (each, wanters)
        for wanters, wanted in zip(groups.members, pieces, strict=True)
        if len(wanters) > 1 and any(can_serve[worker] for worker in wanters)
        for each in plan_ranges(manifest, wanted, buffer_bytes, join_bytes)
    ]
    found.sort(key=lambda item: min(ranks[part.slice.shard, part.slice.offset] for part in item[0].parts))
    return _give_owners(found, can_serve)


class _Groups(NamedTuple):
    """Who wants the same: of each group its workers, and the group of each slice."""

    members: list[frozenset[int]]
    of: list[int]


def _groups(wants: Sequence[Bits], count: int) -> _Groups:
    alike: dict[bytes, list[int]] = {}
    for worker, bits in enumerate(wants):
        alike.setdefault(np.packbits(bits).tobytes(), []).append(worker)
    if len(alike) * count > _MAX_CELLS:
        return _Groups([frozenset()], [0] * count)
    matrix = np.stack([wants[workers[0]] for workers in alike.values()])
    _, firsts, of = np.unique(np.packbits(matrix, axis=0), axis=1, return_index=True, return_inverse=True)
    members = [
        frozenset(itertools.chain.from_iterable(itertools.compress(alike.values(), matrix[:, first])))
        for first in firsts
    ]
    return _Groups(members, of.reshape(-1).tolist())


def _give_owners(ranges: Sequence[tuple[Range, frozenset[int]]], can_serve: Sequence[bool]) -> tuple[SharedRange, ...]:
    """To whoever has the fewest bytes so far."""
    read_bytes = [0] * len(can_serve)
    rows = [0] * len(can_serve)
    able: dict[frozenset[int], list[tuple[int, int]]] = {}  # heaps of (bytes, worker); bytes may be old
    found: list[SharedRange] = []
    for each, wanters in ranges:
        if wanters not in able:
            able[wanters] = [(0, worker) for worker in sorted(wanters) if can_serve[worker]]
        heap = able[wanters]
        while heap[0][0] < read_bytes[heap[0][1]]:
            heapq.heapreplace(heap, (read_bytes[heap[0][1]], heap[0][1]))
        owner = heap[0][1]
        read_bytes[owner] += each.end - each.begin
        found.append(SharedRange(each, owner, rows[owner], wanters))
        rows[owner] += 1
    found.sort(key=lambda shared: (shared.row, shared.owner))
    return tuple(found)


def agree_on_plan(manifest: Manifest, terms: Sequence[Terms], kind: str) -> tuple[SharedRange, ...]:
    """The plan for what all call "early", or "rest"; empty if a worker has too few buffers, or makes no sense."""
    count = sum(len(tensor.slices) for tensor in manifest.tensors)
    if not count or any(each.buffer_count < LEAST_BUFFERS or each.problem for each in terms):
        return ()
    try:
        wants = [unpack(each.rest if kind == "rest" else each.early, count) for each in terms]
    except ValueError:
        return ()
    if sum(bits.any() for bits in wants) < 2:
        return ()
    least_bytes = min(each.buffer_bytes for each in terms)
    return plan_exchange(manifest, wants, [each.can_serve for each in terms], least_bytes)


def in_turn_of(worker: int, world_size: int, plan: Sequence[SharedRange]) -> list[SharedRange]:
    """What a worker gets of others, as it asks for it: row after row, in each of them its neighbour first.

    If all asked the same owner first, that one's link would be all that is used.
    """
    others = [each for each in plan if each.owner != worker and worker in each.wanters]
    return sorted(others, key=lambda each: (each.row, (each.owner - worker) % world_size))
