"""What counts in a root, of what a listing shows.

That is decided by manifests alone: the newest incarnation of this run that has one decides; its manifests count, and
those that its lineage names. A claim only fences; it never says what counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from ckptflow.commit.checkpoint import Checkpoint as Checkpoint
from ckptflow.commit.checkpoint import as_time
from ckptflow.commit.listing import Listing as Listing
from ckptflow.commit.listing import list_claims as list_claims
from ckptflow.commit.listing import list_pins as list_pins
from ckptflow.commit.listing import list_root as list_root
from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.format.layout import MANIFEST_NAME, Folder, claim_key, parse_folder, parse_folders, writer_tag
from ckptflow.format.manifest import MAX_CLAIM_BYTES, MAX_MANIFEST_BYTES, Claim, Manifest, Timing, decode
from ckptflow.format.values import from_json
from ckptflow.storage.again import read_record
from ckptflow.storage.store import Store
from ckptflow.threads import at_once

_READERS = 8  # manifests read at once
_READ_BYTES = 8 * 2**20  # of manifests read at once; what is in one takes several times its bytes
_TRIES = 5  # listings that name a manifest which is gone when it is read
MAX_UNANSWERED = 8  # files in a row: then it is the storage, and asking for each of the others takes long

# Why a manifest cannot be read; of the storage's own errors only where that is but shown.
Unreadable = CorruptCheckpointError | UnknownVersionError | StorageError


@dataclass(frozen=True, slots=True)
class Summary:
    """The parts of a manifest that decisions are made from; small enough to keep for every checkpoint of a run.

    `restored`, `began_at` and `timings` are for people: what its incarnation resumed from, when `save` was called,
    and how long it took each worker, where known.
    """

    folder: Folder
    run_id: str
    reason: str
    lineage: frozenset[Folder]
    barrier: int
    fresh_since: int
    shard_sizes: Mapping[str, int]
    checkpoint: Checkpoint
    restored: Folder | None = None
    began_at: datetime | None = None
    timings: tuple[Timing, ...] = ()
    writer_id: str = ""
    family: int = 0
    sound_since: int = 0

    def is_complete(self, files: Mapping[str, int]) -> bool:
        """Whether every shard is listed at the size that the manifest gives it."""
        return all(files.get(name) == size_bytes for name, size_bytes in self.shard_sizes.items())


@dataclass(frozen=True, slots=True)
class Counting:
    """What counts in a root, newest first, and what is outside: `folders` may hold some whose manifest is damaged.

    `barrier`: outside folders of lower incarnations were cut off by a rollback or a fresh start.
    """

    incarnation: int = 0
    run_id: str | None = None
    folders: tuple[Folder, ...] = ()
    outside: tuple[Folder, ...] = ()
    barrier: int = 0
    fresh_since: int = 0

    @property
    def newest(self) -> Folder | None:
        return self.folders[0] if self.folders else None

    def of_this_run(self, found: Summary | Unreadable) -> Summary | Unreadable:
        """What was read of a folder that counts: also damage if another run's folder is in its place."""
        if isinstance(found, Summary) and self.is_of_another(found.run_id):
            return CorruptCheckpointError(f"{found.checkpoint.url}: it is a checkpoint of another run")
        return found

    def is_of_another(self, run_id: str) -> bool:
        return self.run_id not in (None, run_id)

    def lineage_up_to(self, folder: Folder) -> frozenset[Folder]:
        """The folders that an incarnation builds on which restores `folder`: empty where that is outside."""
        return frozenset(f for f in self.folders if f <= folder) if folder in self.folders else frozenset()


def read_manifest(store: Store, folder: Folder, *, may_be_missing: bool = False) -> Manifest:
    """Reads and checks one manifest. Raises `ObjectNotFoundError` (gone) or `CorruptCheckpointError` (damaged).

    Both only for what was so twice; with `may_be_missing`, where it is still to be written, the first at once.
    """
    return read_sealed(store, folder, may_be_missing=may_be_missing)[0]


