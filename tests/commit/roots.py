"""Roots made by the real commit code over a dictionary: a job that saves, crashes and starts again, in a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries, Summary
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.resume import Resume, Start
from ckptflow.commit.retention import KeepLast, Policy
from ckptflow.events import Event
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, Receipt
from ckptflow.peers.team import Alone
from ckptflow.storage.store import Entry, Store
from ckptflow.testing import MemoryStore
from tests.protocol.lives import parse_ancestry, read_checkpoint, shard_bytes, write_checkpoint
from tests.protocol.still import Stills, add_still, remember_still

KEEP_ALL: Sequence[Policy] = (KeepLast(1_000),)


class Job:
    """One life of a job with one worker: what the manager does, without tensors. `value` is what training holds."""

    def __init__(
        self,
        store: Store,
        policies: Sequence[Policy] = KEEP_ALL,
        *,
        read_only: bool = False,
        check: Callable[[Manifest], None] = lambda _: None,
    ) -> None:
        self.store, self.policies, self.read_only, self.check = store, policies, read_only, check
        self.summaries = Summaries(store)
        self.value: tuple[str, ...] = ()
        self.calls: dict[int, int] = {}
        self.start = Start(None)
        self.coordinator: Coordinator | None = None
        self.told: list[Event] = []

    def resume(self, step: int | None = None) -> int | None:
        """Restores, and saves again where that is asked for; the step that was restored, None on an empty root."""
        self._begin(self._resume().run(step))
        restored = self.start.restored
        if restored is not None and self.start.save_again:
            self.save(restored.folder.step, metrics=restored.checkpoint.metrics, prune=False, value=self.value)
        return restored.folder.step if restored is not None else None

    def begin_anew(self, *, fresh: bool = False) -> None:
        self._begin(self._resume().start_anew(fresh=fresh))

    def go_on(self, start: Start) -> None:
        """Acts for an incarnation that has begun elsewhere, by another client of the storage."""
        self._begin(start)

    def save(
        self,
        step: int,
        *,
        metrics: Mapping[str, float] | None = None,
        prune: bool = True,
        value: tuple[str, ...] | None = None,
    ) -> Summary:
        if self.start.held is None or self.coordinator is None:
            raise ValueError("nothing has begun")
        self.calls[step] = self.calls.get(step, 0) + 1
        folder = Folder(step, self.start.held.number, self.calls[step])
        self.value = value if value is not None else (*self.value, str(folder))
        draft, receipt = self.write(folder, metrics or {})
        summary = self.coordinator.commit(replace(draft, metrics=dict(metrics or {})), receipt, prune=prune)
        self.coordinator.prune()
        return summary

    def write(self, folder: Folder, metrics: Mapping[str, float]) -> tuple[Draft, Receipt]:
        return write_checkpoint(self.store, self.start, folder, shard_bytes(self.value))

    def _resume(self) -> Resume:
        return Resume(self.store, Alone(), self.summaries, check=self.check, load=self._load, read_only=self.read_only)

    def _begin(self, start: Start) -> None:
        self.start, self.calls = start, {}
        if start.restored is None:
            self.value = ()
        if start.held is not None:
            self.coordinator = Coordinator(
                self.store, start, self.summaries, self.policies, commit_timeout_s=60.0, tell=self.told.append
            )

    def _load(self, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
        self.value = parse_ancestry(read_checkpoint(self.store, folder, manifest, files))


class Tuning(Job):
    """One that has a shard which never changes, besides: it is copied from what the coordinator says."""

    def __init__(self, store: Store, policies: Sequence[Policy] = KEEP_ALL) -> None:
        super().__init__(store, policies)
        self.stills: Stills = {}

    def write(self, folder: Folder, metrics: Mapping[str, float]) -> tuple[Draft, Receipt]:
        if self.coordinator is None:
            raise ValueError("nothing has begun")
        reuse = self.coordinator.choose_reuse(folder.step, metrics)
        return add_still(self.store, self.stills, reuse, *super().write(folder, metrics))

    def _load(self, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
        super()._load(folder, manifest, files)
        remember_still(self.stills, manifest)


class Disk(MemoryStore):
    """A dictionary in which a copy is a link: two names of one value, which a listing shows by its version."""

    is_object_store = False

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        super().copy(source_key, key, version)
        self.objects[key] = self.objects[source_key]
        return version

    def list(self, prefix: str = "") -> list[Entry]:
        versions = {key: getattr(data, "version", None) for key, data in self.objects.items()}
        return [Entry(entry.key, entry.size_bytes, versions[entry.key]) for entry in super().list(prefix)]


def job(store: Store, policies: Sequence[Policy] = KEEP_ALL, *, step: int | None = None) -> Job:
    """A job that has begun: from the newest, or from `step`."""
    begun = Job(store, policies)
    begun.resume(step)
    return begun


def folders(store: MemoryStore) -> list[str]:
    """The folders that hold a manifest, in order."""
    return sorted(key.partition("/")[0] for key in store.objects if key.endswith("/manifest.json"))


def shard_key(store: MemoryStore, folder: str | Folder) -> str:
    """The key of a checkpoint's one shard."""
    (key,) = (key for key in store.objects if key.startswith(f"{folder}/shard-"))
    return key


def damage(store: MemoryStore, folder: str, name: str = "manifest.json") -> None:
    key = next(key for key in store.objects if key.startswith(f"{folder}/{name}"))
    store.objects[key] = b"?" * len(store.objects[key])
