"""`ckptflow verify`: reads every byte of a checkpoint and says what is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.amounts import percentage, read_part
from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Step, UrlOrFolder, print_json, storage_options
from ckptflow.cli.render import bar, count_text, make_console, size_text
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
    from ckptflow.format.manifest import Manifest
    from ckptflow.storage.store import Store
    from ckptflow.transfer.buffers import BufferPool
    from ckptflow.transfer.verify import Sound

_SHOWN = {
    "whole": ("green", "intact"),
    "sampled": ("", "sampled"),
    "gone": ("dim", "pruned meanwhile"),
    "damaged": ("red", "damaged"),
    "unread": ("red", "not read"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Which part of each checkpoint's bytes is to be read, in whole shards, drawn with a seed."""

    part: float
    seed: int

    def shards(self, manifest: Manifest) -> list[int]:
        """The numbers of shards of at least that part, one at least; the same for the same seed and checkpoint."""
        numbers = list(range(len(manifest.shards)))
        random.Random(f"{self.seed} {manifest.folder}").shuffle(numbers)
        chosen: list[int] = []
        left_bytes = self.part * manifest.size_bytes
        for number in numbers:
            if chosen and left_bytes <= 0:
                break
            chosen.append(number)
            left_bytes -= manifest.shards[number].size_bytes
        return sorted(chosen)


@dataclass(frozen=True, slots=True)
class Verified:
    """What reading one checkpoint found: `problems` in words; `is_gone` where it was pruned before it was read;
    `refused` where the storage did not give all of it, which says nothing about what is stored. `read_bytes` are in
    `read_shards` of its `shards`: all, but of a sample."""

    folder: Folder
    url: str
    size_bytes: int
    problems: tuple[str, ...] = ()
    is_gone: bool = False
    refused: StorageError | None = None
    read_bytes: int = 0
    read_shards: int = 0
    shards: int = 0

    @property
    def state(self) -> str:
        if self.refused is not None:
            return "unread"
        if self.is_gone:
            return "gone"
        return "damaged" if self.problems else "sampled" if self.read_shards < self.shards else "whole"