def read_sealed(store: Store, folder: Folder, *, may_be_missing: bool = False) -> tuple[Manifest, bytes]:
    """The same, and the very bytes, seal and all."""
    where = f"{store.url}/{folder.manifest_key}"

    def check(data: bytes) -> tuple[Manifest, bytes]:
        manifest = decode(data, Manifest, where)
        if manifest.folder != str(folder):
            raise CorruptCheckpointError(f"{where}: it is the manifest of {manifest.folder}")
        return manifest, data

    return read_record(store, folder.manifest_key, MAX_MANIFEST_BYTES, check, may_be_missing=may_be_missing)


def summarize(manifest: Manifest, root_url: str) -> Summary:
    """The summary of a checked manifest."""
    folder = parse_folder(manifest.folder)
    if folder is None:
        raise CorruptCheckpointError(f"{root_url}: {manifest.folder!r} is no folder")
    try:
        created_at = as_time(manifest.created_at)
        began_at = as_time(manifest.began_at) if manifest.began_at is not None else None
        metadata = from_json(manifest.metadata, "metadata")
    except ValueError as error:
        raise CorruptCheckpointError(f"{root_url}/{folder.manifest_key}: {error}") from error
    return Summary(
        folder=folder,
        run_id=manifest.run_id,
        reason=manifest.reason,
        lineage=parse_folders(manifest.lineage),
        barrier=manifest.barrier,
        fresh_since=manifest.fresh_since,
        shard_sizes=manifest.shard_sizes,
        checkpoint=Checkpoint(
            step=manifest.step,
            incarnation=manifest.incarnation,
            metrics=manifest.metrics,
            metadata=metadata,
            created_at=created_at,
            size_bytes=manifest.size_bytes,
            url=f"{root_url}/{folder}",
            copied_bytes=manifest.copied_bytes,
        ),
        restored=parse_folder(manifest.restored) if manifest.restored else None,
        began_at=began_at,
        timings=manifest.timings,
        writer_id=manifest.writer_id,
        family=manifest.family,
        sound_since=manifest.sound_since,
    )


