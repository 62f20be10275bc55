"""`ckptflow export`: a checkpoint becomes a file or folder that other programs read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ckptflow.cli import completion
from ckptflow.cli.best import BestMode, best_url, read_mode
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
from ckptflow.cli.programs import Imports, Unsafe, load_object, prepare
from ckptflow.cli.render import bar_of_spans
from ckptflow.printable import printable

_FORMATS = "keras, h5, weights, saved-model, tf-checkpoint, hub, tflite or safetensors"


def export(
    url: UrlOrFolder,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="The file or folder to write, anywhere.", show_default=False)
    ],
    step: Step = None,
    best: Annotated[
        str | None,
        typer.Option("--best", metavar="METRIC", help="The checkpoint with the best value of it.", show_default=False),
    ] = None,
    mode: BestMode = None,
    format: Annotated[  # noqa: A002 - the name of the option
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"{_FORMATS}. Default: by the suffix.",
            show_default=False,
            autocompletion=completion.export_formats,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="The model, or a function that returns it, if the manifest cannot tell how to build it.",
            show_default=False,
        ),
    ] = None,
    entry: Annotated[
        str | None, typer.Option(metavar="PATH", help="Which model, if the state has several.", show_default=False)
    ] = None,
    signatures: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="A dict of tf.functions, or a function from the model to one: the signatures of a SavedModel.",
            show_default=False,
        ),
    ] = None,
    imports: Imports = None,
    unsafe: Unsafe = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DESTINATION.")] = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
    destination_options: DestinationOptions = None,
) -> None:
    """Export a checkpoint for Keras, TensorFlow, TensorFlow Hub, serving, LiteRT or any safetensors reader.

    The format follows from the suffix: .keras, .h5, .weights.h5, .ckpt (tf-checkpoint), .tar.gz (hub), .tflite,
    .safetensors. The model is built from what the checkpoint says of it; no code is needed but for custom classes.

    \b
    Examples:
      ckptflow export s3://bucket/run-7 model.keras
      ckptflow export runs/7 gs://bucket/serving/7 --format saved-model --step 1500
      ckptflow export runs/7 model.tflite --import my.layers
      ckptflow export runs/7 best.keras --best val_accuracy --mode max
    """
    from ckptflow.format.words import some_of
    from ckptflow.interop.export import export_checkpoint
    from ckptflow.reading import open_checkpoint

    there = storage_options(options, options_json, url=url)
    by = read_mode(best, mode)
    if best is not None:
        if step is not None:
            raise ValueError("--step and --best both say which checkpoint: give one of them")
        url = best_url(url, best, by, there)
    prepare()
    with bar_of_spans("exporting", "read") as progress:
        if progress.is_seen:
            with open_checkpoint(url, step, storage_options=there) as opened:
                progress.expect(opened.checkpoint.size_bytes)
        done = export_checkpoint(
            url,
            destination,
            format=format,
            step=step,
            model=load_object(model, is_made=True),
            signatures=load_object(signatures),
            entry=entry,
            imports=imports or (),
            unsafe=unsafe,
            overwrite=overwrite,
            storage_options=there,
            destination_options=other_options(destination_options, "--destination-options", there, url, destination),
        )
    if as_json:
        print_json(asdict(done))
        return
    typer.echo(printable(f"{done.url}: {done.format} of step {done.step}, {done.checkpoint_url}"))
    if done.left_out:
        typer.echo(
            printable(f"left out, since the format or the model has no place for it: {some_of(done.left_out, 20)}")
        )
