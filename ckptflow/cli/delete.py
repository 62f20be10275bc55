"""`ckptflow delete`: single checkpoints go, by the rules of a prune by hand."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ckptflow.cli import completion
from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Url, print_json, storage_options
from ckptflow.cli.prune import EvenIfStarting, Yes, find_damage, render, to_json


def delete(
    url: Url,
    step: Annotated[
        list[int],
        typer.Option(
            "--step",
            min=0,
            metavar="N",
            help="Delete the checkpoint of this step; may be repeated.",
            show_default=False,
            autocompletion=completion.steps,
        ),
    ],
    yes: Yes = False,
    even_if_starting: EvenIfStarting = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Show what deleting the checkpoints of some steps would do; delete them with --yes, all or none.

    The newest checkpoint and pinned ones are refused. Superseded ones are deleted if no current one has that step.
    Before anything is deleted, every byte of the newest checkpoint is read: if it is damaged, nothing is deleted.

    \b
    Examples:
      ckptflow delete s3://bucket/run-7 --step 1500
      ckptflow delete s3://bucket/run-7 --step 1500 --step 2000 --yes
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.deletion import deletion_of
    from ckptflow.commit.finding import check_root
    from ckptflow.commit.prune import plan_by_hand, prune_by_hand
    from ckptflow.storage.opening import open_store

    with closing(open_store(url, storage_options(options, options_json, url=url))) as store:
        check_root(store)
        summaries = Summaries(store, is_for_show=not yes)
        plan = deletion_of(store.url, step)
        if yes:
            found = prune_by_hand(store, summaries, plan, find_damage, even_if_starting=even_if_starting)
        else:
            found = plan_by_hand(store, summaries, plan, even_if_starting=even_if_starting)
    if as_json:
        print_json(to_json(store.url, found, has_acted=yes))
    else:
        render(store.url, found, has_acted=yes)
    if summaries.refused is not None:
        raise typer.Exit(exit_code(summaries.refused))
