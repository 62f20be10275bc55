"""Slices out of shards: read in few ranges through pooled buffers, each checked against its checksum before use."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import crc32c

from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest
from ckptflow.format.shard import crc32c_combine
from ckptflow.format.spec import Bytes1D, Target, Wanted
from ckptflow.spans import span
from ckptflow.storage.again import agreed
from ckptflow.storage.store import Store
from ckptflow.storage.wanted import while_wanted
from ckptflow.threads import at_once
from ckptflow.transfer.arrivals import Arrival, touching
from ckptflow.transfer.attempts import HELPERS, Attempts
from ckptflow.transfer.buffers import Buffer, BufferPool, Buffers, BufferShare
from ckptflow.transfer.pipeline import Lane, run_lanes
from ckptflow.transfer.ranges import Part, Range, page_of, plan_ranges
from ckptflow.transfer.sharing import Division, Moved, Sharing
from ckptflow.transfer.streams import LEAST_PIECE_BYTES, StoppedError, Streams, Turns, pieces, streams_for


def check_sizes(manifest: Manifest, files: Mapping[str, int], where: str) -> None:
    """Raises `CorruptCheckpointError` unless every shard is in `files` (name in the folder -> bytes) at its size."""
    wrong = wrong_sizes(manifest, files)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CorruptCheckpointError(f"{where}: {'; '.join(wrong[:3])}{more}")


def wrong_sizes(manifest: Manifest, files: Mapping[str, int]) -> list[str]:
    """What differs between the shards of a manifest and those that are listed, in words."""
    return [
        f"{shard.name} is missing"
        if shard.name not in files
        else f"{shard.name} has {files[shard.name]:,} bytes, the manifest says {shard.size_bytes:,}"
        for shard in manifest.shards
        if files.get(shard.name) != shard.size_bytes
    ]


def check_shards(store: Store, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None = None) -> None:
    """The same for what is listed now, or was in `files`. What is not there, or has another size, is listed again."""
    prefix = f"{folder}/"

    def listings() -> Iterator[Mapping[str, int]]:
        if files is not None:
            yield files
        while True:
            yield {entry.key.removeprefix(prefix): entry.size_bytes for entry in store.list(prefix)}

    looks = listings()
    found = agreed(store, prefix, lambda: dict(next(looks)), lambda listed: not wrong_sizes(manifest, listed))
    check_sizes(manifest, found, f"{store.url}/{folder}")


def read_tensors(
    store: Store,
    folder: Folder,
    manifest: Manifest,
    wanted: Iterable[Wanted],
    target: Target,
    pool: BufferPool,
    *,
    only_verify: bool = False,
    streams: Streams | None = None,
    look: Callable[[], None] = lambda: None,
    sharing: Sharing | None = None,
) -> Moved:
    """Brings what is wanted, tensors and boxes of tensors, into the target's memory, all bytes verified.

    Threads read and verify; the calling thread alone opens, copies and finishes, and finishes what is wanted only when
    all slices that it touches have passed their checksums. A slice is read once, however many wanted boxes it touches.
    Big tensors first, the slices of one tensor close together. With `only_verify` everything is read and verified, and
    nothing opened. `look` is called between two parts, and may raise. With `sharing`, what other workers have read
    comes from them, and is verified as what comes from storage is; only what storage gives is ever called damaged.
    Raises `CorruptCheckpointError` (what is, and what the manifest says) for a failed checksum, a short or a missing
    shard, each only where it came so twice, and `StorageError` unchanged.
    """
    landings = {each: Arrival(manifest, each) for each in wanted}
    of_tensor: dict[int, list[Arrival]] = {}
    for landing in sorted(landings.values(), key=lambda landing: (-landing.size_bytes, landing.wanted.tensor)):
        of_tensor.setdefault(landing.wanted.tensor, []).append(landing)
    touched_by = {index: touching(manifest.tensors[index], needed) for index, needed in of_tensor.items()}
    pieces = [
        (index, piece)
        for index, arrivals_of in touched_by.items()
        for piece in manifest.tensors[index].slices
        if arrivals_of(piece)
    ]

    def users(part: Part) -> list[Wanted]:
        arrivals_of = touched_by.get(part.tensor)
        return [landing.wanted for landing in arrivals_of(part.slice)] if arrivals_of else []

    def finish(each: Wanted) -> None:
        landings[each].open(target)  # one without elements has not been opened yet: nothing was read
        landings[each].memory = None
        target.finish(each)

    division = sharing.division if sharing is not None else Division()
    shared = {_place(part) for each in (*division.own, *division.others) for part in each.parts}
    alone = [(index, piece) for index, piece in pieces if (piece.shard, piece.offset) not in shared]
    ranges = (*division.own, *plan_ranges(manifest, alone, pool.buffer_bytes))
    reading = _Reading(store, folder, manifest, pool, streams or streams_for(store, pool), users, sharing)

    def copy(each: Wanted, part: Part, data: Bytes1D) -> None:
        look()
        if not only_verify:
            landings[each].take(target, part, data)

    moved = reading.run(ranges, division, copy, lambda each: None if only_verify else finish(each))
    for each, landing in landings.items():
        if not landing.size_bytes and not only_verify:
            finish(each)
    return moved


# How many bytes came of a request for a range, or that there is no such object: asked again, it is no error yet.
_Came = int | ObjectNotFoundError
_Ask = Callable[[str, memoryview, int], _Came]


class _Reading:
    """Reads ranges of one checkpoint and hands over their parts, verified, to those who use them."""

    def __init__(
        self,
        store: Store,
        folder: Folder,
        manifest: Manifest,
        pool: BufferPool,
        streams: Streams,
        users: Callable[[Part], Sequence[Wanted]],
        sharing: Sharing | None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._manifest = manifest
        self._pool = pool
        self._turns = Turns(streams)
        self._users = users
        self._sharing = sharing
        self._pulled: dict[Part, int] = {}  # parts of slices that others have read, and which of their ranges
        self._storage_bytes: list[int] = []
        self._peer_bytes: list[int] = []

    def run(
        self,
        ranges: Sequence[Range],
        division: Division,
        copy: Callable[[Wanted, Part, Bytes1D], None],
        finish: Callable[[Wanted], None],
    ) -> Moved:
        """Calls `copy` with each part's bytes for each of its users, and `finish` once a user has had all its parts.

        Whole slices are verified before they are copied, parts of slices when the last one is there. `ranges` are read
        from storage, those of others in `division` are asked of them.
        """
        left: Counter[Wanted] = Counter()
        divided: dict[Wanted, list[Part]] = {}
        everything = (*ranges, *division.others)
        for part in (part for each in everything for part in each.parts):
            for user in self._users(part):
                left[user] += 1
                if not part.is_whole:
                    divided.setdefault(user, []).append(part)
        checksums: dict[Part, int] = {}

        streams = self._turns.streams
        buffers: Buffers = self._pool
        if self._sharing is not None:  # others may keep buffers for long, also those of a reading before
            buffers = BufferShare(self._pool, division.read_buffers, wait=self._press, starve=self._press)
        threads = min(streams.most, buffers.count, max(1, len(ranges)))
        attempts = Attempts(len(ranges), helpers=HELPERS if self._store.is_object_store else 0)
        last = len(ranges) % threads or threads  # that are read when no other is left to begin

        def read(number: int, buffer: Buffer) -> tuple[int, ...]:
            if number >= len(ranges):
                return self._pull_or_read(number - len(ranges), everything[number], buffer)
            is_last = len(ranges) - number <= last
            requests = max(1, streams.at_the_end // last) if is_last else -(-streams.count // threads)
            get = partial(self._get_in_pieces, requests, lambda: attempts.is_raced(number))
            return self._read(ranges[number], buffer, get)

        def consume(number: int, buffer: Buffer, sums: tuple[int, ...]) -> None:
            each = everything[number]
            found = zip(each.parts, sums, strict=True)
            checksums.update((part, checksum) for part, checksum in found if not part.is_whole)
            with span("assign", size_bytes=each.end - each.begin):
                for part in each.parts:
                    hand_over(each, part, buffer)

        def hand_over(each: Range, part: Part, buffer: Buffer) -> None:
            users = self._users(part)
            for user in users:
                copy(user, part, _bytes_of(part, each, buffer))
                left[user] -= 1
            for user in users:
                if not left[user]:
                    for pieces in _slices_of(divided.get(user, ())):
                        self._settle(pieces, checksums, copy)
                    finish(user)

        lanes = [Lane(len(ranges), threads, buffers, attempts)]
        if division.others:
            count, places = len(division.others), self._pool.count - division.read_buffers
            share = BufferShare(self._pool, places, wait=self._check_stopped, starve=self._press)
            lanes.append(Lane(count, places, share, Attempts(count)))
        run_lanes(lanes, read, consume, partial(self._lend, division.own), turns=self._turns)
        return Moved(sum(self._storage_bytes), sum(self._peer_bytes))

    def _lend(self, own: Sequence[Range], number: int, buffer: Buffer, give_back: Callable[[], None]) -> None:
        """What was read for others as well; it is still read here meanwhile."""
        if self._sharing is None or number >= len(own):
            give_back()
        else:
            self._sharing.lend(number, buffer.view[: own[number].end - own[number].begin], give_back)

    def _check_stopped(self) -> None:
        if self._turns.is_stopped:
            raise StoppedError

    def _press(self) -> None:
        """A buffer is waited for that others may have, who have yet to come for what is in it."""
        self._check_stopped()
        if self._sharing is not None:
            self._sharing.press()

    def _pull_or_read(self, number: int, each: Range, buffer: Buffer) -> tuple[int, ...]:
        """What another worker has read, or, if it cannot be had or is wrong, the same from storage."""
        sharing, view = self._sharing, buffer.view[: each.end - each.begin]
        if sharing is not None:
            with span("pull", size_bytes=len(view)):
                is_here = sharing.pull(number, view, lambda: self._turns.is_stopped)
            got = self._got(each, view, len(view) if is_here else 0)
            if self._problem(each, got) is None:
                self._pulled.update((part, number) for part in each.parts if not part.is_whole)
                self._peer_bytes.append(len(view))
                return got.checksums
            if is_here:
                sharing.distrust(number, "has sent other bytes than the manifest says")
        return self._read(each, buffer, self._get_one)

    def _read(self, each: Range, buffer: Buffer, get: _Ask) -> tuple[int, ...]:
        """Brings a range into the buffer and returns its parts' checksums, those of whole slices verified."""
        record = self._manifest.shards[each.shard]
        key = self._folder.key(record.name)
        view = buffer.view[: each.end - each.begin]

        def ask() -> _Got:
            came = get(key, view, each.begin)
            return _Got(missing=came) if isinstance(came, ObjectNotFoundError) else self._got(each, view, came)

        got = agreed(self._store, key, ask, lambda got: self._problem(each, got) is None)
        problem = self._problem(each, got)
        if problem is not None:
            raise problem from got.missing
        return got.checksums

    def _got(self, each: Range, view: memoryview, count: int) -> _Got:
        """What has come of a range."""
        if count < len(view):
            return _Got(count)
        with span("verify", shard=self._manifest.shards[each.shard].name):
            places = [(part.begin - each.begin, part.end - each.begin) for part in each.parts]
            return _Got(count, tuple(crc32c.crc32c(view[begin:end]) for begin, end in places))

    def _read_again(self, each: Range) -> tuple[Buffer, tuple[int, ...]]:
        """The same, out of turn, for the calling thread, into memory of its own, of one range at most.

        What is in a pooled buffer may be lent to others, and whoever holds one does not wait for a second one. Not in
        the calling thread: Ctrl-C, which comes to that one, would leave a client in the middle of a request.
        """
        buffer = Buffer(each.end - each.begin)

        def read(each: Range) -> tuple[int, ...]:
            with while_wanted(lambda: not self._turns.is_stopped):
                return self._read(each, buffer, self._get)

        (sums,) = at_once(1, read, [each])
        return buffer, sums

    def _get_in_pieces(
        self, requests: int, is_raced: Callable[[], bool], key: str, into: memoryview, start: int
    ) -> _Came:
        """In turns: from an object store what is long comes in several requests, up to so many.

        One is enough until there are more streams than buffers. The last ranges come in more and smaller ones, so that
        all streams have work until the end.
        """
        places = pieces(len(into), requests, LEAST_PIECE_BYTES) if self._store.is_object_store else [(0, len(into))]

        def get_piece(place: tuple[int, int]) -> _Came:
            begin, end = place
            return self._turns.transfer(end - begin, lambda: self._get(key, into[begin:end], start + begin), is_raced)

        came = [get_piece(places[0])] if len(places) == 1 else at_once(requests, get_piece, places)
        for (begin, end), count in zip(places, came, strict=True):
            if isinstance(count, ObjectNotFoundError):
                return count
            if count < end - begin:
                return begin + count
        return len(into)

    def _get(self, key: str, into: memoryview, start: int) -> _Came:
        """One request."""
        try:
            with span("read", shard=key, size_bytes=len(into)):
                came = self._store.get(key, into, start)
        except ObjectNotFoundError as error:
            return error
        self._storage_bytes.append(came)
        if self._sharing is not None:
            self._sharing.advance()
        return came

    def _get_one(self, key: str, into: memoryview, start: int) -> _Came:
        """In its turn, in as many requests as there may be streams for each buffer."""
        requests = -(-self._turns.streams.count // self._pool.count)
        return self._get_in_pieces(requests, lambda: False, key, into, start)

    def _problem(self, each: Range, got: _Got) -> CorruptCheckpointError | None:
        """What is wrong with what was read."""
        record = self._manifest.shards[each.shard]
        where, says = f"{self._store.url}/{self._folder}/{record.name}", "the manifest says that it has"
        if got.count is None:
            return CorruptCheckpointError(f"{where} is missing; {says} {record.size_bytes:,} bytes")
        if got.count < each.end - each.begin:
            end = each.begin + got.count
            return CorruptCheckpointError(f"{where} ends at byte {end:,}, {says} {record.size_bytes:,} bytes")
        for part, checksum in zip(each.parts, got.checksums, strict=True):
            if part.is_whole and checksum != part.slice.crc32c:
                return self._mismatch(part, checksum)
        return None

    def _settle(
        self,
        parts: Sequence[Part],
        checksums: dict[Part, int],
        copy: Callable[[Wanted, Part, Bytes1D], None],
    ) -> None:
        """Verifies a slice that was read in parts; one that came wrong is read and copied again. Raises where it came
        wrong twice."""
        first = parts[0]
        known = tuple(checksums[part] for part in parts)
        pulled = {part: self._pulled.pop(part) for part in parts if part in self._pulled}
        is_wrong = _combined(parts, known) != first.slice.crc32c
        answers = [] if is_wrong and pulled else [known]  # what others sent proves nothing of what is stored

        def ask() -> tuple[int, ...]:
            return answers.pop() if answers else tuple(again(part) for part in parts)

        def again(part: Part) -> int:
            each = Range(part.slice.shard, page_of(part.begin), part.end, (part,))
            buffer, (checksum,) = self._read_again(each)
            for user in self._users(part):
                copy(user, part, _bytes_of(part, each, buffer))
            return checksum

        key = self._folder.key(self._manifest.shards[first.slice.shard].name)
        found = agreed(self._store, key, ask, lambda sums: _combined(parts, sums) == first.slice.crc32c)
        if _combined(parts, found) != first.slice.crc32c:
            raise self._mismatch(first, _combined(parts, found))
        checksums.update(zip(parts, found, strict=True))
        for part, before, now in zip(parts, known, found, strict=True):
            if self._sharing is not None and part in pulled and before != now:
                self._sharing.distrust(pulled[part], "has sent a part of a slice that is not what the storage has")

    def _mismatch(self, part: Part, checksum: int) -> CorruptCheckpointError:
        tensor, record = self._manifest.tensors[part.tensor], self._manifest.shards[part.slice.shard]
        return CorruptCheckpointError(
            f"{self._store.url}/{self._folder}/{record.name}: the slice of {tensor.name!r} at byte "
            f"{part.slice.offset:,} has crc32c {checksum:08x}, the manifest says {part.slice.crc32c:08x}"
        )


@dataclass(frozen=True, slots=True)
class _Got:
    """What came of one request for a range: how many bytes, and, where that is all, each part's checksum."""

    count: int | None = None
    checksums: tuple[int, ...] = ()
    missing: ObjectNotFoundError | None = field(default=None, compare=False)


def _place(part: Part) -> tuple[int, int]:
    return part.slice.shard, part.slice.offset


def _bytes_of(part: Part, each: Range, buffer: Buffer) -> Bytes1D:
    return buffer.array[part.begin - each.begin : part.end - each.begin]


def _slices_of(parts: Iterable[Part]) -> list[list[Part]]:
    """The parts by the slices that they are of, each in order."""
    by_slice = sorted(parts, key=lambda part: (part.slice.shard, part.begin))
    return [list(group) for _, group in itertools.groupby(by_slice, _place)]


def _combined(parts: Sequence[Part], checksums: Sequence[int]) -> int:
    whole = 0
    for part, checksum in zip(parts, checksums, strict=True):
        whole = crc32c_combine(whole, checksum, part.end - part.begin)
    return whole
