"""`ckptflow pin` and `unpin`: what retention leaves alone, and by which names."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ckptflow.cli import completion
from ckptflow.cli.options import Json, Options, OptionsJson, Step, Url, print_json, storage_options
from ckptflow.printable import printable

StepToPin = Annotated[
    int,
    typer.Option(
        "--step",
        min=0,
        metavar="N",
        help="The checkpoint of this step.",
        show_default=False,
        autocompletion=completion.steps,
    ),
]


def pin(
    url: Url,
    step: StepToPin,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="A name for it, such as release.", show_default=False),
    ] = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Keep the checkpoint of a step until it is unpinned, whatever the retention policies say.

    A run has a name once: if another checkpoint had it, it loses the name and stays pinned.
    The exit code is 1 if there is no such checkpoint, or if it was pruned before it could be pinned. A job that is
    pruning at this very moment may miss the pin: `ckptflow ls` shows whether the checkpoint is still there.

    \b
    Examples:
      ckptflow pin s3://bucket/run-7 --step 1500
      ckptflow pin s3://bucket/run-7 --step 1500 --name release
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.pins import pin_checkpoint
    from ckptflow.storage.opening import open_store

    with closing(open_store(url, storage_options(options, options_json, url=url))) as store:
        moved_from = [folder.step for folder in pin_checkpoint(store, Summaries(store), step, name)]
    if as_json:
        print_json({"url": store.url, "step": step, "pinned": True, "name": name, "moved_from": moved_from})
        return
    typer.echo(printable(f"{store.url}: pinned step {step}" + (f" as {name}" if name is not None else "")))
    for other in moved_from:
        typer.echo(f"{name} was the name of step {other}, which is still pinned: unpin --step {other} to change that")


def unpin(
    url: Url,
    step: Step = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Remove this name. What had it stays pinned.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Let the retention policies decide about a checkpoint again. If the step is not pinned, nothing happens.

    Give --step or --name. The exit code is 1 if no pin has that name, or if no run is there.

    \b
    Examples:
      ckptflow unpin s3://bucket/run-7 --step 1500
      ckptflow unpin s3://bucket/run-7 --name release
    """
    from ckptflow.commit.finding import check_run
    from ckptflow.commit.pins import unpin_checkpoint, unpin_name
    from ckptflow.storage.opening import open_store

    if (step is None) == (name is None):
        raise ValueError("say which: --step N or --name NAME, one of the two")
    with closing(open_store(url, storage_options(options, options_json, url=url))) as store:
        check_run(store)
        steps = unpin_checkpoint(store, step) if step is not None else unpin_name(store, str(name))
    if as_json:
        print_json({"url": store.url, "steps": steps, "pinned": name is not None, "name": name})
        return
    if name is None:
        typer.echo(printable(f"{store.url}: " + (f"unpinned step {step}" if steps else f"step {step} was not pinned")))
        return
    typer.echo(printable(f"{store.url}: removed the name {name}"))
    for each in steps:
        typer.echo(f"step {each} is still pinned; unpin --step {each} to change that")
