"""`ckptflow copy`: checkpoints from one storage to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.amounts import read_rate
from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import (
    DestinationOptions,
    Json,
    Options,
    OptionsJson,
    Step,
    UrlOrFolder,
    other_options,
    print_json,
    storage_options,
)
from ckptflow.cli.render import bar, make_console, size_text
from ckptflow.cli.verify import choose, root_and_folder
from ckptflow.errors import (
    CheckpointGoneError,
    CorruptCheckpointError,
    StorageError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.printable import printable

if TYPE_CHECKING:
    from ckptflow.commit.copying import Copied


def copy(
    url: UrlOrFolder,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="The root to copy to, on any storage.", show_default=False)
    ],
    step: Step = None,
    copy_all: Annotated[bool, typer.Option("--all", help="Every current checkpoint, not only the newest.")] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            max=128,
            metavar="N",
            help="Files at once. Default: as many as make it faster.",
            show_default=False,
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            metavar="RATE",
            help="Send at most so many bytes per second in all, such as 100MB/s.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
    destination_options: DestinationOptions = None,
) -> None:
    """Copy checkpoints to another storage; a job can resume from the copy.

    Every byte is checked when it is read, and read back from the destination; the manifest is written last, so a copy
    is committed only when it is complete. After an interruption run it again: what is there and correct is not sent
    again.
    DESTINATION must be empty, or an earlier copy of the same run that no job has started from.
    With --all, a checkpoint that is damaged, or that the storage does not return, is named and left out, and the others
    are copied: the exit code is then 1, or 3 or 4.

    \b
    Examples:
      ckptflow copy s3://bucket/run-7 /data/run-7
      ckptflow copy runs/7 gs://bucket/run-7 --all --bandwidth 100MB/s
    """
    from ckptflow.commit.catalog import MAX_UNANSWERED, Summaries
    from ckptflow.commit.copying import CopySource, check_destination, copy_checkpoint
    from ckptflow.commit.prune import doubt_of
    from ckptflow.storage.opening import local_path, open_store
    from ckptflow.transfer.bandwidth import Bandwidth

    limit = Bandwidth(read_rate(bandwidth, "--bandwidth")) if bandwidth is not None else None
    root, folder = root_and_folder(url, step, is_all=copy_all)
    here = storage_options(options, options_json, url=url)
    there = other_options(destination_options, "--destination-options", here, url, destination)
    with closing(CopySource(open_store(root, here))) as source, closing(open_store(destination, there)) as target:
        summaries = Summaries(source, is_for_show=copy_all)
        wanted = choose(source, summaries, folder, step)
        check_destination(
            source, target, is_elsewhere=local_path(destination) is None and place_in(here) != place_in(there)
        )
        copied, gone, damaged = [], [], {}
        unread: dict[str, StorageError] = {}
        unanswered = 0
        with bar("copying", is_bytes=True) as progress:
            progress.expect(sum(wanted.values()))
            for each in wanted:
                try:
                    copied.append(
                        copy_checkpoint(
                            source, target, each, progress.advance, concurrency=concurrency, bandwidth=limit
                        )
                    )
                except CheckpointGoneError:
                    if len(wanted) == 1:
                        raise
                    gone.append(str(each))
                except (CorruptCheckpointError, UnknownVersionError) as error:
                    if not copy_all:
                        raise
                    damaged[str(each)] = str(error).removeprefix(f"{source.url}/{each}/")
                except StorageError as error:
                    unanswered = unanswered + 1 if isinstance(error, StorageUnavailableError) else 0
                    if not copy_all or error is not source.refused or unanswered > MAX_UNANSWERED:
                        raise
                    unread[str(each)] = error
                else:
                    unanswered = 0
    doubt = doubt_of(summaries)
    if as_json:
        print_json(to_json(source.url, target.url, copied, gone, damaged, unread, doubt))
    else:
        render(target.url, copied, gone, damaged, unread, doubt)
    if damaged:
        raise typer.Exit(1)
    refused = next(iter(unread.values()), summaries.refused)
    if refused is not None:
        raise typer.Exit(exit_code(refused))


_OF_PLACES = ("account", "endpoint", "host", "port", "profile", "project", "region", "url")


def place_in(options: Mapping[str, Any]) -> dict[str, Any]:
    """What in storage options may say which server is meant, at any depth: not limits of time, keys and the like."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= place_in(value)
        elif any(word in name for word in _OF_PLACES):
            found[name] = value
    return found


def to_json(
    url: str,
    destination: str,
    copied: Sequence[Copied],
    gone: Sequence[str],
    damaged: Mapping[str, str],
    unread: Mapping[str, StorageError],
    doubt: str | None,
) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    return {
        "url": url,
        "destination": destination,
        "checkpoints": [
            {
                "folder": str(each.folder),
                "step": each.folder.step,
                "size_bytes": each.size_bytes,
                "sent_bytes": each.sent_bytes,
            }
            for each in copied
        ],
        "gone": list(gone),
        "damaged": [{"folder": folder, "problem": problem} for folder, problem in damaged.items()],
        "unread": [{"folder": folder, "problem": str(error)} for folder, error in unread.items()],
        "doubt": doubt,
    }


def render(
    destination: str,
    copied: Sequence[Copied],
    gone: Sequence[str],
    damaged: Mapping[str, str],
    unread: Mapping[str, StorageError],
    doubt: str | None,
) -> None:
    """Prints a line for each checkpoint."""
    console = make_console()
    for each in copied:
        there = each.size_bytes - each.sent_bytes
        already = f", {size_text(there)} of it were there already" if there else ""
        console.print(f"{printable(destination)}/{each.folder}  {size_text(each.size_bytes)}{already}", soft_wrap=True)
    for folder in gone:
        console.print(f"{folder}  pruned meanwhile", style="dim")
    for folder, problem in damaged.items():
        console.print(f"{folder}  not copied: {printable(problem)}", style="red", soft_wrap=True)
    for folder, error in unread.items():
        console.print(f"{folder}  not copied, cannot be read: {printable(str(error))}", style="red", soft_wrap=True)
    if doubt is not None:
        console.print(f"{printable(doubt[:1].upper() + doubt[1:])}.", style="red", soft_wrap=True)
