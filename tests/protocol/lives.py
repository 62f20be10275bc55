"""One incarnation after another as the real commit code lives it; only the tensors are replaced, by one tiny shard.

A checkpoint's value is its ancestry: the names of all that it builds on, itself last, so that a wrong or mixed value
shows. The order of calls is the manager's: `Resume`, then, where asked for, the same step again with `prune=False`,
then saves.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import crc32c
import pytest

from ckptflow.commit import assembly as assembly_module
from ckptflow.commit import beginning as beginning_module
from ckptflow.commit import catalog as catalog_module
from ckptflow.commit import coordinator as coordinator_module
from ckptflow.commit import lineage as lineage_module
from ckptflow.commit import listing as listing_module
from ckptflow.commit import prune as prune_module
from ckptflow.commit import receipts as receipts_module
from ckptflow.commit.assembly import Draft
from ckptflow.commit.beginning import Beginning
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.choosing import Chooser, View
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held, Own
from ckptflow.commit.prune import PrunePlan
from ckptflow.commit.resume import Resume, Start
from ckptflow.commit.retention import KeepLast, Policy
from ckptflow.commit.reuse import Reuse, reuse_restored
from ckptflow.errors import CorruptCheckpointError, FencedError, ObjectNotFoundError, SaveFailedError, StorageError
from ckptflow.format.layout import Folder, parse_folder, shard_name
from ckptflow.format.manifest import Claim, Manifest, Reason, Receipt, ReceiptSlice, ShardRecord, TensorRecord, decode
from ckptflow.peers.team import Alone
from ckptflow.storage.again import read_small
from ckptflow.storage.store import Store
from tests.protocol.process import Process, YieldingStore, current
from tests.protocol.still import Stills, add_still, remember_still

Ancestry = tuple[str, ...]


def identity(folder: Folder, writer: str) -> str:
    """What a checkpoint is called in an ancestry: its folder, and which process made it."""
    return f"{folder}@{writer}"


def shard_bytes(ancestry: Ancestry) -> bytes:
    return "\n".join(ancestry).encode()


def parse_ancestry(data: bytes) -> Ancestry:
    return tuple(data.decode().split("\n"))


def write_checkpoint(store: Store, start: Start, folder: Folder, data: bytes) -> tuple[Draft, Receipt]:
    """In place of the transfer pipeline: one shard that holds one tensor in one slice."""
    if start.held is None:
        raise ValueError("a reader writes nothing")
    name = shard_name(0, 1, 0, start.held.tag)
    store.put(folder.key(name), memoryview(data))
    checksum = crc32c.crc32c(data)
    receipt = Receipt(
        folder=str(folder),
        writer_id=start.held.writer_id,
        worker=0,
        world_size=1,
        shards=(ShardRecord(name=name, size_bytes=len(data), crc32c=checksum),),
        slices=(ReceiptSlice(tensor="value", shard=0, offset=0, start=(0,), shape=(len(data),), crc32c=checksum),),
    )
    tensor = TensorRecord(name="value", dtype="uint8", shape=(len(data),), slices=())
    return Draft(folder=folder, world_size=1, tensors=(tensor,)), receipt


def read_checkpoint(store: Store, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> bytes:
    """In place of the reader: damage is a shard that is missing, of another size, or of other bytes."""
    for shard in reversed(manifest.shards):  # the first is the value
        where = f"{folder}/{shard.name}"
        if files is not None and files.get(shard.name) != shard.size_bytes:
            raise CorruptCheckpointError(f"{where} is listed with {files.get(shard.name)} bytes")
        try:
            data = read_small(store, folder.key(shard.name), shard.size_bytes)
        except ObjectNotFoundError as error:
            raise CorruptCheckpointError(f"{where} is missing") from error
        if crc32c.crc32c(data) != shard.crc32c:
            raise CorruptCheckpointError(f"{where} holds other bytes")
    return data


def remembered(thing: object) -> list[tuple[str, Any]]:
    """All data that an object holds between two calls, under whatever names; not what it was given to call."""
    called = (YieldingStore, Summaries, Alone, Chooser)  # a chooser's view is stale at the claim: see `shows`
    return [(k, _in_order(v)) for k, v in vars(thing).items() if not (callable(v) or isinstance(v, called))]


def _in_order(data: Any) -> Any:
    """Equal sets and mappings in one order, however they were filled."""
    if isinstance(data, Mapping):
        return sorted((str(key), repr(value)) for key, value in data.items())
    return sorted(map(repr, data)) if isinstance(data, set | frozenset) else data


class Incarnations:
    """What one process does with a root: begin, save, go back. Tells the explorer what it has done."""

    def __init__(self, process: Process, policies: list[Policy] | None = None, *, copies: str = "") -> None:
        self.process = process
        self.copies = copies  # of what does not change: see `YieldingStore`
        self.stills: Stills = {}
        self.store: Store = YieldingStore(process, copies)
        self.summaries = Summaries(self.store)
        self.policies: list[Policy] = policies if policies is not None else [KeepLast(1)]
        self.ancestry: Ancestry = ()
        self.start: Start | None = None
        self.own = Own()
        self.is_read = False  # `start` is what was only read, and not taken up so far
        self.is_taken_up = False  # and not saved so far
        self.coordinator: Coordinator | None = None
        self.resume: Resume | None = None  # the restore under way, and the step that it was asked for
        self.asked: int | None = None
        self.step = 0
        self.calls: dict[int, int] = {}
        process.holds = self._holds

    def begin(self, step: int | None = None) -> None:
        """`restore_latest` or `restore(step)`, as the manager does it."""
        self.process.show(base="", copies=False)
        self.resume, self.asked = self._resume(), step
        start = self.resume.run(step)
        self.resume = self.asked = None
        self._begin(start)
        self.process.merge()
        if start.save_again:
            try:
                metrics = start.restored.checkpoint.metrics if start.restored else {}
                self._commit(self.step, prune=False, metrics=metrics)
            except FencedError:
                raise
            except (SaveFailedError, StorageError):
                if start.reason == "rollback":
                    raise  # after damage the manager warns that nothing protects it yet, and goes on
            else:
                self.process.show(copies=False)
            self.process.merge()

    def read(self, step: int) -> None:
        """`restore(step)`, as the manager does it: the save that comes next takes it up."""
        self.resume, self.asked = self._resume(), step
        self.is_read, self.start = True, self.resume.read(step)
        self.step = step
        self.resume = self.asked = None
        self.process.show(has_read=True)
        self.process.merge()

    def take_up(self) -> None:
        """What the first save after that does before it saves."""
        if self.start is not None:
            beginning = Beginning(self.store, Alone(), self.summaries, own=self.own)
            try:
                start = beginning.take_up(self.start)
            except StorageError:
                self.own = self.own.but_tried(beginning.writer_id)
                raise
            self._begin(start)
            self.is_taken_up = True
            self.process.show(copies=True)  # all of it is in memory: nothing that is there is needed
            self.process.merge()

    def begin_fresh(self) -> None:
        self._begin(self._resume().start_anew(fresh=True))

    def _resume(self) -> Resume:
        return Resume(self.store, Alone(), self.summaries, check=lambda _: None, load=self._load, own=self.own)

    def _begin(self, start: Start) -> None:
        self.start, self.is_read, self.calls, self.own = start, False, {}, Own(start.held)
        restored = start.restored.folder if start.restored else None
        if restored is None:
            self.ancestry = ()
        self.step = restored.step if restored else 0
        number = start.held.number if start.held else 0
        self.process.show(number=number, base=str(restored or ""), copies=start.save_again)
        self.coordinator = Coordinator(self.store, start, self.summaries, self.policies, commit_timeout_s=60.0)

    def save(self, loss: float | None = None) -> None:
        """The next step. A save that failed lets training go on, as `on_save_error="log"` does."""
        if self.is_read:
            self.take_up()
        self.step += 1
        try:
            self._commit(self.step, prune=True, metrics={} if loss is None else {"loss": loss})
        except (SaveFailedError, StorageError) as error:
            if isinstance(error, FencedError):
                raise
        else:
            if self.copies == "disk":
                self.process.show(saves=self.process.facts.saves + 1, is_saving=False)
        self.process.merge()

    def _holds(self) -> Any:
        """All that outlives a call: what this process is, and remembers of manifests."""
        it = [remembered(each) for each in (self.summaries, self.resume, self.coordinator) if each is not None]
        return (
            self.start,
            self.own.held,
            sorted(self.own.tried),
            self.is_read,
            self.is_taken_up,
            self.asked,
            self.step,
            self.calls,
            self.ancestry,
            sorted(self.stills.items()),
            it,
        )

    def _commit(self, step: int, *, prune: bool, metrics: Mapping[str, float]) -> None:
        start, coordinator = self.start, self.coordinator
        if start is None or start.held is None or coordinator is None:
            raise ValueError("nothing has begun")
        self.calls[step] = self.calls.get(step, 0) + 1
        folder = Folder(step, start.held.number, self.calls[step])
        # What training goes on from, whatever becomes of this save.
        self.ancestry = (*self.ancestry, identity(folder, self.process.name))
        reuse = coordinator.choose_reuse(step, metrics) if self.copies else Reuse()
        if self.copies and self.is_taken_up:
            reuse = reuse_restored(start.restored, is_shared=self.copies == "disk")
        self.is_taken_up = False
        try:
            draft, receipt = write_checkpoint(self.store, start, folder, shard_bytes(self.ancestry))
            self.process.show(is_saving=self.copies == "disk")
            if self.copies:
                draft, receipt = add_still(self.store, self.stills, reuse, draft, receipt)
        except StorageError:
            coordinator.give_up(folder)
            raise
        self.process.unpromised = self.ancestry
        coordinator.commit(replace(draft, metrics=metrics), receipt, prune=prune)
        acknowledge()
        coordinator.prune()

    def _load(self, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
        ancestry = parse_ancestry(read_checkpoint(self.store, folder, manifest, files))
        if parse_folder(ancestry[-1].partition("@")[0]) != folder:
            raise RuntimeError(f"{folder} holds {ancestry[-1]}")
        self.ancestry = ancestry
        remember_still(self.stills, manifest)


def acknowledge() -> None:
    """The save under way counts as promised: `commit` has passed its fence check, or has returned."""
    process = current()
    if process.unpromised:
        process.promise(process.unpromised)
        process.unpromised = ()


# Making the code deterministic

MERGE_AT_CLAIM = True  # off where a mutation lets a process go on with what it listed before its claim


class _Ids:
    """`secrets` for one process: counts instead of drawing."""

    def randbits(self, _: int) -> int:
        process = current()
        process.draws += 1
        return (process.index + 1) * 1000 + process.draws


def writer_of(record: Claim | Manifest) -> int:
    """The index of the process that drew the writer id of a claim, or a manifest's."""
    return int(record.writer_id[:16], 16) // 1000 - 1


