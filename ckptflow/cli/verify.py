"""`ckptflow verify`: reads every byte of a checkpoint and says what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.options import Json, Options, OptionsJson, Step, UrlOrFolder, print_json, storage_options
from ckptflow.cli.render import bar, make_console, size_text
from ckptflow.errors import (
    CheckpointGoneError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectNotFoundError,
    UnknownVersionError,
)
from ckptflow.printable import printable
from ckptflow.storage.again import renew

if TYPE_CHECKING:
    from ckptflow.format.layout import Folder
    from ckptflow.storage.store import Store
    from ckptflow.transfer.buffers import BufferPool


@dataclass(frozen=True, slots=True)
class Verified:
    """What reading one checkpoint found: `problems` in words; `is_gone` where it was pruned before it was read."""

    folder: Folder
    url: str
    size_bytes: int
    problems: tuple[str, ...] = ()
    is_gone: bool = False


def verify(
    url: UrlOrFolder,
    step: Step = None,
    verify_all: Annotated[
        bool, typer.Option("--all", help="Every checkpoint that counts, not only the newest.")
    ] = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Read every byte of the newest checkpoint and check it: sizes, checksums, headers. Exit code 1 on damage.

    Without --step or --all it is the newest that counts. Each problem is printed with the file, the place and why.

    \b
    Example:
      ckptflow verify s3://bucket/run-7 --all
    """
    from ckptflow.storage.opening import open_store

    root, folder = root_and_folder(url, step, is_all=verify_all)
    start_s = time.monotonic()
    with closing(open_store(root, storage_options(options, options_json))) as store:
        verdicts = read_all(store, folder, step, verify_all=verify_all)
    if as_json:
        print_json(to_json(store.url, verdicts))
    else:
        render(verdicts, time.monotonic() - start_s)
    if any(verdict.problems for verdict in verdicts):
        raise typer.Exit(1)


def root_and_folder(url: str, step: int | None, *, is_all: bool) -> tuple[str, Folder | None]:
    """What `url` names; raises ValueError where --step or --all does not go with it."""
    from ckptflow.reading import split_url

    root, folder = split_url(url)
    if is_all and (step is not None or folder is not None):
        raise ValueError("--all goes with a run's root and without --step")
    if folder is not None and step not in (None, folder.step):
        raise ValueError(f"this is the folder of step {folder.step}, not {step}")
    return root, folder


def read_all(store: Store, folder: Folder | None, step: int | None, *, verify_all: bool) -> list[Verified]:
    """Reads what was asked for, one checkpoint after the other.

    Raises `CheckpointNotFoundError` where there is none, or none is left.
    """
    from ckptflow.transfer.streams import pool_for_reading

    wanted = choose(store, folder, step, verify_all=verify_all)
    with closing(pool_for_reading(store)) as pool:
        with bar("reading", is_bytes=True) as progress:
            progress.expect(sum(wanted.values()))
            watched = WatchedStore(store, progress.advance)
            verdicts = [read_one(watched, folder, pool) for folder in wanted]
    if all(verdict.is_gone for verdict in verdicts):
        raise CheckpointGoneError(f"{store.url}: pruned while it was read; pin what must stay, or verify again")
    return verdicts


def choose(store: Store, folder: Folder | None, step: int | None, *, verify_all: bool) -> dict[Folder, int]:
    """The folders to read, oldest first, and the bytes of each as listed."""
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.finding import read_counting

    if folder is not None:
        entries = store.list(f"{folder}/")
        if not any(entry.key == folder.manifest_key for entry in entries):
            raise CheckpointNotFoundError(f"{store.url}/{folder} holds no committed checkpoint")
        return {folder: sum(entry.size_bytes for entry in entries)}
    listing, counting = read_counting(store, Summaries(store))
    matching = [f for f in counting.folders if step in (None, f.step)]
    matching += [f for f in counting.outside if f.step == step]
    if not matching:
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointNotFoundError(f"{store.url}: {what} is here")
    chosen = reversed(matching) if verify_all else matching[:1]
    return {folder: sum(listing.folders[folder].values()) for folder in chosen}


def read_one(store: Store, folder: Folder, pool: BufferPool) -> Verified:
    """Reads one checkpoint. What was pruned meanwhile is gone, not damaged."""
    from ckptflow.commit.catalog import read_manifest
    from ckptflow.reading import OpenCheckpoint

    url = f"{store.url}/{folder}"
    try:
        manifest = read_manifest(store, folder)
        problems = OpenCheckpoint(store, manifest, pool).verify()
    except (CorruptCheckpointError, UnknownVersionError) as error:
        return Verified(folder, url, 0, (str(error).removeprefix(f"{url}/"),))
    except (ObjectNotFoundError, CheckpointGoneError):
        return Verified(folder, url, 0, is_gone=True)
    return Verified(folder, url, manifest.size_bytes, tuple(problems))


class WatchedStore:
    """A store that says how many bytes each read brought."""

    def __init__(self, store: Store, on_read: Callable[[int], None]) -> None:
        self._store = store
        self._on_read = on_read
        self.put, self.create, self.list = store.put, store.create, store.list
        self.delete, self.close = store.delete, store.close

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def is_create_only(self) -> bool:
        return self._store.is_create_only

    @property
    def is_object_store(self) -> bool:
        return self._store.is_object_store

    def renew(self, key: str) -> None:
        renew(self._store, key)

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = self._store.get(key, into, start)
        self._on_read(count)
        return count


def to_json(root_url: str, verdicts: Sequence[Verified]) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    return {
        "url": root_url,
        "ok": not any(verdict.problems for verdict in verdicts),
        "checkpoints": [
            {
                "folder": str(verdict.folder),
                "url": verdict.url,
                "step": verdict.folder.step,
                "incarnation": verdict.folder.incarnation,
                "size_bytes": verdict.size_bytes,
                "state": "gone" if verdict.is_gone else "damaged" if verdict.problems else "whole",
                "problems": list(verdict.problems),
            }
            for verdict in verdicts
        ],
    }


def render(verdicts: Sequence[Verified], seconds: float) -> None:
    """Prints a line for each checkpoint, its problems below, and the sum of it."""
    console = make_console()
    for verdict in verdicts:
        style = "red" if verdict.problems else "dim" if verdict.is_gone else "green"
        word = "damaged" if verdict.problems else "pruned meanwhile" if verdict.is_gone else "whole"
        console.print(f"{verdict.folder}  {size_text(verdict.size_bytes)}  {word}", style=style, soft_wrap=True)
        for problem in verdict.problems:
            console.print(f"  {printable(problem)}", soft_wrap=True)
    damaged = sum(bool(verdict.problems) for verdict in verdicts)
    size_bytes = sum(verdict.size_bytes for verdict in verdicts)
    outcome = f"{damaged} of {len(verdicts)} damaged" if damaged else "every byte is as it was written"
    rate = f"{size_text(int(size_bytes / max(seconds, 1e-3)))}/s"
    console.print(f"{size_text(size_bytes)} in {seconds:.1f} s ({rate}): {outcome}")
