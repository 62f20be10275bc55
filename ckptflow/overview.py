"""What a root looks like from outside: its folders, which of them count, and what can be seen to be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ckptflow.commit.catalog import Checkpoint, Counting, Listing, Summaries, Summary, Unreadable
from ckptflow.commit.prune import unread
from ckptflow.commit.retention import Mode, best_first
from ckptflow.errors import CorruptCheckpointError, StorageError
from ckptflow.format.layout import Folder, parse_receipt_name, parse_shard_name

_BATCH = 256  # manifests read between two words on how far it is

Found = Mapping[Folder, Summary | Unreadable]


@dataclass(frozen=True, slots=True)
class Row:
    """One folder of a root. `why` says why it is outside or partial, `problem` what is wrong with it as far as a
    listing and the manifest tell; `checkpoint` is None where there is no manifest that can be read."""

    folder: Folder
    state: Literal["newest", "counts", "outside", "partial"]
    why: str | None
    problem: str | None
    is_pinned: bool
    size_bytes: int
    shard_count: int
    worker_count: int | None
    checkpoint: Checkpoint | None
    copied_bytes: int = 0  # of `size_bytes`, as the manifest says: copied inside the storage, not sent
    pin_names: tuple[str, ...] = ()
    is_unread: bool = False  # the storage does not give the manifest: what is in it is not known


@dataclass(frozen=True, slots=True)
class Overview:
    """What `ls` shows: `rows` oldest first, and how many outside and partial folders were left out.

    `stored_bytes` is what all folders of the root take together: a file that several share counts once. `ranks`: which
    place each checkpoint has by a metric, from 1, if that was asked for.
    """

    url: str
    run_id: str | None
    incarnation: int
    rows: tuple[Row, ...]
    hidden: Mapping[str, int]
    doubt: str | None = None  # why what counts is not known for sure
    stored_bytes: int = 0
    ranks: Mapping[Folder, int] = field(default_factory=dict)

    @property
    def best_first(self) -> list[Row]:
        """The rows by their rank; those that have none follow, oldest first."""
        return sorted(self.rows, key=lambda row: self.ranks.get(row.folder, len(self.rows) + 1))

    @property
    def resumes_from(self) -> Row | None:
        """The newest that counts and shows no problem: where a restart would begin. None where it would raise."""
        if self.doubt is not None:
            return None
        counting = (row for row in reversed(self.rows) if row.state in ("newest", "counts"))
        first = next((row for row in counting if row.problem is None or row.is_unread), None)
        return None if first is None or first.is_unread else first


def rank_rows(rows: Sequence[Row], metric: str, mode: Mode | None) -> dict[Folder, int]:
    """The place of each checkpoint that counts and has the metric: 1 is the best."""
    places = {found.url: place for place, found in enumerate(best_first(counting_in(rows), metric, mode), 1)}
    return {row.folder: places[row.checkpoint.url] for row in rows if row.checkpoint and row.checkpoint.url in places}


def counting_in(rows: Sequence[Row]) -> list[Checkpoint]:
    """The checkpoints that count and have a manifest that can be read."""
    return [row.checkpoint for row in rows if row.state in ("newest", "counts") and row.checkpoint is not None]


def read_summaries(
    summaries: Summaries, listing: Listing, folders: Iterable[Folder], advance: Callable[[int], None]
) -> dict[Folder, Summary | Unreadable]:
    """Reads manifests, many at once, and says how many more it has read; those that are gone by now are left out."""
    found: dict[Folder, Summary | Unreadable] = {}
    ordered = list(folders)
    for first in range(0, len(ordered), _BATCH):
        batch = ordered[first : first + _BATCH]
        found |= summaries.read_many(listing, batch)
        advance(len(batch))
    return found


def committed_row(folder: Folder, summary: Summary | Unreadable, listing: Listing, counting: Counting) -> Row:
    """The row of a folder with a manifest."""
    files = listing.folders[folder]
    why = _why_outside(folder, summary, counting) if folder in counting.outside else None
    if why is None:
        summary = counting.of_this_run(summary)
    shards = summary.shard_sizes if isinstance(summary, Summary) else _shard_sizes(files)
    return Row(
        folder=folder,
        state="newest" if folder == counting.newest else "outside" if why is not None else "counts",
        why=why,
        problem=_find_problem(shards, files) if isinstance(summary, Summary) else _why_unreadable(folder, summary),
        is_pinned=folder in listing.pins,
        pin_names=listing.pin_names.get(folder, ()),
        size_bytes=sum(shards.values()),
        shard_count=len(shards),
        worker_count=_count_workers((*shards, *files)),
        checkpoint=summary.checkpoint if isinstance(summary, Summary) else None,
        copied_bytes=summary.checkpoint.copied_bytes if isinstance(summary, Summary) else 0,
        is_unread=isinstance(summary, StorageError),
    )


def partial_row(folder: Folder, listing: Listing) -> Row:
    """The row of a folder without one."""
    shards = _shard_sizes(listing.folders[folder])
    is_over = folder.incarnation < listing.top_number
    return Row(
        folder=folder,
        state="partial",
        why="never committed" if is_over else "not committed yet",
        problem=None,
        is_pinned=folder in listing.pins,
        pin_names=listing.pin_names.get(folder, ()),
        size_bytes=sum(shards.values()),
        shard_count=len(shards),
        worker_count=_count_workers(listing.folders[folder]),
        checkpoint=None,
    )


def _why_outside(folder: Folder, summary: Summary | Unreadable, counting: Counting) -> str:
    if isinstance(summary, Summary) and summary.run_id != counting.run_id:
        return "of another run"
    if folder.incarnation < counting.fresh_since:
        return "from before a fresh start"
    if folder.incarnation < counting.barrier:
        return "rolled back"
    return f"not what incarnation {counting.incarnation} started from"


def _why_unreadable(folder: Folder, error: Unreadable) -> str:
    if isinstance(error, StorageError):
        return unread(error)
    why = str(error).partition(f"{folder.manifest_key}: ")[2] or str(error)  # the line names the folder
    return f"damaged manifest: {why}" if isinstance(error, CorruptCheckpointError) else why


def _find_problem(shards: Mapping[str, int], files: Mapping[str, int]) -> str | None:
    missing = sum(name not in files for name in shards)
    if missing:
        return f"shards missing: {missing} of {len(shards)}"
    wrong = next((name for name, size_bytes in shards.items() if files[name] != size_bytes), None)
    if wrong is None:
        return None
    return f"{wrong} has {files[wrong]:,} bytes, not {shards[wrong]:,}"


def _shard_sizes(files: Mapping[str, int]) -> dict[str, int]:
    return {name: size_bytes for name, size_bytes in files.items() if parse_shard_name(name)}


def _count_workers(names: tuple[str, ...] | Mapping[str, int]) -> int | None:
    """How many workers wrote a checkpoint: the name of each of its shards and receipts says so."""
    for name in names:
        shard, receipt = parse_shard_name(name), parse_receipt_name(name)
        if shard or receipt:
            return shard[1] if shard else receipt[1] if receipt else None
    return None
