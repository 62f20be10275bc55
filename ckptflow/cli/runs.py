"""The runs below a prefix, for `ckptflow ls`: found in one listing, with as few reads of each as tell its state."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ckptflow.cli.render import Justify, age_text, make_console, print_table, size_text, utc_text
from ckptflow.format.words import some_of
from ckptflow.printable import printable

if TYPE_CHECKING:
    from ckptflow.errors import StorageError
    from ckptflow.overview import Row
    from ckptflow.storage.store import Entry, Store

MAX_RUNS = 1_000
_READERS = 8  # runs read at once
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run below a prefix: `newest` is the row that `ls` of it has, None if no checkpoint is current."""

    name: str
    url: str
    run_id: str | None
    incarnation: int
    newest: Row | None
    checkpoint_count: int
    stored_bytes: int
    doubt: str | None
    refused: StorageError | None

    @property
    def problem(self) -> str | None:
        return self.doubt or (self.newest.problem if self.newest else None)

    @property
    def state(self) -> str:
        """In one phrase: what is wrong, or that nothing is, as far as a listing and the newest manifest tell."""
        return self.problem or ("ok" if self.newest else "no checkpoint is current")


def runs_in(entries: Collection[Entry]) -> dict[str, list[Entry]]:
    """The files of each run, by its path below the prefix that was listed, with keys below the run's root. Pure.

    The path "" is the prefix itself.
    """
    from ckptflow.commit.listing import run_places
    from ckptflow.storage.store import Entry

    runs = {path for entry in entries for path, _, is_of_run in run_places(entry.key) if is_of_run}
    below: dict[str, list[Entry]] = {path: [] for path in sorted(runs)}
    for entry in entries:  # what is in no run, as a data set beside them, is not copied
        for path, key, _ in run_places(entry.key):
            if path in below:
                below[path].append(Entry(key, entry.size_bytes, entry.version))
    return below


def refused_runs(runs: Collection[str], refused: Mapping[str, StorageError]) -> dict[str, StorageError]:
    """Which runs below the prefix that was listed cannot be listed, by their paths, with why. Pure.

    `refused` are folders. Those in none of `runs` may be runs themselves, or, by their names, a part of one.
    """
    from ckptflow.commit.listing import RUN_LEVELS
    from ckptflow.format.layout import LINEAGE_PREFIX, parse_folder

    found: dict[str, StorageError] = {}
    for path, why in sorted(refused.items()):
        above, _, name = path.rpartition("/")
        is_part = parse_folder(name) is not None or f"{name}/" == LINEAGE_PREFIX
        itself = above if is_part else path
        around = [run for run in runs if not run or f"{path}/".startswith(f"{run}/")]
        for run in around or ([itself] if itself.count("/") < RUN_LEVELS else []):
            found.setdefault(run, why)
    return found


def links_in(url: str, runs: Collection[str]) -> list[str]:
    """The paths of links to folders at a URL on this disk, and in folders there that are none of `runs`: what is behind
    them is not listed."""
    from ckptflow.commit.listing import RUN_LEVELS
    from ckptflow.storage.opening import local_path

    path = local_path(url)
    if path is None:
        return []
    links: list[str] = []
    folders = [""]
    for folder in folders:  # which grow
        with suppress(OSError), os.scandir(os.path.join(path, folder)) as found:
            for entry in found:
                name = folder + entry.name
                if entry.is_symlink():
                    links += [name] if os.path.isdir(entry.path) else []
                elif entry.is_dir() and name not in runs and name.count("/") < RUN_LEVELS - 1:
                    folders.append(f"{name}/")
    return sorted(links)


