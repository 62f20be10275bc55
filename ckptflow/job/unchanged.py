"""What one worker remembers from save to save, so that what has not changed need not be sent again.

A shard is *still* where it holds nothing but tensors that are expected not to change: those are kept apart from the
others, and their shards stay as they are. That is an expectation and no more. What is not sent again is *proved* to be
in the source, an earlier checkpoint: because the very memory that was saved there has been referenced ever since, into
which TensorFlow then never writes; or because the xxh3-128 of the whole packed shard is that of the source's shard.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import crc32c

from ckptflow.format.boxes import Box
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, ReceiptSlice
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.transfer.packing import PlannedShard, PlannedSlice
from ckptflow.transfer.plan import WorkerPlan, plan_shards
from ckptflow.transfer.regroup import is_worth_it, needs_regrouping, regroup, shards_in, shards_of
from ckptflow.transfer.sources import NO_SOURCES, Earlier, Sources, shards_by_content
from ckptflow.transfer.writer import WrittenShards

logger = logging.getLogger("ckptflow")

OBSERVED_BYTES = 2**16  # smaller tensors are not watched: what they would save is not worth it
_SAVES_REMEMBERED = 16  # a source is most often one of the last two that were committed, and seldom much older
_MOVES = 2  # in a row with the same bytes: then it is new memory at every read, and is only hashed
_CHECKED_BYTES = 2**24  # read at each save of what is proved without reading
_CALMER = 4  # times as long without a change before what has begun to change again is expected not to


class References(Protocol):
    """What a snapshot knows of the memory that it holds."""

    @property
    def frozen_names(self) -> Collection[str]:
        """The tensors that training leaves alone, by what their owners say."""

    def reference(self, index: int) -> object | None:
        """Keeps a tensor's memory, and equals another of these only where both are the same memory; or None."""

    def data(self, index: int) -> Bytes1D:
        """Its bytes in row-major order."""


class _Hint(NamedTuple):
    """Of a tensor's slices at a save: which boxes, and their crc32c. It says what to expect, and proves nothing."""

    boxes: int
    checksums: int


@dataclass(slots=True)
class _Watched:
    """What is known of one tensor of which this worker writes something."""

    is_still: bool = False
    references: tuple[object, ...] | None = None  # the memory that was saved last
    since: int = 0  # the save from which on it has been that memory
    moves: int = 0  # in a row, to other memory with the same bytes
    hint: _Hint | None = None
    is_seeded: bool = False  # the hint is that of a checkpoint, not of a save of this process
    calm: int = 0  # saves in a row at which it seemed unchanged
    needed: int = 1  # so many until it is expected to be still

    @property
    def may_be_held(self) -> bool:
        return self.references is None and self.moves < _MOVES

    def move(self, hint: _Hint | None) -> None:
        """Its value is in other memory than what was saved last: by this hint another value, or the same once more.

        What has changed leaves its shard before that is written, so that what stays there is written anew only once.
        Without a hint it stays until the save has told.
        """
        self.references = None
        if hint is None or hint == self.hint:
            self.moves += 1
        else:
            self._change()

    def learn(self, hint: _Hint) -> None:
        """After a save, whose slices were these."""
        before, is_seeded = self.hint, self.is_seeded
        self.hint, self.is_seeded = hint, False
        if before is None or before.boxes != hint.boxes:  # the first, or cut otherwise: the next one tells
            return
        if before.checksums == hint.checksums:
            self.calm += 1
            self.is_still |= self.calm >= self.needed
        elif is_seeded:  # the program may have put something else in its place, once
            self.references = None
        else:
            self._change()

    def _change(self) -> None:
        self.needed *= _CALMER if self.is_still else 1
        self.calm, self.is_still, self.references = 0, False, None


class _Sent(NamedTuple):
    """A still shard as a save has left it in storage."""

    save: int
    earlier: Earlier