class Summaries:
    """Summaries by folder, each manifest read once, for as long as listings show the writer of its shards.

    One that cannot be read is remembered, too, with why, until the next listing; one that is gone raises
    `ObjectNotFoundError` at each call. What the storage refuses, or does not answer, raises: nothing is decided by
    what could not be read. Only where all of it `is_for_show` that is why one cannot be read; `refused` is the first
    such error since the last listing, and `refused_claims` has those of claims. Whoever shows something says so.
    """

    def __init__(self, store: Store, *, is_for_show: bool = False) -> None:
        self._store = store
        self.is_for_show = is_for_show
        self.refused: StorageError | None = None
        self.refused_claims: dict[int, StorageError] = {}
        self._unanswered = 0
        # Used by several threads and without a lock, which an interrupt could leave held: each use is one of a key.
        self._known: dict[Folder, Summary | Unreadable] = {}
        self._newest: Manifest | None = None  # the last that was read, if a restore may want it
        self._keeps_newest = False

    def has_read(self, folder: Folder) -> bool:
        return folder in self._known

    def get(self, folder: Folder) -> Summary | Unreadable:
        known = self._known.get(folder)
        if known is None:
            known = self._known[folder] = self._read(folder)
        return known

    def _read(self, folder: Folder) -> Summary | Unreadable:
        try:
            manifest = read_manifest(self._store, folder)
            if self._keeps_newest:
                self._newest = manifest
            summary = summarize(manifest, self._store.url)
            self._unanswered = 0
            return summary
        except (CorruptCheckpointError, UnknownVersionError) as error:
            why: Unreadable = type(error)(str(error))
        except StorageError as error:
            why = self._shown(error)
        return why  # and not what was raised, which holds all that was read

    def _shown(self, error: StorageError) -> StorageError:
        """The error of one file, for a row; raises it where it is to be raised, or is no one file's."""
        self._unanswered += isinstance(error, StorageUnavailableError)
        is_of_all = self._unanswered > MAX_UNANSWERED
        if not self.is_for_show or is_of_all or isinstance(error, ObjectNotFoundError):
            raise error
        self.refused = self.refused or error
        return type(error)(str(error))

    def claim(self, number: int) -> Claim | None:
        """The claim, as `read_claim` gives it; None as well where it was refused and that is for show."""
        try:
            claim = read_claim(self._store, number)
        except StorageError as error:
            self.refused_claims[number] = self._shown(error)
            return None
        self._unanswered = 0
        return claim

    def holder(self, number: int) -> str | None:
        """The writer id in the claim, where that can be read."""
        return claim.writer_id if (claim := self.claim(number)) is not None else None

    @contextlib.contextmanager
    def keeping_newest(self) -> Iterator[None]:
        """In the block, the manifest that was read last is kept whole for `read_manifest`."""
        self._keeps_newest = True
        try:
            yield
        finally:
            self._keeps_newest, self._newest = False, None

    def read_manifest(self, folder: Folder) -> Manifest:
        """The manifest itself, which is not read again if it was the last one read. Raises as the function does."""
        newest, self._newest = self._newest, None
        if newest is not None and newest.folder == str(folder):
            return newest
        return read_manifest(self._store, folder)

    def read_many(self, listing: Listing, folders: Iterable[Folder]) -> dict[Folder, Summary | Unreadable]:
        """Several of a listing at once; those that are gone by now are left out."""

        def read(folder: Folder) -> Summary | Unreadable | None:
            try:
                return self.get(folder)
            except ObjectNotFoundError:
                return None

        found: dict[Folder, Summary | Unreadable] = {}
        for some in _in_bytes(listing, folders, _READ_BYTES):
            read_now = zip(some, at_once(_READERS, read, some), strict=True)
            found |= {folder: summary for folder, summary in read_now if summary is not None}
        return found

    def hold_against(self, listing: Listing) -> None:
        """Forgets what a new listing may show to be another's now, in a root that was emptied, and what was unreadable:
        a verdict is no older than the listing that it is used with.
        """
        self.refused, self.refused_claims, self._unanswered = None, {}, 0
        for folder, known in list(self._known.items()):
            names = listing.folders.get(folder, ())
            if not isinstance(known, Summary) or (names and not _is_in(names, writer_tag(known.writer_id))):
                self._known.pop(folder, None)

    def read_there(self, listing: Listing) -> dict[Folder, Summary | Unreadable]:
        """All that are committed, by threads only if there are enough to be worth them."""
        self.hold_against(listing)
        unknown = [folder for folder in listing.committed if folder not in self._known]
        if len(unknown) > _READERS:
            self.read_many(listing, unknown)
        found: dict[Folder, Summary | Unreadable] = {}
        for folder in listing.committed:
            with contextlib.suppress(ObjectNotFoundError):
                found[folder] = self.get(folder)
        return found

    def add(self, summary: Summary) -> None:
        """What was just committed need not be read back."""
        self._known[summary.folder] = summary

    def forget(self, folders: Iterable[Folder]) -> None:
        for folder in folders:
            self._known.pop(folder, None)


def _is_in(names: Iterable[str], tag: str) -> bool:
    """Whether one of these names of files is of the writer with this tag."""
    return any(f"-{tag}." in name for name in names)


def _in_bytes(listing: Listing, folders: Iterable[Folder], most: int) -> Iterator[list[Folder]]:
    """The folders in their order, so many at a time that their manifests have at most so many bytes, or one has."""
    some: list[Folder] = []
    total = 0
    for folder in folders:
        size_bytes = listing.folders[folder].get(MANIFEST_NAME, 0)
        if some and total + size_bytes > most:
            yield some
            some, total = [], 0
        some.append(folder)
        total += size_bytes
    if some:
        yield some


def read_claim(store: Store, number: int) -> Claim | None:
    """The claim with this number, or None where it is gone, torn or another's (twice): it fences all the same."""
    key = claim_key(number)
    try:
        claim = read_record(store, key, MAX_CLAIM_BYTES, lambda data: decode(data, Claim, f"{store.url}/{key}"))
    except (ObjectNotFoundError, ValueError):
        return None
    return claim if claim.number == number else None


SummaryReader = Callable[[Folder], Summary | Unreadable]
Holder = Callable[[int], str | None]


