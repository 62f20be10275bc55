"""`ckptflow watch`: what happens in a run, a line for each thing as it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Url, print_json, seconds, storage_options
from ckptflow.cli.render import count_text, make_console, metrics_text, size_text, time_text, utc_text
from ckptflow.printable import printable

if TYPE_CHECKING:
    from ckptflow.format.layout import Folder
    from ckptflow.overview import Overview, Row


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened between two looks. `what`: "started", "writing", "committed", "pruned", "damaged",
    "unread"."""

    what: str
    folder: str | None
    step: int | None
    incarnation: int
    detail: str
    size_bytes: int | None = None
    copied_bytes: int | None = None  # of a commit: bytes of `size_bytes` that were copied inside the storage
    created_at: str | None = None  # of a commit, ISO 8601 in UTC: it may be long ago


def watch(
    url: Url,
    every: Annotated[float, seconds(min=0.2, metavar="SECONDS", help="Seconds between checks.")] = 5,
    until_step: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Exit when this step, or a later one, is committed.", show_default=False),
    ] = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Follow a live run: starts, saves under way, commits, what is pruned, what is damaged. Ctrl-C ends it.

    Prints what is there, each commit with its own time, then each change. A check takes one listing, and the manifests
    of what is new; nothing is written, and the job is not disturbed. With --json, one object per line. What comes and
    goes between two checks is not seen. If a file that decides which checkpoints are current cannot be read,
    --until-step ends it with exit code 3 or 4.

    \b
    Example:
      ckptflow watch s3://bucket/run-7 --until-step 10000
    """
    from ckptflow.cli.ls import look
    from ckptflow.commit.catalog import Summaries
    from ckptflow.storage.opening import open_store

    before: Overview | None = None
    with closing(open_store(url, storage_options(options, options_json, url=url))) as store:
        summaries = Summaries(
            store, is_for_show=True
        )  # of the whole watch: a manifest that was read says the same for ever
        while True:
            now = look(store, summaries, show_all=True)
            for change in changes(before, now):
                _say(change, as_json=as_json)
            before = now
            if until_step is not None and has_reached(now, until_step):
                if now.doubt is not None and summaries.refused is not None:
                    raise typer.Exit(exit_code(summaries.refused))
                return
            time.sleep(every)


def has_reached(now: Overview, step: int) -> bool:
    """Whether the run has: what a rollback superseded is no longer part of it. Pure."""
    counting = (row for row in now.rows if row.state in ("newest", "counts"))
    return any(row.checkpoint is not None and row.folder.step >= step for row in counting)


def changes(before: Overview | None, now: Overview) -> Iterator[Change]:
    """What is different, oldest first. Pure."""
    if (before is None or now.incarnation != before.incarnation) and now.incarnation:
        yield Change("started", None, None, now.incarnation, f"incarnation {now.incarnation} has claimed the root")
    if now.doubt is not None and (before is None or now.doubt != before.doubt):
        yield Change("unread", None, None, now.incarnation, now.doubt)
    old: dict[Folder, Row] = {row.folder: row for row in before.rows} if before else {}
    new = {row.folder: row for row in now.rows}
    for folder in sorted(old.keys() - new.keys()):
        yield Change("pruned", str(folder), folder.step, folder.incarnation, "gone")
    for folder, row in new.items():
        was = old.get(folder)
        if row.checkpoint is not None and (was is None or was.checkpoint is None):
            detail = count_text(row.shard_count, "shard")
            detail += f" by {count_text(row.worker_count, 'worker')}" if row.worker_count else ""
            detail += f", {size_text(row.copied_bytes)} copied" if row.copied_bytes else ""
            change = _change("committed", row, f"{detail}  {metrics_text(row.checkpoint.metrics)}".rstrip())
            yield replace(change, copied_bytes=row.copied_bytes, created_at=utc_text(row.checkpoint.created_at))
        elif row.state == "partial" and (was is None or was.size_bytes != row.size_bytes):
            yield _change("writing", row, row.why or "")
        if row.problem and (was is None or was.problem != row.problem):
            yield _change("unread" if row.is_unread else "damaged", row, row.problem)


def _change(what: str, row: Row, detail: str) -> Change:
    return Change(what, str(row.folder), row.folder.step, row.folder.incarnation, detail, row.size_bytes)


def _say(change: Change, *, as_json: bool) -> None:
    seen_at = datetime.now(UTC)
    if as_json:
        import msgspec

        line: dict[str, Any] = {"seen_at": seen_at.isoformat(timespec="seconds"), **msgspec.to_builtins(change)}
        print_json(line, indent=-1)
        return
    styles = {"committed": "green", "damaged": "red", "unread": "red", "pruned": "dim", "writing": "dim"}
    size = f"  {size_text(change.size_bytes)}" if change.size_bytes is not None else ""
    step = f"  step {change.step}" if change.step is not None else ""
    happened_at = datetime.fromisoformat(change.created_at) if change.created_at else seen_at
    text = f"{time_text(happened_at)}  {change.what:<9}{step}{size}  {printable(change.detail)}"
    make_console().print(text, style=styles.get(change.what), soft_wrap=True)
    sys.stdout.flush()
