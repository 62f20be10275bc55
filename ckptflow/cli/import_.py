"""`ckptflow import`: what something else saved becomes the first checkpoint of a run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ckptflow.cli import completion
from ckptflow.cli.options import Json, Options, OptionsJson, SourceOptions, other_options, print_json, storage_options
from ckptflow.cli.programs import Imports, Unsafe, load_object, prepare
from ckptflow.cli.render import bar_of_spans
from ckptflow.printable import printable


def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The file or folder to read: a path or any URL.", show_default=False)
    ],
    url: Annotated[str, typer.Argument(metavar="URL", help="The root of the new run.", show_default=False)],
    step: Annotated[int, typer.Option(min=0, metavar="N", help="The step of the checkpoint.")] = 0,
    format: Annotated[  # noqa: A002 - the name of the option
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="keras, h5, weights, saved-model, tf-checkpoint, hub or safetensors. Default: by SOURCE.",
            show_default=False,
            autocompletion=completion.import_formats,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="The model or state to fill, or a function that returns it.",
            show_default=False,
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="A warm start: take what matches --model; the rest keeps its initial values."),
    ] = False,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="A name, or a prefix of names up to a slash, and its name in --model; may be repeated.",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        bool,
        typer.Option("--optimizer/--no-optimizer", help="Whether to import the optimizer's state, if it matches."),
    ] = True,
    imports: Imports = None,
    unsafe: Unsafe = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
    source_options: SourceOptions = None,
) -> None:
    """Start a run from a Keras file, a SavedModel, a TensorFlow checkpoint, a Hub module or a safetensors file.

    The run's `restore_latest()` then continues from there. A complete Keras model needs no code. Weights alone are best
    loaded into the model that the run will train, given by --model; without it they have the names of the file.

    \b
    Examples:
      ckptflow import model.keras s3://bucket/run-8
      ckptflow import checkpoints/ckpt-1500 runs/8 --model my.train:build_model --step 1500
      ckptflow import backbone.keras runs/9 --model my.train:build_model --partial --rename model=model/backbone
    """
    from ckptflow.interop.import_ import import_model

    there = storage_options(options, options_json, url=url)
    prepare()
    with bar_of_spans("importing", "write"):
        checkpoint = import_model(
            source,
            url,
            format=format,
            model=load_object(model, is_made=True),
            step=step,
            partial=partial,
            rename=_renames(rename),
            optimizer=optimizer,
            imports=imports or (),
            unsafe=unsafe,
            source_options=other_options(source_options, "--source-options", there, url, source),
            storage_options=there,
        )
    about = dict(checkpoint.metadata["imported"])
    if as_json:
        print_json({"url": checkpoint.url, "step": checkpoint.step, "size_bytes": checkpoint.size_bytes, **about})
        return
    typer.echo(printable(f"{checkpoint.url}: step {checkpoint.step}, from {about['source']} ({about['format']})"))
    _print_lists(about)


def _print_lists(about: dict[str, Any]) -> None:
    for name, words in (("left_as_they_were", "kept its initial value"), ("not_used", "in the source and not used")):
        for tensor in about.get(name, ()):
            typer.echo(printable(f"  {words}: {tensor}"))


def _renames(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    renames: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise ValueError(f"--rename {pair!r} is not of the form OLD=NEW")
        if renames.setdefault(old, new) != new:
            raise ValueError(f"--rename gives two names for {old!r}")
    return renames