def verify(
    url: UrlOrFolder,
    step: Step = None,
    verify_all: Annotated[bool, typer.Option("--all", help="Every current checkpoint, not only the newest.")] = False,
    sample: Annotated[
        str | None,
        typer.Option(
            "--sample",
            metavar="PART",
            help="Read a random part, in whole files: 5%, or a size such as 10GiB.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, metavar="N", help="Draw the same sample as another run did.", show_default=False),
    ] = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Read every byte of the newest checkpoint and check it: sizes, checksums, headers. Exit code 1 on damage.

    Without --step or --all it is the newest current one. Each problem is printed with the file, the place and the
    reason. With --all, a checkpoint that the storage does not return is named, the others are read, and the exit code
    is 3 or 4. With --sample, all files are looked for, but only some are read, drawn anew each time; what was not read
    may be damaged.

    \b
    Examples:
      ckptflow verify s3://bucket/run-7 --all
      ckptflow verify s3://bucket/run-7 --all --sample 5%
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.prune import doubt_of
    from ckptflow.storage.opening import open_store

    if seed is not None and sample is None:
        raise ValueError("--seed goes with --sample")
    part = read_part(sample, "--sample") if sample is not None else None
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    root, folder = root_and_folder(url, step, is_all=verify_all)
    start_s = time.monotonic()
    with closing(open_store(root, storage_options(options, options_json, url=url))) as store:
        summaries = Summaries(store, is_for_show=verify_all)
        wanted = choose(store, summaries, folder, step)
        drawn = Sample(_as_fraction(part, sum(wanted.values())), seed) if part is not None else None
        verdicts = read_all(store, summaries, wanted, drawn)
    doubt = doubt_of(summaries)
    if as_json:
        print_json(to_json(store.url, verdicts, doubt, drawn))
    else:
        render(verdicts, time.monotonic() - start_s, doubt, drawn)
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


def _as_fraction(part: float | int, size_bytes: int) -> float:
    return min(1.0, part / max(1, size_bytes)) if isinstance(part, int) else part


def read_all(store: Store, summaries: Summaries, wanted: Mapping[Folder, int], sample: Sample | None) -> list[Verified]:
    """Reads what was asked for, or a sample of it, one checkpoint after the other.

    Raises `CheckpointGoneError` where none is left.
    """
    from ckptflow.transfer.streams import pool_for_reading

    with closing(pool_for_reading(store)) as pool:
        with bar("reading", is_bytes=True) as progress:
            progress.expect(int(sum(wanted.values()) * (sample.part if sample else 1)))
            watched = WatchedStore(store, progress.advance)
            verdicts: list[Verified] = []
            sound: Sound = {}
            for each in wanted:
                verdicts.append(read_one(watched, each, pool, sound, sample, is_one_of_all=summaries.is_for_show))
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


def read_one(
    store: Store, folder: Folder, pool: BufferPool, sound: Sound, sample: Sample | None, *, is_one_of_all: bool
) -> Verified:
    """Reads one checkpoint. What was pruned meanwhile is gone, not damaged. What the storage does not give raises, or,
    of one of all, is told."""
    from ckptflow.commit.catalog import read_manifest
    from ckptflow.reading import OpenCheckpoint

    url = f"{store.url}/{folder}"
    try:
        manifest = read_manifest(store, folder)
        only = sample.shards(manifest) if sample is not None else range(len(manifest.shards))
        problems = OpenCheckpoint(store, manifest, pool).verify(sound, only)
    except (CorruptCheckpointError, UnknownVersionError) as error:
        return Verified(folder, url, 0, (str(error).removeprefix(f"{url}/"),))
    except (ObjectNotFoundError, CheckpointGoneError):
        return Verified(folder, url, 0, is_gone=True)
    except StorageError as error:
        if not is_one_of_all:
            raise
        return Verified(folder, url, 0, (f"cannot be read: {error}",), refused=error)
    return Verified(
        folder,
        url,
        manifest.size_bytes,
        tuple(problems),
        read_bytes=sum(manifest.shards[number].size_bytes for number in only),
        read_shards=len(only),
        shards=len(manifest.shards),
    )


class WatchedStore(StoreWrapper):
    """A store that says how many bytes each read brought."""

    def __init__(self, store: Store, on_read: Callable[[int], None]) -> None:
        super().__init__(store)
        self._on_read = on_read

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        self._on_read(count)
        return count


def to_json(root_url: str, verdicts: Sequence[Verified], doubt: str | None, sample: Sample | None) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    is_bad = doubt is not None or any(verdict.problems for verdict in verdicts)
    is_known = all(verdict.state != "sampled" for verdict in verdicts)
    return {
        "url": root_url,
        "ok": False if is_bad else True if is_known else None,
        "doubt": doubt,
        "sample": {"part": sample.part, "seed": sample.seed} if sample is not None else None,
        "checkpoints": [
            {
                "folder": str(verdict.folder),
                "url": verdict.url,
                "step": verdict.folder.step,
                "incarnation": verdict.folder.incarnation,
                "size_bytes": verdict.size_bytes,
                "read_bytes": verdict.read_bytes,
                "shards": verdict.shards,
                "read_shards": verdict.read_shards,
                "state": verdict.state,
                "problems": list(verdict.problems),
            }
            for verdict in verdicts
        ],
    }


def render(verdicts: Sequence[Verified], seconds: float, doubt: str | None, sample: Sample | None) -> None:
    """Prints a line for each checkpoint, its problems below, and the sum of it."""
    console = make_console()
    for verdict in verdicts:
        style, word = _SHOWN[verdict.state]
        if verdict.read_shards < verdict.shards:
            read = f"{verdict.read_shards:,} of {count_text(verdict.shards, 'shard')}"
            word += f": {read} read, {size_text(verdict.read_bytes)}"
        console.print(f"{verdict.folder}  {size_text(verdict.size_bytes)}  {word}", style=style, soft_wrap=True)
        for problem in verdict.problems:
            console.print(f"  {printable(problem)}", soft_wrap=True)
    states = [verdict.state for verdict in verdicts]
    bad = [state for state in ("damaged", "unread") if state in states]
    size_bytes = sum(verdict.read_bytes for verdict in verdicts)
    counted = (f"{states.count(state)} of {len(states)} {_SHOWN[state][1]}" for state in bad)
    not_read = sum(verdict.size_bytes for verdict in verdicts) - size_bytes
    fine = f"no damage there; {size_text(not_read)} were not read" if not_read else "every byte is as it was written"
    outcome = ", ".join(counted) or fine
    rate = f"{size_text(int(size_bytes / max(seconds, 1e-3)))}/s"
    console.print(f"{size_text(size_bytes)} in {seconds:.1f} s ({rate}): {outcome}", soft_wrap=True)
    if sample is not None:
        again = f"--sample {percentage(sample.part)} --seed {sample.seed}"
        console.print(f"The same sample again: {again}", style="dim", soft_wrap=True)
    if doubt is not None:
        console.print(f"{printable(doubt[:1].upper() + doubt[1:])}.", style="red", soft_wrap=True)
