"""The verbs and what they share: one typer application."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptflow.cli import ls, show, verify
from ckptflow.cli.exits import exits_text

app = typer.Typer(
    name="ckptflow",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` reports errors: one message, no traceback, nothing secret
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + exits_text(),
)
app.command(short_help="What is there, and what of it counts.")(ls.ls)
app.command(short_help="Everything that one checkpoint's manifest says.")(show.show)
app.command(short_help="Read every byte and check it.")(verify.verify)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from ckptflow import __version__

        typer.echo(f"ckptflow {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Look at checkpoints on a disk, in S3 or in Google Cloud Storage.

    \b
    Examples:
      ckptflow ls s3://bucket/run-7
      ckptflow show s3://bucket/run-7
      ckptflow verify s3://bucket/run-7

    URL is a run's root: a path, s3://…, gs://…, or any other that fsspec knows. Nothing here writes to it.
    CKPTFLOW_TRACEBACK=1 in the environment shows where an error was raised.
    """