class Unchanged:
    """Plans one worker's saves. For one incarnation; by one save at a time, in the background."""

    def __init__(self, worker: int, world_size: int, shard_bytes: int, *, is_on: bool) -> None:
        """Unless `is_on` every save sends everything, and only the plan is remembered."""
        self._worker = worker
        self._world_size = world_size
        self._shard_bytes = shard_bytes
        self.is_on = is_on
        self._saves = 0
        self._specs: Sequence[TensorSpec] = ()
        self._at_once = 0
        self._plan: WorkerPlan | None = None
        self._observed: frozenset[str] = frozenset()
        self._watched: dict[str, _Watched] = {}
        self._frozen: frozenset[str] = frozenset()  # by what their owners say
        self._trusts_memory = True
        self._checked = 0  # slices of what was proved
        self._sent: dict[str, dict[bytes, _Sent]] = {}  # by folder, and by the shard's header

    def plan(
        self, specs: Sequence[TensorSpec], at_once: int, live: References | None = None, source: Manifest | None = None
    ) -> WorkerPlan:
        """The plan of the next save, but for dynamic tensors: shards in which nothing is expected to change are those
        of the save before, or of `source` at the first save after a restore.

        Made anew only where it would be another one. `at_once` changes seldom: once when the quickest request has
        turned out to be quick, or as one that is far.
        """
        self._saves += 1
        if self.is_on and live is not None:
            if specs is not self._specs:
                self._freeze(frozenset(live.frozen_names))
            if self._plan is None and source is not None:
                self._expect(_still_in(source, self._worker, self._world_size))
                for name, hint in _hints_in(source, self._worker, self._world_size).items():
                    if name in self._watched:  # what has changed since is known after this save, and let go
                        self._watched[name].hint, self._watched[name].is_seeded = hint, True
            self._look(specs, live)
        plan = self._planned(specs, at_once, source)
        if plan is not self._plan:
            self._observed = _observed(plan.shards) if self.is_on else frozenset()
        self._specs, self._at_once, self._plan = specs, at_once, plan
        if self.is_on and live is not None:
            self._hold(plan, live)
        return plan

    def has_written(self, folder: Folder) -> bool:
        """Whether it is known what of a folder this worker has written, in this process."""
        return str(folder) in self._sent

    def sources(
        self, plan: WorkerPlan, source: Folder | None, manifest: Manifest | None, live: References | None
    ) -> Sources:
        """What of the source may be copied: of a save of this process what is proved, else what has the same hash."""
        if source is None or not self.is_on:
            return NO_SOURCES
        sent = self._sent.get(str(source))
        if sent is None:
            return Sources(by_content=shards_by_content(source, manifest)) if manifest is not None else NO_SOURCES
        proved = {}
        for shard in plan.shards:
            known = sent.get(shard.header) if shard.is_still else None
            if known is not None and all(self._is_since(piece.name, known.save) for piece in shard.slices):
                proved[shard.name] = known.earlier
        by_content = {(e.record.size_bytes, e.record.content or ""): e for _, e in sent.values()}
        is_sound = live is None or self._spot_check(plan, proved, live)
        return Sources(proved if is_sound else {}, by_content)

    def _spot_check(self, plan: WorkerPlan, proved: Mapping[str, Earlier], live: References) -> bool:
        """Whether some of what is proved is what it was: at each save others, so that nothing is believed for ever.

        TensorFlow writes into no memory that is referred to. Who shares memory with it, by NumPy, DLPack or a custom
        operation, may: then nothing is proved by memory any more, here.
        """
        pieces = [
            (piece, checksum)
            for shard in plan.shards
            if shard.name in proved
            for piece, checksum in zip(shard.slices, proved[shard.name].checksums, strict=True)
            if piece.region is None
        ]
        checked_bytes = 0
        for _ in range(len(pieces)):
            if checked_bytes >= _CHECKED_BYTES:
                break
            piece, checksum = pieces[self._checked % len(pieces)]
            self._checked += 1
            checked_bytes += piece.end - piece.offset
            if _checksum(live, piece.tensor, piece) != checksum:
                logger.warning(
                    "%s has changed in memory that TensorFlow does not write to: other code shares it (NumPy, DLPack, "
                    "a custom operation). Checkpoints saved before this one may hold an older value of it; from now on "
                    "what has not changed is told by reading all of it",
                    piece.name,
                )
                self._trusts_memory = False
                self.let_go()
                return False
        return True

    def learn(self, folder: Folder, plan: WorkerPlan, written: WrittenShards) -> None:
        """After this worker's shards were made durable as `plan` says, dynamic tensors included."""
        if not self.is_on:
            return
        can_be_copied = {i for i, record in enumerate(written.shards) if record.content and record.version}
        checksums: dict[int, list[int]] = {number: [] for number in can_be_copied}
        for piece in written.slices if can_be_copied else ():
            if piece.shard in can_be_copied:
                checksums[piece.shard].append(piece.crc32c)
        self._sent[str(folder)] = {
            plan.shards[i].header: _Sent(
                self._saves, Earlier(folder.key(written.shards[i].name), written.shards[i], tuple(checksums[i]))
            )
            for i in can_be_copied
        }
        for forgotten in list(self._sent)[:-_SAVES_REMEMBERED]:
            del self._sent[forgotten]
        known = self._plan.shards if self._plan is not None else ()
        observed = self._observed | _observed(plan.shards[len(known) :])
        for name, hint in _hints(observed, written.slices).items():
            self._watched.setdefault(name, _Watched()).learn(hint)

    def let_go(self) -> None:
        """Keeps no memory from here on: what is about to be given other values would be there twice meanwhile."""
        for watched in self._watched.values():
            watched.references = None

    def _planned(self, specs: Sequence[TensorSpec], at_once: int, source: Manifest | None) -> WorkerPlan:
        """The plan before, if it will do."""
        before, still, shard_bytes = self._plan, self._still(specs), self._shard_bytes
        if before is not None and specs is self._specs and at_once == self._at_once:
            if not needs_regrouping(before, still):
                return before
            return regroup(before, specs, shards_of(before), still, shard_bytes=shard_bytes, at_once=at_once)
        worker, world_size = self._worker, self._world_size
        plan = plan_shards(
            specs, worker=worker, world_size=world_size, shard_bytes=shard_bytes, at_once=at_once, still=still
        )
        if before is not None:
            old = shards_of(before)
        else:
            old = shards_in(source, worker, world_size) if source is not None else []
        if any(each.is_still for each in old):
            plan = regroup(plan, specs, old, still, shard_bytes=shard_bytes, at_once=at_once)
        if not still or is_worth_it(plan):
            return plan
        return plan_shards(specs, worker=worker, world_size=world_size, shard_bytes=shard_bytes, at_once=at_once)

    def _freeze(self, names: frozenset[str]) -> None:
        """What its owner freezes is still from now on, whatever it was before; what thaws is not."""
        for name in names - self._frozen:
            self._watched[name] = _Watched(is_still=True)
        for name in self._frozen - names:
            self._watched[name] = _Watched()
        self._frozen = names

    def _expect(self, names: Iterable[str]) -> None:
        """Nothing is known of these yet, but that they are not likely to change."""
        for name in names:
            self._watched.setdefault(name, _Watched(is_still=True))

    def still_dynamic(self, specs: Sequence[TensorSpec]) -> frozenset[int]:
        """The dynamic tensors that are expected not to change: a vocabulary, and not a position."""
        return self._still(specs, is_dynamic=True)

    def _still(self, specs: Sequence[TensorSpec], *, is_dynamic: bool = False) -> frozenset[int]:
        names = {name for name, watched in self._watched.items() if watched.is_still}
        places = _places(specs, names).values()
        return frozenset(i for indices in places for i in indices if specs[i].dynamic is is_dynamic)

    def _look(self, specs: Sequence[TensorSpec], live: References) -> None:
        """Compares the memory of what was still with what it is now."""
        held = {name for name, watched in self._watched.items() if watched.references is not None}
        now = {name: _references(live, indices) for name, indices in _places(specs, held).items()}
        moved = {name for name, references in now.items() if references != self._watched[name].references}
        hints = _hints_now(self._plan, live, _places(specs, moved)) if self._plan is not None else {}
        for name in moved:
            self._watched[name].move(hints.get(name))
        for name in now.keys() - moved:
            self._watched[name].moves = 0
        for name in held - now.keys():  # it is not in the state any more
            del self._watched[name]

    def _hold(self, plan: WorkerPlan, live: References) -> None:
        """Refers to the memory of what is still and written here, if none is referred to."""
        written = {piece.name for shard in plan.shards if shard.is_still for piece in shard.slices}
        names = {n for n in written if self._watched[n].may_be_held}
        names = names if self._trusts_memory else set()
        for name, indices in _places(self._specs, names).items():
            watched = self._watched[name]
            watched.references, watched.since = _references(live, indices), self._saves

    def _is_since(self, name: str, save: int) -> bool:
        watched = self._watched[name]
        return watched.references is not None and watched.since <= save


