"""`ckptflow pin` and `unpin`: what retention leaves alone."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ckptflow.cli import completion
from ckptflow.cli.options import Json, Options, OptionsJson, Url, print_json, storage_options
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
    url: Url, step: StepToPin, as_json: Json = False, options: Options = None, options_json: OptionsJson = None
) -> None:
    """Keep the checkpoint of a step until it is unpinned, whatever the retention policies say.

    Ends with 1 where no such checkpoint is there, or it was pruned before the pin was. A job that is pruning at this
    very moment may not see the pin: `ckptflow ls` shows whether it is there afterwards.

    \b
    Example:
      ckptflow pin s3://bucket/run-7 --step 1500
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.pins import pin_checkpoint
    from ckptflow.storage.opening import open_store

    with closing(open_store(url, storage_options(options, options_json))) as store:
        pin_checkpoint(store, Summaries(store), step)
    _say(store.url, step, is_pinned=True, as_json=as_json)


def unpin(
    url: Url, step: StepToPin, as_json: Json = False, options: Options = None, options_json: OptionsJson = None
) -> None:
    """Let the retention policies decide about a checkpoint again. If it is not pinned, nothing happens.

    \b
    Example:
      ckptflow unpin s3://bucket/run-7 --step 1500
    """
    from ckptflow.commit.pins import unpin_checkpoint
    from ckptflow.storage.opening import open_store

    with closing(open_store(url, storage_options(options, options_json))) as store:
        unpin_checkpoint(store, step)
    _say(store.url, step, is_pinned=False, as_json=as_json)


def _say(url: str, step: int, *, is_pinned: bool, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "step": step, "pinned": is_pinned})
    else:
        typer.echo(printable(f"{url}: {'pinned' if is_pinned else 'unpinned'} step {step}"))
