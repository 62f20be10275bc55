"""`ckptflow ls`: what is in a root, and what of it is current."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.best import BestBy, BestMode, check_metric, read_mode
from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Url, print_json, storage_options
from ckptflow.cli.render import (
    WIDE,
    Justify,
    age_text,
    bar,
    make_console,
    metrics_text,
    pin_text,
    print_table,
    size_text,
    time_text,
    utc_text,
)
from ckptflow.cli.runs import RunSummary, links_in, read_runs, refused_runs, render_runs, runs_in, runs_to_json
from ckptflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.listing import Listing
    from ckptflow.format.layout import Folder
    from ckptflow.overview import Overview, Row
    from ckptflow.storage.store import Store

_TEXTS = ("created", "metrics", "state")
_STATES = {"newest": "newest", "counts": "current", "outside": "superseded", "partial": "incomplete"}  # in words


def ls(
    url: Url,
    show_all: Annotated[bool, typer.Option("--all", help="Also superseded checkpoints, and incomplete ones.")] = False,
    best: BestBy = None,
    mode: BestMode = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """List the current checkpoints of a run, oldest first, and what is wrong with them.

    Reads one listing and the manifests, no tensor data. "newest" is where a restart begins. A "superseded" checkpoint
    was committed and is not current: the run was rolled back or started over, or it is of another run. An "incomplete"
    one was never committed. Bytes that are "copied" were not sent: the storage copied them from an earlier checkpoint.

    If URL is above several runs, up to two levels deep, the runs are listed: the newest step of each, how many current
    checkpoints it has, what it takes in storage, and what is wrong with its newest checkpoint.

    With --best the checkpoint with the best value of a metric comes first.

    \b
    Examples:
      ckptflow ls s3://bucket/run-7 -o client_kwargs.endpoint_url=http://localhost:9000
      ckptflow ls s3://bucket/run-7 --best val_loss
      ckptflow ls s3://bucket
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.listing import sort_out
    from ckptflow.overview import counting_in, rank_rows
    from ckptflow.reading import split_url
    from ckptflow.storage.opening import open_store
    from ckptflow.storage.wrappers import list_partly

    by = read_mode(best, mode)
    root, folder = split_url(url)
    if folder is not None:
        raise ValueError(f"{url} is one checkpoint's folder; use `ckptflow show`, or list its root, {root}")
    there = storage_options(options, options_json, url=url)
    with closing(open_store(url, there)) as store:
        entries, cannot_be_listed = list_partly(store)
        runs = runs_in(entries)
        refused = refused_runs(runs, cannot_be_listed)
        names = {*runs, *refused}
        links = links_in(url, names) if "" not in names else []
        if links or (runs and "" not in names):
            if best is not None:
                raise ValueError(f"{store.url} holds {len(names)} runs: --best is for one of them")
            _show_runs(store.url, read_runs(url, runs, refused, there), len(names), links, as_json=as_json)
            return
        if cannot_be_listed:
            entries = store.list()  # of one run all is listed, or nothing
        summaries = Summaries(store, is_for_show=True)
        overview = look(store, summaries, show_all=show_all, first=sort_out(entries))
    if best is not None:
        check_metric(best, counting_in(overview.rows))
        overview = replace(overview, ranks=rank_rows(overview.rows, best, by))
    if as_json:
        print_json(to_json(overview))
    else:
        render(overview)
    if summaries.refused is not None:
        raise typer.Exit(exit_code(summaries.refused))


def _show_runs(url: str, found: list[RunSummary], count: int, links: list[str], *, as_json: bool) -> None:
    left_out = count - len(found)
    if as_json:
        print_json(runs_to_json(url, found, left_out, links))
    else:
        render_runs(found, left_out, links)
    refused = next((run.refused for run in found if run.refused is not None), None)
    if refused is not None:
        raise typer.Exit(exit_code(refused))


def look(store: Store, summaries: Summaries, *, show_all: bool, first: Listing | None = None) -> Overview:
    """Lists the root once, unless that has been done (`first`), and reads each manifest that `summaries` does not know.

    Raises `CheckpointNotFoundError` where a local root is not there at all (an object store cannot tell that from an
    empty one).
    """
    from ckptflow.commit.finding import check_root, read_counting
    from ckptflow.commit.freed import freed_bytes
    from ckptflow.commit.prune import doubt_of
    from ckptflow.overview import Overview, committed_row, partial_row, read_summaries

    listing, counting = read_counting(store, summaries, first)
    doubt = doubt_of(summaries)
    if not listing.folders:
        check_root(store)
    partial = sorted(set(listing.folders) - set(listing.committed))
    shown = sorted((*counting.folders, *(counting.outside if show_all else ())))
    with bar("reading manifests") as progress:
        progress.expect(len(shown))
        found = read_summaries(summaries, listing, shown, progress.advance)
    rows = [committed_row(folder, summary, listing, counting) for folder, summary in found.items()]
    if show_all:
        rows += [partial_row(folder, listing) for folder in partial]
    hidden = {} if show_all else {"outside": len(counting.outside), "partial": len(partial)}
    return Overview(
        url=store.url,
        run_id=counting.run_id,
        incarnation=listing.top_number,
        rows=tuple(sorted(rows, key=lambda row: row.folder)),
        hidden=hidden,
        doubt=doubt,
        stored_bytes=sum(freed_bytes(listing, listing.folders).values()),
    )


