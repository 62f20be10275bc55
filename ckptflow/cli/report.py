"""`ckptflow report`: a run as one page."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Url, print_json, storage_options
from ckptflow.cli.prune import Best, EverySecondsOption, EveryStepsOption, Last, check_metrics, read_policies
from ckptflow.cli.render import bar, make_console, size_text, utc_text
from ckptflow.errors import StorageError
from ckptflow.printable import printable
from ckptflow.storage.redaction import redact_url

if TYPE_CHECKING:
    from ckptflow.report.run import Run

_HEAD_BYTES = 4096  # of a page, in which it says what made it


def report(
    url: Url,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="FILE", help="Where the page goes. Default: NAME-report.html, in the current folder."
        ),
    ] = None,
    last: Last = None,
    best: Best = None,
    every_steps: EveryStepsOption = None,
    every_seconds: EverySecondsOption = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Write one HTML page about a run: its restarts, checkpoints, saves, tensors, and what is damaged or orphaned.

    The page is self-contained: it can be mailed, and opened without a network. Reads one listing, the manifests and
    the claims, no tensor data. With the retention options of `prune` the page tells what they would retain and why. An
    earlier page is replaced, any other file is not. With --json the data is printed and no page is written. The
    page needs `pip install 'ckptflow[report]'`.

    \b
    Examples:
      ckptflow report s3://bucket/run-7 --last 3 --best val_loss
      ckptflow report s3://bucket/run-7 --output /tmp/run-7.html
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.finding import check_root
    from ckptflow.reading import split_url
    from ckptflow.report.gather import read_run
    from ckptflow.report.run import name_of
    from ckptflow.storage.opening import open_store

    root, folder = split_url(url)
    if folder is not None:
        raise ValueError(f"{url} is one checkpoint's folder; use `ckptflow show`, or its root, {root}")
    policies = read_policies(last, best or (), every_steps, every_seconds)
    if not as_json:
        _check_extra()
    with closing(open_store(root, storage_options(options, options_json, url=url))) as store:
        check_root(store)
        path = output or f"{_file_name(name_of(redact_url(store.url)))}-report.html"
        if not as_json:
            _check_place(path)
        with bar("reading manifests and claims") as progress:
            now = datetime.now(UTC)
            summaries = Summaries(store, is_for_show=True)
            run = read_run(store, summaries, policies, now=now, expect=progress.expect, advance=progress.advance)
    check_metrics(policies, run.counting)
    if as_json:
        print_json(to_json(run))
    else:
        size_bytes = _write(path, run)
        make_console().print(f"{printable(path)}: {size_text(size_bytes)}", soft_wrap=True)
    if summaries.refused is not None:
        raise typer.Exit(exit_code(summaries.refused))


def to_json(run: Run) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    import msgspec

    found: dict[str, Any] = _with_time_texts(msgspec.to_builtins(run, builtin_types=(datetime,)))
    return found


def _with_time_texts(value: Any) -> Any:
    if isinstance(value, datetime):
        return utc_text(value)
    if isinstance(value, dict):
        return {key: _with_time_texts(each) for key, each in value.items()}
    return [_with_time_texts(each) for each in value] if isinstance(value, (list, tuple)) else value


def _check_extra() -> None:
    """Raises ImportError, which says what to install, before anything is read."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a page is made with jinja2 ({error}): pip install 'ckptflow[report]'; --json does not need it"
        ) from error


def _file_name(name: str) -> str:
    """A run's name as a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "run"


def _check_place(path: str) -> None:
    """Raises ValueError if something other than such a page is there: that is not to be replaced."""
    from ckptflow.report.page import GENERATOR

    try:
        if os.path.exists(path) and not (
            os.path.isfile(path) or os.path.isdir(path)
        ):  # to open a pipe is to wait for who writes to it
            raise ValueError(f"{path} is neither a file nor a folder; name another file with --output")
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(path) or "."):
            raise ValueError(f"{path}: there is no such directory") from None
        return
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; name another file with --output") from error
    if head and f'name="generator" content="{GENERATOR} '.encode() not in head:
        raise ValueError(f"{path} exists and is not a report; name another file with --output")


def _write(path: str, run: Run) -> int:
    """Writes the page, all of it or nothing, and returns its size in bytes."""
    from ckptflow.places.files import staged
    from ckptflow.report.page import make_page

    page = make_page(run).encode("utf-8", "backslashreplace")
    try:
        with staged(path, overwrite=True) as part, open(part, "xb") as file:
            file.write(page)
    except StorageError as error:
        raise ValueError(str(error)) from error
    return len(page)
