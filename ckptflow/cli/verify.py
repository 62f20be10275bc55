"""`ckptflow verify`: reads every byte of a checkpoint and says what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Step, UrlOrFolder, print_json, storage_options
from ckptflow.cli.render import bar, make_console, size_text
from ckptflow.errors import (
    CheckpointGoneError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.printable import printable
from ckptflow.storage.wrappers import StoreWrapper

if TYPE_CHECKING:
    from ckptflow.commit.catalog import Summaries
    from ckptflow.format.layout import Folder
    from ckptflow.storage.store import Store
    from ckptflow.transfer.buffers import BufferPool
    from ckptflow.transfer.verify import Sound

_SHOWN = {
    "whole": ("green", "whole"),
    "gone": ("dim", "pruned meanwhile"),
    "damaged": ("red", "damaged"),
    "unread": ("red", "not read"),
}


@dataclass(frozen=True, slots=True)
class Verified:
    """What reading one checkpoint found: `problems` in words; `is_gone` where it was pruned before it was read;
    `refused` where the storage did not give all of it, which says nothing about what is stored."""

    folder: Folder
    url: str
    size_bytes: int
    problems: tuple[str, ...] = ()
    is_gone: bool = False
    refused: StorageError | None = None

    @property
    def state(self) -> str:
        if self.refused is not None:
            return "unread"
        return "gone" if self.is_gone else "damaged" if self.problems else "whole"


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

    Without --step or --all it is the newest that counts. Each problem is printed with the file, the place and why. With
    --all what the storage does not give is told, with exit code 3 or 4, and the others are read.

    \b
    Example:
      ckptflow verify s3://bucket/run-7 --all
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.prune import doubt_of
    from ckptflow.storage.opening import open_store

    root, folder = root_and_folder(url, step, is_all=verify_all)
    start_s = time.monotonic()
    with closing(open_store(root, storage_options(options, options_json))) as store:
        summaries = Summaries(store, is_for_show=verify_all)
        verdicts = read_all(store, summaries, folder, step)
    doubt = doubt_of(summaries)
    if as_json:
        print_json(to_json(store.url, verdicts, doubt))
    else:
        render(verdicts, time.monotonic() - start_s, doubt)
    if any(verdict.state == "damaged" for verdict in verdicts):
        raise typer.Exit(1)
    refused = next((verdict.refused for verdict in verdicts if verdict.refused is not None), summaries.refused)
    if refused is not None:
        raise typer.Exit(exit_code(refused))


def root_and_folder(url: str, step: int | None, *, is_all: bool) -> tuple[str, Folder | None]:
    """What `url` names; raises ValueError where --step or --all does not go with it."""
    from ckptflow.reading import split_url

    root, folder = split_url(url)
    if is_all and (step is not None or folder is not None):
        raise ValueError("--all goes with a run's root and without --step")
    if folder is not None and step not in (None, folder.step):
        raise ValueError(f"this is the folder of step {folder.step}, not {step}")
    return root, folder


def read_all(store: Store, summaries: Summaries, folder: Folder | None, step: int | None) -> list[Verified]:
    """Reads what was asked for, one checkpoint after the other: all that count where the summaries are for show.

    Raises `CheckpointNotFoundError` where there is none, or none is left.
    """
    from ckptflow.transfer.streams import pool_for_reading

    wanted = choose(store, summaries, folder, step)
    with closing(pool_for_reading(store)) as pool:
        with bar("reading", is_bytes=True) as progress:
            progress.expect(sum(wanted.values()))
            watched = WatchedStore(store, progress.advance)
            verdicts: list[Verified] = []
            sound: Sound = {}
            for each in wanted:
                verdicts.append(read_one(watched, each, pool, sound, is_one_of_all=summaries.is_for_show))
                _check_answers(verdicts)
    if all(verdict.is_gone for verdict in verdicts):
        raise CheckpointGoneError(f"{store.url}: pruned while it was read; pin what must stay, or verify again")
    return verdicts


def _check_answers(verdicts: Sequence[Verified]) -> None:
    """Raises what the storage said, once it has not answered for so many that it is not one of them."""
    from ckptflow.commit.catalog import MAX_UNANSWERED

    last = [verdict.refused for verdict in verdicts[-MAX_UNANSWERED - 1 :]]
    if len(last) > MAX_UNANSWERED and all(isinstance(each, StorageUnavailableError) for each in last):
        raise next(filter(None, last))


def choose(store: Store, summaries: Summaries, folder: Folder | None, step: int | None) -> dict[Folder, int]:
    """The folders to read, oldest first, and the bytes of each as listed, a file that several share in one of them; of
    a root all where the summaries are for show, which then have what was refused."""
    from ckptflow.commit.finding import check_root, read_counting
    from ckptflow.commit.freed import freed_bytes

    if folder is not None:
        entries = store.list(f"{folder}/")
        if not any(entry.key == folder.manifest_key for entry in entries):
            raise CheckpointNotFoundError(f"{store.url}/{folder} has no committed checkpoint")
        return {folder: sum(entry.size_bytes for entry in entries)}
    listing, counting = read_counting(store, summaries)
    matching = [f for f in counting.folders if step in (None, f.step)]
    matching += [f for f in counting.outside if f.step == step]
    if not matching:
        check_root(store)
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointNotFoundError(f"{store.url}: {what} is here")
    chosen = [*reversed(matching)] if summaries.is_for_show else matching[:1]
    size_bytes = freed_bytes(listing.only(chosen), chosen)
    return {folder: size_bytes[folder] for folder in chosen}


def read_one(store: Store, folder: Folder, pool: BufferPool, sound: Sound, *, is_one_of_all: bool) -> Verified:
    """Reads one checkpoint. What was pruned meanwhile is gone, not damaged. What the storage does not give raises, or,
    of one of all, is told."""
    from ckptflow.commit.catalog import read_manifest
    from ckptflow.reading import OpenCheckpoint

    url = f"{store.url}/{folder}"
    try:
        manifest = read_manifest(store, folder)
        problems = OpenCheckpoint(store, manifest, pool).verify(sound)
    except (CorruptCheckpointError, UnknownVersionError) as error:
        return Verified(folder, url, 0, (str(error).removeprefix(f"{url}/"),))
    except (ObjectNotFoundError, CheckpointGoneError):
        return Verified(folder, url, 0, is_gone=True)
    except StorageError as error:
        if not is_one_of_all:
            raise
        return Verified(folder, url, 0, (f"cannot be read: {error}",), refused=error)
    return Verified(folder, url, manifest.size_bytes, tuple(problems))


class WatchedStore(StoreWrapper):
    """A store that says how many bytes each read brought."""

    def __init__(self, store: Store, on_read: Callable[[int], None]) -> None:
        super().__init__(store)
        self._on_read = on_read

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        self._on_read(count)
        return count


def to_json(root_url: str, verdicts: Sequence[Verified], doubt: str | None) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    return {
        "url": root_url,
        "ok": doubt is None and not any(verdict.problems for verdict in verdicts),
        "doubt": doubt,
        "checkpoints": [
            {
                "folder": str(verdict.folder),
                "url": verdict.url,
                "step": verdict.folder.step,
                "incarnation": verdict.folder.incarnation,
                "size_bytes": verdict.size_bytes,
                "state": verdict.state,
                "problems": list(verdict.problems),
            }
            for verdict in verdicts
        ],
    }


def render(verdicts: Sequence[Verified], seconds: float, doubt: str | None) -> None:
    """Prints a line for each checkpoint, its problems below, and the sum of it."""
    console = make_console()
    for verdict in verdicts:
        style, word = _SHOWN[verdict.state]
        console.print(f"{verdict.folder}  {size_text(verdict.size_bytes)}  {word}", style=style, soft_wrap=True)
        for problem in verdict.problems:
            console.print(f"  {printable(problem)}", soft_wrap=True)
    states = [verdict.state for verdict in verdicts]
    bad = [state for state in ("damaged", "unread") if state in states]
    size_bytes = sum(verdict.size_bytes for verdict in verdicts)
    counted = (f"{states.count(state)} of {len(states)} {_SHOWN[state][1]}" for state in bad)
    outcome = ", ".join(counted) or "every byte is as it was written"
    rate = f"{size_text(int(size_bytes / max(seconds, 1e-3)))}/s"
    console.print(f"{size_text(size_bytes)} in {seconds:.1f} s ({rate}): {outcome}")
    if doubt is not None:
        console.print(f"{printable(doubt[:1].upper() + doubt[1:])}.", style="red", soft_wrap=True)