def _still_in(source: Manifest, worker: int, world_size: int) -> set[str]:
    """The tensors that this worker expected not to change when the checkpoint was saved."""
    return {name for each in shards_in(source, worker, world_size) if each.is_still for name, _ in each.slices}


def _places(specs: Sequence[TensorSpec], names: Collection[str]) -> dict[str, list[int]]:
    """Where these stand in `specs`: more than once where a tensor is held in blocks."""
    places: dict[str, list[int]] = {}
    for index, spec in enumerate(specs) if names else ():
        if spec.name in names:
            places.setdefault(spec.name, []).append(index)
    return places


def _references(live: References, indices: Iterable[int]) -> tuple[object, ...] | None:
    """The memory of all of these, or None where that of one is not to be had."""
    found = tuple(live.reference(index) for index in indices)
    return None if None in found else found


def _observed(shards: Iterable[PlannedShard]) -> frozenset[str]:
    """The tensors in these shards that are large enough, or still."""
    sizes: dict[str, int] = {}
    for shard in shards:
        for piece in shard.slices:
            size_bytes = OBSERVED_BYTES if shard.is_still else piece.end - piece.offset
            sizes[piece.name] = sizes.get(piece.name, 0) + size_bytes
    return frozenset(name for name, size_bytes in sizes.items() if size_bytes >= OBSERVED_BYTES)


