"""The verbs and what they share: one typer application."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptflow import __version__
from ckptflow.cli import bench, copy, delete, diff, doctor, export, import_, ls, pin, prune, report, show, verify, watch
from ckptflow.cli.exits import exits_text
from ckptflow.cli.help import Verb, Verbs

app = typer.Typer(
    name="ckptflow",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` reports errors: one message, no traceback, nothing secret
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + exits_text(),
)
app.command(cls=Verb, short_help="List checkpoints.")(ls.ls)
app.command(cls=Verb, short_help="Show one checkpoint: its origin, its metrics, its tensors.")(show.show)
app.command(cls=Verb, short_help="Read every byte and check it.")(verify.verify)
app.command(cls=Verb, short_help="Compare two checkpoints tensor by tensor.")(diff.diff)
app.command(cls=Verb, short_help="Follow a live run.")(watch.watch)
app.command(cls=Verb, short_help="Write one HTML page of a run.")(report.report)
app.command(cls=Verb, short_help="Copy checkpoints to another storage.")(copy.copy)
app.command(cls=Verb, short_help="Show what would be deleted and why; --yes deletes.")(prune.prune)
app.command(cls=Verb, short_help="Show what deleting a checkpoint would do; --yes deletes.")(delete.delete)
app.command(cls=Verb, short_help="Protect a checkpoint from deletion.")(pin.pin)
app.command(cls=Verb, short_help="Remove that protection.")(pin.unpin)
app.command(cls=Verb, short_help="Test a storage for everything that checkpoints need.")(doctor.doctor)
app.command(cls=Verb, short_help="Write a checkpoint for Keras, TensorFlow, Hub, LiteRT, safetensors.")(export.export)
app.command(cls=Verb, short_help="Measure saves and restores on a storage; suggest settings.")(bench.bench)
app.command("import", cls=Verb, short_help="Start a run from a model or checkpoint of another format.")(import_.import_)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"ckptflow {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Inspect, verify, copy, prune and export checkpoints on a disk, in S3 or in Google Cloud Storage.

    \b
    Examples:
      ckptflow ls s3://bucket/run-7
      ckptflow show s3://bucket/run-7
      ckptflow verify s3://bucket/run-7
      ckptflow diff s3://bucket/run-7 --step 1000 --other-step 1500
      ckptflow report s3://bucket/run-7
      ckptflow copy s3://bucket/run-7 gs://copies/run-7
      ckptflow prune s3://bucket/run-7 --last 3 --best val_loss
      ckptflow export s3://bucket/run-7 model.keras
      ckptflow import model.keras s3://bucket/run-8
      ckptflow bench s3://bucket/scratch

    URL is the root of a run: a path, s3://…, gs://…, or any other that fsspec knows. Only import, pin, unpin,
    prune, delete, bench and doctor write to it.
    CKPTFLOW_TRACEBACK=1 in the environment shows where an error was raised.
    """