def _sleep(seconds: float) -> None:
    current().clock_s += seconds


def _show_and_merge(patch: pytest.MonkeyPatch) -> None:
    """Lets the explorer see when a process acts on its claim and what is promised, and which histories are one."""
    lists, claim, creates = Chooser.list_anew, lineage_module.claim_next, lineage_module.create_once
    stays = lineage_module.stays_ours

    def creates_claim(store: Store, key: str, data: bytes, deadline: Callable[[], float]) -> bool:
        if MERGE_AT_CLAIM:
            current().merge(key, data, deadline())  # the listing was read for these two and is not looked at again
        return creates(store, key, data, deadline)

    def claims(store: Store, summaries: Summaries, reason: Reason, *rest: Any) -> Held:
        if MERGE_AT_CLAIM:
            current().merge(reason)  # `run` lists anew after the claim, whatever was listed before
        held = claim(store, summaries, reason, *rest)
        if MERGE_AT_CLAIM:
            current().merge(held)
        return held

    def shows(self: Chooser, held: Held | None) -> View:
        old = self.view
        is_first = held is not None and current().facts.number != held.number
        if is_first and MERGE_AT_CLAIM and old is not None and (old.damaged or old.gone):
            pytest.fail("what was found before the claim is believed after it: `merge` must be told of it")
        view = lists(self, held)
        if held is not None and not current().facts.has_read:  # who takes up looks once more before it acts
            current().show(number=held.number)
        return view

    def checks_fence(*arguments: Any) -> None:
        lineage_module.check_fence(*arguments)
        acknowledge()

    plans, acts = prune_module.plan_by_hand, prune_module.act

    def plans_by_hand(*arguments: Any, **how: Any) -> Any:
        found = plans(*arguments, **how)
        current().merge(found)  # what was read for it is not looked at again
        return found

    def acts_by_hand(store: Store, plan: PrunePlan, files: Mapping[Folder, Mapping[str, int]]) -> None:
        current().merge(plan.deletions, [sorted(files[folder]) for folder in plan.deletions], plan.claims)
        acts(store, plan, files)

    patch.setattr(prune_module, "plan_by_hand", plans_by_hand)
    patch.setattr(prune_module, "act", acts_by_hand)

    def settles(store: Store, key: str, data: bytes) -> bool:
        current().call("settle", key)
        return stays(store, key, data)

    patch.setattr(lineage_module, "stays_ours", settles)
    patch.setattr(beginning_module, "claim_next", claims)
    patch.setattr(Chooser, "list_anew", shows)
    patch.setattr(lineage_module, "create_once", creates_claim)
    patch.setattr(coordinator_module, "check_fence", checks_fence)