def to_json(overview: Overview) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    resumes_from = overview.resumes_from
    return {
        "url": overview.url,
        "run_id": overview.run_id,
        "incarnation": overview.incarnation,
        "resumes_from": str(resumes_from.folder) if resumes_from else None,
        "doubt": overview.doubt,
        "stored_bytes": overview.stored_bytes,
        "hidden": dict(overview.hidden),
        "checkpoints": [
            _row_to_json(row, overview.url) | {"rank": overview.ranks.get(row.folder)} for row in overview.best_first
        ],
    }


def _row_to_json(row: Row, root_url: str) -> dict[str, Any]:
    from ckptflow.format.values import to_json as value_to_json

    checkpoint = row.checkpoint
    return {
        "folder": str(row.folder),
        "url": f"{root_url}/{row.folder}",
        "step": row.folder.step,
        "incarnation": row.folder.incarnation,
        "state": row.state,
        "why": row.why,
        "problem": row.problem,
        "pinned": row.is_pinned,
        "pin_names": list(row.pin_names),
        "created_at": utc_text(checkpoint.created_at) if checkpoint else None,
        "size_bytes": row.size_bytes,
        "copied_bytes": row.copied_bytes,
        "shards": row.shard_count,
        "workers": row.worker_count,
        "metrics": dict(checkpoint.metrics) if checkpoint else {},
        "metadata": value_to_json(checkpoint.metadata, "metadata") if checkpoint else None,
    }


def render(overview: Overview) -> None:
    """Prints the table, or in words that there is nothing to put into one."""
    console = make_console()
    if overview.rows:
        _print_rows(console, overview.best_first, overview.ranks)
    else:
        what = "no checkpoint is current" if any(overview.hidden.values()) else "no checkpoint is here yet"
        console.print(f"{printable(overview.url)}: {what}")
    resumes_from = overview.resumes_from
    counting = [row for row in overview.rows if row.state in ("newest", "counts")]
    if overview.doubt is not None or (resumes_from is None and any(row.is_unread for row in counting)):
        why = f": {printable(overview.doubt)}" if overview.doubt else ", since it skips nothing that cannot be read"
        said = f"A restart would end with an error{why}."
        console.print(said, style="red", soft_wrap=True)
    elif counting and counting[-1] is not resumes_from:
        where = f"at step {resumes_from.folder.step}" if resumes_from else "nowhere: each one shows damage"
        console.print(f"The newest is damaged; a restart would begin {where}.", style="red")
    if any(row.copied_bytes for row in overview.rows):
        stored, listed = size_text(overview.stored_bytes), size_text(sum(row.size_bytes for row in overview.rows))
        console.print(f"Checkpoints of {listed}; the root takes {stored}, shared files counted once.")
    hidden = " and ".join(f"{count} {_STATES[state]}" for state, count in overview.hidden.items() if count)
    if hidden:
        console.print(f"Not shown: {hidden}. See --all.", style="dim")


def _print_rows(console: Console, rows: Sequence[Row], ranks: Mapping[Folder, int]) -> None:
    now = datetime.now(UTC)
    is_wide = console.width >= WIDE
    has_copies = any(row.copied_bytes for row in rows)
    names = [*(["best"] if ranks else []), "step", "inc", "created", "size"]
    names += [*(["copied"] if has_copies else []), "shards", *(["workers"] if is_wide else []), "metrics", "state"]
    columns: dict[str, Justify] = {name: "left" if name in _TEXTS else "right" for name in names}
    cells = [_cells(row, now, ranks, is_wide=is_wide, has_copies=has_copies) for row in rows]
    print_table(console, columns, cells, [_style(row) for row in rows])


def _cells(row: Row, now: datetime, ranks: Mapping[Folder, int], *, is_wide: bool, has_copies: bool) -> list[str]:
    created, metrics = "-", ""
    if row.checkpoint is not None:
        age = age_text(row.checkpoint.created_at, now)
        created = f"{time_text(row.checkpoint.created_at)} ({age})" if is_wide else age
        metrics = metrics_text(row.checkpoint.metrics)
    workers = ["-" if row.worker_count is None else str(row.worker_count)] if is_wide else []
    copied = [size_text(row.copied_bytes) if row.copied_bytes else "-"] if has_copies else []
    rank = [str(ranks.get(row.folder, "-"))] if ranks else []
    start = [*rank, str(row.folder.step), str(row.folder.incarnation), created, size_text(row.size_bytes), *copied]
    return [*start, str(row.shard_count), *workers, metrics, _state_text(row)]


def _state_text(row: Row) -> str:
    words = _STATES[row.state] + (f", {pin_text(row.pin_names)}" if row.is_pinned else "")
    return printable(": ".join(filter(None, (words, row.why, row.problem))))


def _style(row: Row) -> str:
    if row.problem:
        return "red"
    return {"newest": "green", "outside": "dim", "partial": "dim"}.get(row.state, "")