def read_runs(
    url: str, runs: Mapping[str, list[Entry]], refused: Mapping[str, StorageError], options: dict[str, Any]
) -> list[RunSummary]:
    """What there is to say of each: reads its newest claim, and manifests until it is known which are current.

    `refused` are those that cannot be listed, with why.
    """
    from ckptflow.threads import at_once

    def read(name: str) -> RunSummary:
        return _read_run(url, name, runs.get(name, []), refused.get(name), options)

    return at_once(_READERS, read, sorted({*runs, *refused})[:MAX_RUNS])


def _read_run(
    url: str, name: str, entries: list[Entry], refused: StorageError | None, options: dict[str, Any]
) -> RunSummary:
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.finding import read_counting
    from ckptflow.commit.freed import freed_bytes
    from ckptflow.commit.listing import sort_out
    from ckptflow.commit.prune import doubt_of
    from ckptflow.overview import committed_row
    from ckptflow.reading import url_below
    from ckptflow.storage.opening import open_store

    with closing(open_store(url_below(url, name), options)) as store:
        refused = refused or _find_link(store)
        summaries = Summaries(store, is_for_show=True)
        listing, counting = read_counting(store, summaries, sort_out(entries))
        newest = counting.newest
        row = committed_row(newest, summaries.get(newest), listing, counting) if newest else None
        return RunSummary(
            name=name,
            url=store.url,
            run_id=counting.run_id,
            incarnation=listing.top_number,
            newest=row,
            checkpoint_count=len(counting.folders),
            stored_bytes=sum(freed_bytes(listing, listing.folders).values()),
            doubt=str(refused) if refused else doubt_of(summaries),
            refused=refused or summaries.refused,
        )


def _find_link(store: Store) -> StorageError | None:
    """Why a run on a disk cannot be listed: a link has the name of one of its folders."""
    from ckptflow.errors import StorageError
    from ckptflow.storage.local_listing import check_no_link

    try:
        for name in () if store.is_object_store else sorted(os.listdir(store.url)):
            check_no_link(os.path.join(store.url, name))
    except StorageError as error:
        return error
    except OSError:  # of the listing
        return None
    return None


def runs_to_json(url: str, runs: list[RunSummary], left_out: int, links: Sequence[str]) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    return {"url": url, "left_out": left_out, "links": list(links), "runs": [_run_to_json(run) for run in runs]}


def _run_to_json(run: RunSummary) -> dict[str, Any]:
    newest = run.newest
    created_at = newest.checkpoint.created_at if newest and newest.checkpoint else None
    return {
        "name": run.name,
        "url": run.url,
        "run_id": run.run_id,
        "incarnation": run.incarnation,
        "newest": str(newest.folder) if newest else None,
        "newest_step": newest.folder.step if newest else None,
        "created_at": utc_text(created_at) if created_at else None,
        "checkpoints": run.checkpoint_count,
        "stored_bytes": run.stored_bytes,
        "problem": newest.problem if newest else None,
        "doubt": run.doubt,
    }


def render_runs(runs: list[RunSummary], left_out: int, links: Sequence[str]) -> None:
    """Prints a line for each run."""
    console, now = make_console(), datetime.now(UTC)
    columns: dict[str, Justify] = {
        "run": "left",
        "newest": "right",
        "created": "left",
        "checkpoints": "right",
        "stored": "right",
        "state": "left",
    }
    if runs:
        print_table(
            console, columns, [_cells(run, now) for run in runs], ["red" if run.problem else "" for run in runs]
        )
    if left_out:
        console.print(f"Not shown: {left_out:,} more runs. Give a longer path.", style="dim")
    if links:
        names = printable(some_of(links, _NAMES_SHOWN))
        console.print(f"Not followed: links to folders, {names}. List each by its own path.", style="dim")


def _cells(run: RunSummary, now: datetime) -> list[str]:
    newest = run.newest
    return [
        run.name,
        str(newest.folder.step) if newest else "-",
        age_text(newest.checkpoint.created_at, now) if newest and newest.checkpoint else "-",
        str(run.checkpoint_count),
        size_text(run.stored_bytes),
        printable(run.state),
    ]