@contextlib.contextmanager
def deterministic() -> Iterator[pytest.MonkeyPatch]:
    """The commit code with ids that count, one constant date and a clock for each process; mutations go on top."""
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: current().clock_s, sleep=_sleep)
        patch.setattr(lineage_module, "secrets", _Ids())
        patch.setattr(lineage_module, "socket", SimpleNamespace(gethostname=lambda: "host"))
        patch.setattr(lineage_module, "os", SimpleNamespace(getpid=lambda: 1))
        for module in (lineage_module, receipts_module):
            patch.setattr(module, "time", clock)
        patch.setattr("ckptflow.stops.ticking.awake_s", clock.monotonic)
        for module in (lineage_module, assembly_module):
            patch.setattr(module, "now_text", lambda: "2026-01-01T00:00:00+00:00")
        for module in (catalog_module, listing_module):
            patch.setattr(module, "parse_folder", functools.lru_cache(10_000)(parse_folder))
        for module in (catalog_module, receipts_module):  # the same few records, over and over
            patch.setattr(module, "decode", functools.lru_cache(100_000)(decode))
        _show_and_merge(patch)
        level = logging.getLogger("ckptflow").level
        logging.getLogger("ckptflow").setLevel(logging.CRITICAL + 1)
        try:
            yield patch
        finally:
            logging.getLogger("ckptflow").setLevel(level)