def _hints(names: Collection[str], slices: Iterable[ReceiptSlice]) -> dict[str, _Hint]:
    """What the slices of these tensors were."""
    found: dict[str, list[ReceiptSlice]] = {}
    for piece in slices:
        if piece.tensor in names:
            found.setdefault(piece.tensor, []).append(piece)
    return {name: _hint([((each.start, each.shape), each.crc32c) for each in pieces]) for name, pieces in found.items()}


def _hints_now(plan: WorkerPlan, live: References, places: Mapping[str, Sequence[int]]) -> dict[str, _Hint]:
    """The hints that a save of these tensors, by that plan, would leave; not of those that are not cheap to read."""
    pieces: dict[str, list[PlannedSlice]] = {}
    for shard in plan.shards if places else ():
        for piece in shard.slices:
            if piece.name in places:
                pieces.setdefault(piece.name, []).append(piece)
    return {
        name: _hint([((each.start, each.shape), _checksum(live, places[name][0], each)) for each in found])
        for name, found in pieces.items()
        if len(places[name]) == 1 and all(each.region is None for each in found)
    }


def _checksum(live: References, index: int, piece: PlannedSlice) -> int:
    return crc32c.crc32c(live.data(index)[piece.source_begin : piece.source_end].data)


def _hints_in(source: Manifest, worker: int, world_size: int) -> dict[str, _Hint]:
    """The hints that this worker's part of that save has left."""
    checksums = {(tensor.name, piece.start): piece.crc32c for tensor in source.tensors for piece in tensor.slices}
    found: dict[str, list[tuple[Box, int]]] = {}
    for shard in shards_in(source, worker, world_size):
        for name, box in shard.slices:
            found.setdefault(name, []).append((box, checksums[name, box[0]]))
    return {name: _hint(slices) for name, slices in found.items()}


def _hint(slices: Sequence[tuple[Box, int]]) -> _Hint:
    return _Hint(hash(tuple(box for box, _ in slices)), hash(tuple(checksum for _, checksum in slices)))