def count_root(
    list_it: Callable[[], Listing], find_run: Callable[[Listing], str | None], summaries: Summaries
) -> tuple[Listing, Counting]:
    """Lists and decides what counts; lists again if a manifest went meanwhile, since something newer may have come.

    Where they keep going, those that went are as if they had not been listed.
    """
    for _ in range(_TRIES):
        listing = list_it()
        summaries.hold_against(listing)
        with contextlib.suppress(ObjectNotFoundError):
            return listing, find_counting(listing, find_run(listing), summaries.get, summaries.holder)
    return listing, find_counting_now(listing, find_run(listing), summaries.get, summaries.holder)


def find_counting_now(listing: Listing, run_id: str | None, read: SummaryReader, holder: Holder) -> Counting:
    """What counts in `listing`, except for manifests that go while they are read: as if they had not been listed."""
    gone: set[Folder] = set()

    def read_or_note(folder: Folder) -> Summary | Unreadable:
        try:
            return read(folder)
        except ObjectNotFoundError:
            gone.add(folder)
            raise

    while True:
        with contextlib.suppress(ObjectNotFoundError):
            return find_counting(listing.without(gone), run_id, read_or_note, holder)


def find_counting(
    listing: Listing, run_id: str | None, read: SummaryReader, holder: Holder = lambda number: None
) -> Counting:
    """Decides what counts. `run_id` is that of the newest claim; None where there is none: the newest manifest's then.
    `holder` gives the writer id in the claim of a number, None if it cannot be read.

    Manifests are read from the newest incarnation down, newest step first, until one of this run can be read: one get
    in a healthy root. Where an incarnation of this run has manifests and none can be read, they count (so that the
    damage is met and reported, not passed over) and everything older is outside.
    """
    committed = listing.committed
    damaged: list[Folder] = []
    for incarnation in sorted({folder.incarnation for folder in committed}, reverse=True):
        own = [folder for folder in reversed(committed) if folder.incarnation == incarnation]
        if len({listing.tags(folder) for folder in own}) > 1:
            own = of_one_writer({folder: read(folder) for folder in own}, listing, run_id, holder(incarnation))
        # A manifest of another run over one of ours is damage as any other: a restore finds it without its shards.
        readable = (summary for folder in own if isinstance(summary := read(folder), Summary))
        first = next(readable, None)
        decides = first if first is None or run_id in (None, first.run_id) else None
        decides = decides or next((summary for summary in readable if summary.run_id == run_id), None)
        if decides is None:
            damaged += own if first is None else []
            continue
        if damaged:
            break
        counts = {*own, *(folder for folder in decides.lineage if folder in listing.folders)} & {*committed}
        return Counting(
            incarnation=incarnation,
            run_id=decides.run_id,
            folders=tuple(sorted(counts, reverse=True)),
            outside=tuple(folder for folder in reversed(committed) if folder not in counts),
            barrier=decides.barrier,
            fresh_since=decides.fresh_since,
        )
    return Counting(
        incarnation=damaged[0].incarnation if damaged else 0,
        run_id=run_id,
        folders=tuple(sorted(damaged, reverse=True)),
        outside=tuple(folder for folder in reversed(committed) if folder not in damaged),
    )


def of_one_writer(
    own: Mapping[Folder, Summary | Unreadable], listing: Listing, run_id: str | None, claimed_by: str | None
) -> list[Folder]:
    """The committed folders of one incarnation, newest first, without those of another job that held the same number.

    That happens only where claims were deleted by hand. The names of shards show it; then the writer whose claim is
    there (`claimed_by`) is the incarnation, or, if that is not known, that of the newest manifest.
    """
    writers = [s.writer_id for s in own.values() if isinstance(s, Summary) and run_id in (None, s.run_id)]
    writer = claimed_by if claimed_by in writers else next(iter(writers), None)
    if writer is None:
        return [*own]
    return [
        folder
        for folder, summary in own.items()
        if (summary.writer_id == writer if isinstance(summary, Summary) else writer_tag(writer) in listing.tags(folder))
    ]
