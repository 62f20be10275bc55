"""One worker's part of a save, in the background: shards, receipt, and on the chief the commit. No messages here."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import crc32c
import msgspec

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Checkpoint, read_manifest
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held, holds
from ckptflow.commit.reuse import Reuse
from ckptflow.errors import (
    CkptflowError,
    CommitUnknownError,
    CorruptCheckpointError,
    FencedError,
    ObjectNotFoundError,
    SaveFailedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.events import Committed, SaveFailed, ShardsWritten, Tell, tell_nobody
from ckptflow.format import dtypes
from ckptflow.format.layout import Folder, parse_folder, receipt_name
from ckptflow.format.manifest import Manifest, Receipt, TensorRecord, Timing, digest_of, encode, encode_receipt
from ckptflow.format.offer import Captured, record_of
from ckptflow.job.finite import FiniteCheck
from ckptflow.job.unchanged import References, Unchanged
from ckptflow.peers.failing import failure_of
from ckptflow.peers.team import Team
from ckptflow.printable import said
from ckptflow.spans import span
from ckptflow.storage.faults import chain
from ckptflow.storage.store import Store
from ckptflow.threads import at_once
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.packing import SMALL_BYTES
from ckptflow.transfer.plan import WorkerPlan, plan_dynamic
from ckptflow.transfer.streams import Streams
from ckptflow.transfer.writer import replica_digests, write_shards

logger = logging.getLogger("ckptflow")


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Since when a save goes on: by the clock, for people, and by one that does not jump."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _started: float = field(default_factory=time.monotonic)

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started


@dataclass(frozen=True, slots=True)
class Job:
    """One save, ready to be done in the background."""

    folder: Folder
    snapshot: Captured
    metrics: Mapping[str, float]
    metadata: Any
    prune: bool
    watch: Stopwatch = field(default_factory=Stopwatch)  # since `save` was called
    blocked_s: float = 0.0  # how long `save` held the training thread
    live: References | None = None  # of a snapshot of live objects: the memory that it holds
    reuse: Reuse = field(default_factory=Reuse)
    source: Manifest | None = None  # of what was restored, at the first save after that


@dataclass(frozen=True, slots=True)
class Saver:
    """Does jobs, one at a time, in the order of saves."""

    store: Store
    cluster: Team
    pool: BufferPool
    held: Held
    coordinator: Coordinator | None
    unchanged: Unchanged
    shard_bytes: int
    verify_replicas: Literal["small", "all"]
    streams: Streams
    software: Mapping[str, str]
    check_finite: bool = False
    tell: Tell = tell_nobody
    leave_note: Callable[[Folder, BaseException | None], None] = lambda folder, error: None  # for the other workers

    @property
    def has_committed(self) -> bool:
        """What the coordinator's says; False on the other workers, who do not know."""
        return self.coordinator is not None and self.coordinator.has_committed

    def run(self, job: Job, acknowledge: Callable[[Checkpoint | None], None]) -> None:
        """Acknowledges the checkpoint on the chief, None on the other workers once they have reported; then prunes.

        Raises `SaveFailedError` with the cause, or what `Coordinator.commit` raises.
        """
        step, folder = job.folder.step, str(job.folder)
        try:
            checkpoint = self.save(job)
        except BaseException as error:  # whatever ends a save: what is not acknowledged has failed, and is told
            if self.coordinator is not None and not isinstance(error, CommitUnknownError):
                self.leave_note(job.folder, error)
            self.tell(SaveFailed(step=step, folder=folder, error=f"{type(error).__name__}: {said(error)}"))
            for index in range(len(job.snapshot.specs)):  # the error, which is kept, holds it by its traceback
                job.snapshot.release(index)
            raise
        acknowledge(checkpoint)
        if self.coordinator is not None and checkpoint is not None:
            self.leave_note(job.folder, None)
            save_s, size_bytes = job.watch.elapsed_s(), checkpoint.size_bytes
            self.tell(
                Committed(
                    step=step,
                    folder=folder,
                    size_bytes=size_bytes,
                    copied_bytes=checkpoint.copied_bytes,
                    save_s=save_s,
                    metrics=checkpoint.metrics,
                )
            )
            self.coordinator.prune()

    def save(self, job: Job) -> Checkpoint | None:
        """All of a save but acknowledging, telling and pruning. Raises as `run`."""
        try:
            draft = self._draft(job)  # before the shards: writing lets go of the values
            receipt, alike = self._write(job)
        except FencedError:
            if self.coordinator is not None:
                self.coordinator.give_up(job.folder)
            raise
        except CommitUnknownError:  # the chief may have committed it: nobody is told that it has failed
            raise
        except BaseException as error:  # also SystemExit, or a panic of a client: the coordinator must not wait for it
            failed = self._failed(job.folder, error)
            if self.coordinator is not None:
                self.coordinator.give_up(job.folder)
                self._make_room_after(error)
            else:
                self.leave_note(job.folder, failed)  # first: the storage may take its time to refuse the receipt
                self._report(job.folder, error)
            raise failed from error
        if self.coordinator is None:
            return None
        try:
            is_checked = bool(receipt.shards)
            summary = self.coordinator.commit(draft, receipt, alike=alike, prune=job.prune, is_checked=is_checked)
        except StorageError as error:
            self._make_room_after(error)
            raise self._failed(job.folder, error) from error
        except SaveFailedError as error:
            self._make_room_after(error)
            raise
        except CkptflowError:
            raise
        except BaseException as error:  # a manifest that is too large to be read back, a panic of a client
            raise self._failed(job.folder, error) from error
        return summary.checkpoint

    def _write(self, job: Job) -> tuple[Receipt, dict[str, int]]:
        """Writes this worker's shards and then, last, its receipt; returns that, and what its `digest` is of."""
        snapshot, worker = job.snapshot, self.cluster.worker
        with span("plan"):
            source, manifest = self._source(job)
            plan = self.unchanged.plan(snapshot.specs, self.streams.by_turns, job.live, job.source or manifest)
            earlier = self.unchanged.sources(plan, source, manifest, job.live)
        alike, apart, unread = self._digests(snapshot, plan)
        own, own_python = self._own(job)
        still = self.unchanged.still_dynamic(snapshot.specs)
        plan = plan_dynamic(plan, snapshot, shard_bytes=self.shard_bytes, still=still)
        check = FiniteCheck(snapshot.specs) if self.check_finite else None
        written = write_shards(
            self.store,
            job.folder,
            plan,
            snapshot,
            self.pool,
            tag=self.held.tag,
            streams=self.streams,
            earlier=earlier,
            look=check.look if check is not None else None,
        )
        if check is not None and (event := check.event(job.folder)) is not None:
            self.tell(event)
        self.unchanged.learn(job.folder, plan, written)
        alike |= {piece.tensor: piece.crc32c for piece in written.slices if piece.tensor in unread}
        receipt = Receipt(
            folder=str(job.folder),
            writer_id=self.held.writer_id,
            worker=worker,
            world_size=self.cluster.world_size,
            shards=written.shards,
            slices=written.slices,
            digest=digest_of(alike),
            digests=apart,
            tensors=own,
            python_state=own_python,
            timing=Timing(blocked_s=job.blocked_s, write_s=job.watch.elapsed_s()),
        )
        self._put_receipt(job.folder, receipt, alike)
        self.tell(
            ShardsWritten(
                step=job.folder.step,
                folder=str(job.folder),
                size_bytes=written.size_bytes,
                copied_bytes=written.copied_bytes,
                write_s=job.watch.elapsed_s(),
            )
        )
        return receipt, alike

    def _source(self, job: Job) -> tuple[Folder | None, Manifest | None]:
        """The checkpoint that may be copied from, and what its manifest says where that is not known yet."""
        source = parse_folder(job.reuse.source) if job.reuse.source is not None else None
        if source is None or not self.unchanged.is_on:
            return None, None
        if self.unchanged.knows(source):
            return source, None
        if job.source is not None and job.source.folder == str(source):
            return source, job.source
        try:
            return source, read_manifest(self.store, source)
        except (StorageError, CorruptCheckpointError, UnknownVersionError) as error:
            logger.debug("%s/%s is not copied from: %s", self.store.url, source, str(error))
            return None, None

    def _put_receipt(self, folder: Folder, receipt: Receipt, alike: Mapping[str, int]) -> None:
        """On the chief its claim is read beside it: the shards are there, and no round trip is added."""
        key, data = self._receipt_key(folder), encode_receipt(receipt, alike)
        calls: list[Callable[[], None]] = [lambda: self._put(key, data)]
        if self.coordinator is not None and receipt.shards:
            calls.append(self.coordinator.check_claim_before)
        with span("receipt"):
            if self.store.is_object_store and len(calls) > 1:
                at_once(len(calls), lambda call: call(), calls)
            else:
                for call in calls:
                    call()

    def _put(self, key: str, data: bytes) -> None:
        """A receipt that was not answered is looked for: the chief may have read it, and committed."""
        try:
            self.store.put(key, memoryview(data))
        except StorageUnavailableError as error:
            if self.coordinator is not None:  # the chief reads none of its own
                raise
            try:
                if holds(self.store, key, data):
                    return
            except ObjectNotFoundError:
                pass
            except StorageError as second:
                raise CommitUnknownError(
                    f"{self.store.url}/{key} was sent and no reply came: the chief may have committed the checkpoint, "
                    f"or not; the next restore finds out ({error!r}, then {second!r})"
                ) from error
            raise

    def _receipt_key(self, folder: Folder) -> str:
        return folder.key(receipt_name(self.cluster.worker, self.cluster.world_size, self.held.tag))

    def _own(self, job: Job) -> tuple[tuple[TensorRecord, ...], dict[str, Any]]:
        """What the chief does not know of: this worker's own tensors and Python state."""
        if self.cluster.is_chief:
            return (), {}
        snapshot = job.snapshot
        python_state = {name: state for name, state in snapshot.python_state.items() if name in snapshot.own_names}
        return tuple(record_of(snapshot, i) for i, spec in enumerate(snapshot.specs) if spec.own), python_state

    def _digests(self, snapshot: Captured, plan: WorkerPlan) -> tuple[dict[str, int], dict[str, int], frozenset[str]]:
        """Digests of this worker's copies of replicated state, so that the chief can name what differs: of those that
        must be alike, of those that may differ, and the names of which the chief has the digest once it has written
        them: the crc32c of the one slice that it makes of each."""
        if self.cluster.world_size == 1:
            return {}, {}, frozenset()
        specs = snapshot.specs
        replicated = [i for i, spec in enumerate(specs) if spec.is_replicated]
        unread: frozenset[str] = frozenset()
        if self.verify_replicas == "small":
            replicated = [i for i in replicated if _size_bytes(snapshot, i) < SMALL_BYTES]
            if self.cluster.is_chief:
                unread = frozenset(specs[i].name for i in replicated if i not in plan.part_counts)
                replicated = [i for i in replicated if i in plan.part_counts]
        alike = replica_digests(snapshot, [i for i in replicated if not specs[i].may_differ])
        apart = replica_digests(snapshot, [i for i in replicated if specs[i].may_differ])
        may_differ = {spec.name for spec in specs if spec.may_differ}
        python = {name: state for name, state in snapshot.python_state.items() if name not in snapshot.own_names}
        apart |= {name: crc32c.crc32c(msgspec.json.encode(state, order="sorted")) for name, state in python.items()}
        return alike, apart, unread - may_differ

    def _draft(self, job: Job) -> Draft:
        snapshot, world_size = job.snapshot, self.cluster.world_size
        # On a worker that is not the chief nobody reads this; a tensor that is held in blocks stands once.
        places = {spec.name: i for i, spec in enumerate(snapshot.specs)} if self.cluster.is_chief else {}
        tensors = tuple(record_of(snapshot, i, world_size) for i in places.values())
        return Draft(
            folder=job.folder,
            world_size=world_size,
            tensors=tensors,
            metrics=job.metrics,
            metadata=job.metadata,
            python_state=snapshot.python_state,
            per_worker=tuple(sorted(snapshot.per_worker)),
            must_be_equal=frozenset(
                spec.name
                for spec in snapshot.specs
                if spec.is_replicated and not spec.may_differ and self.verify_replicas == "all"
            ),
            models=snapshot.models,
            object_graph=snapshot.object_graph if self.cluster.is_chief else None,
            software=self.software,
            began_at=job.watch.at,
            family=job.reuse.family,
        )

    def _report(self, folder: Folder, error: BaseException) -> None:
        """Tells the coordinator by a receipt, instead of letting it wait for `commit_timeout_s`."""
        receipt = Receipt(
            folder=str(folder),
            writer_id=self.held.writer_id,
            worker=self.cluster.worker,
            world_size=self.cluster.world_size,
            failure=failure_of(error),
        )
        try:
            self.store.put(self._receipt_key(folder), memoryview(encode(receipt)))
        except BaseException as second:  # it must not hide the first
            logger.warning("the storage does not take the report that a save failed, either: %s", repr(second))

    def _make_room_after(self, error: BaseException) -> None:
        """A full storage must not keep this incarnation from ever committing: dead lives' leftovers go."""
        is_full = any(isinstance(link, StorageFullError) for link in chain(error))
        if self.coordinator is None or not is_full:  # its own, or another worker's report
            return
        try:
            freed_bytes = self.coordinator.sweep_partials()
            logger.warning("%s is full: %d bytes of uncommitted leftovers were deleted", self.store.url, freed_bytes)
        except FencedError as fenced:
            raise fenced from error
        except BaseException as second:  # it must not hide that the storage is full
            logger.warning("%s is full, and its leftovers could not be deleted: %s", self.store.url, repr(second))

    def _failed(self, folder: Folder, error: BaseException) -> SaveFailedError:
        failed = SaveFailedError(
            f"{self.store.url}/{folder} was not saved on worker {self.cluster.worker}, older ones are untouched: "
            f"{type(error).__name__}: {said(error)}"
        )
        failed.__cause__ = error  # now: a note of it tells that, too
        return failed


def software_versions() -> dict[str, str]:
    """The versions that a manifest records: for people and for interop, never compared by the protocol."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in ("ckptflow", "tensorflow", "keras", "tf_keras", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _size_bytes(snapshot: Captured, index: int) -> int:
    spec = snapshot.specs[index]
    size = dtypes.item_size_bytes(spec.dtype)
    for length in spec.shape:
        size *= length
    return size
