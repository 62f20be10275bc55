"""What one worker remembers from save to save, so that what has not changed need not be sent again.

A shard is *still* where it holds nothing but tensors that are expected not to change: those are kept apart from the
others, and their shards stay as they are. That is an expectation and no more. What is not sent again is *proved* to be
in the source, an earlier checkpoint: because the very memory that was saved there has been referenced ever since, into
which TensorFlow then never writes; or because the xxh3-128 of the whole packed shard is that of the source's shard.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, ReceiptSlice
from ckptflow.format.spec import TensorSpec
from ckptflow.transfer.packing import PlannedShard
from ckptflow.transfer.plan import WorkerPlan, plan_shards
from ckptflow.transfer.regroup import needs_regrouping, regroup, shards_in, shards_of
from ckptflow.transfer.sources import NO_SOURCES, Earlier, Sources, shards_by_content
from ckptflow.transfer.writer import WrittenShards

OBSERVED_BYTES = 2**16  # smaller tensors are not watched: what they would save is not worth it
_SAVES_REMEMBERED = 4  # a source is one of the last two that were committed, and others may have failed since
_MOVES = 2  # in a row to other memory with the same bytes, and it is taken for one that is copied whenever it is read
_CALMER = 4  # times as long without a change before what has begun to change again is expected not to


class References(Protocol):
    """What a snapshot knows of the memory that it holds."""

    @property
    def frozen_names(self) -> Collection[str]:
        """The tensors that training leaves alone, by what their owners say."""

    def reference(self, index: int) -> object | None:
        """Keeps a tensor's memory, and equals another of these only where both are the same memory; or None."""


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
    has_moved: bool = False  # at this save it is other memory
    moves: int = 0  # in a row, with the same bytes
    hint: _Hint | None = None
    calm: int = 0  # saves in a row at which it seemed unchanged
    needed: int = 1  # so many until it is expected to be still

    @property
    def may_be_held(self) -> bool:
        return self.references is None and not self.has_moved and self.moves < _MOVES

    def look(self, references: tuple[object, ...] | None) -> None:
        """Compares the memory with what was saved last; what has moved holds none, which would keep it twice.

        It stays in its shard until its bytes are known: it may have been given the same ones, and the hash says so.
        """
        if self.references is None:
            return
        if references == self.references:
            self.moves = 0
        else:
            self.references, self.has_moved = None, True

    def learn(self, hint: _Hint) -> None:
        """After a save, whose slices were these."""
        before, self.hint = self.hint, hint
        has_moved, self.has_moved = self.has_moved, False
        if before is None or before.boxes != hint.boxes:  # the first, or cut otherwise
            return
        if before.checksums == hint.checksums:
            self.moves += has_moved
            self.calm += 1
            self.is_still |= self.calm >= self.needed
            return
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
                self._expect(live.frozen_names)
            if self._plan is None and source is not None:
                self._expect(_still_in(source, self._worker, self._world_size))
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

    def sources(self, plan: WorkerPlan, source: Folder | None, manifest: Manifest | None) -> Sources:
        """What of the source may be copied: of a save of this process what is proved, else what has the same hash."""
        if source is None or not self.is_on:
            return NO_SOURCES
        sent = self._sent.get(str(source))
        if sent is None:
            return Sources(by_content=shards_by_content(source, manifest) if manifest is not None else {})
        proved = {}
        for shard in plan.shards:
            known = sent.get(shard.header) if shard.is_still else None
            if known is not None and all(self._is_since(piece.name, known.save) for piece in shard.slices):
                proved[shard.name] = known.earlier
        by_content = {(e.record.size_bytes, e.record.content or ""): e for _, e in sent.values()}
        return Sources(proved, by_content)

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
                self._saves,
                Earlier(folder.key(written.shards[i].name), written.shards[i], tuple(checksums[i])),
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
        if not still:
            return plan
        if before is not None:
            old = shards_of(before)
        else:
            old = shards_in(source, worker, world_size) if source is not None else []
        return regroup(plan, specs, old, still, shard_bytes=shard_bytes, at_once=at_once)

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
        for name, indices in _places(specs, held).items():
            self._watched[name].look(_references(live, indices))
        for name in held - {spec.name for spec in specs}:  # it is not in the state any more
            del self._watched[name]

    def _hold(self, plan: WorkerPlan, live: References) -> None:
        """Refers to the memory of what is still and written here, if none is referred to."""
        written = {piece.name for shard in plan.shards if shard.is_still for piece in shard.slices}
        names = {n for n in written if self._watched[n].may_be_held}
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
    return {
        name: _Hint(
            hash(tuple((piece.start, piece.shape) for piece in pieces)),
            hash(tuple(piece.crc32c for piece in pieces)),
        )
        for name, pieces in found.items()
    }
