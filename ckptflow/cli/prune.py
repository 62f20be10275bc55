"""`ckptflow prune`: shows what retention would delete and why, and does it when told to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.cli.best import check_metric
from ckptflow.cli.exits import exit_code
from ckptflow.cli.options import Json, Options, OptionsJson, Url, print_json, seconds, storage_options
from ckptflow.cli.render import make_console, print_table, size_text
from ckptflow.printable import printable

if TYPE_CHECKING:
    from ckptflow.commit.prune import ByHand
    from ckptflow.commit.retention import HasMetrics, Policy
    from ckptflow.format.layout import Folder
    from ckptflow.storage.store import Store


Last = Annotated[int | None, typer.Option("--last", min=0, metavar="N", help="Keep the newest N.", show_default=False)]
Best = Annotated[
    list[str] | None,
    typer.Option(
        "--best",
        metavar="METRIC[:max|:min][:N]",
        help="Keep the N best (1) by a metric, the lowest unless :max is given; may be repeated.",
        show_default=False,
    ),
]
EveryStepsOption = Annotated[
    int | None,
    typer.Option("--every-steps", min=1, metavar="N", help="Keep one for every N steps.", show_default=False),
]
EverySecondsOption = Annotated[
    float | None, seconds("--every-seconds", min=1, help="Keep one for every S seconds.", show_default=False)
]

Yes = Annotated[bool, typer.Option("--yes", help="Delete; without it the plan is only shown.")]
EvenIfStarting = Annotated[
    bool,
    typer.Option(
        "--even-if-starting",
        help="Delete even if a job has started and saved nothing yet: only if you know that none starts or runs here.",
    ),
]


def prune(
    url: Url,
    last: Last = None,
    best: Best = None,
    every_steps: EveryStepsOption = None,
    every_seconds: EverySecondsOption = None,
    yes: Yes = False,
    even_if_starting: EvenIfStarting = False,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Show what would be deleted, with the reason for each folder; delete it with --yes.

    A checkpoint is retained if any of the policies retains it; so are the newest, pinned ones, and what a running job
    may need. Before anything is deleted, every byte of the newest checkpoint, and of those that --best retains, is
    read: if one is damaged, nothing is deleted. A job prunes by itself after each save; this is for a root that no job
    uses, or whose policies retained too much.

    \b
    Examples:
      ckptflow prune s3://bucket/run-7 --last 3 --best val_loss
      ckptflow prune s3://bucket/run-7 --last 3 --best accuracy:max:2 --yes
    """
    from ckptflow.commit.catalog import Summaries
    from ckptflow.commit.finding import check_root, list_counting
    from ckptflow.commit.prune import plan_by_hand, prune_by_hand
    from ckptflow.storage.opening import open_store

    policies = read_policies(last, best or (), every_steps, every_seconds)
    if not policies:
        raise ValueError("say what to retain: --last, --best, --every-steps or --every-seconds")
    with closing(open_store(url, storage_options(options, options_json, url=url))) as store:
        check_root(store)
        summaries = Summaries(store, is_for_show=not yes)
        check_metrics(policies, list_counting(store, summaries))
        if yes:
            found = prune_by_hand(store, summaries, policies, find_damage, even_if_starting=even_if_starting)
        else:
            found = plan_by_hand(store, summaries, policies, even_if_starting=even_if_starting)
    if as_json:
        print_json(to_json(store.url, found, has_acted=yes))
    else:
        render(store.url, found, has_acted=yes)
    if summaries.refused is not None:
        raise typer.Exit(exit_code(summaries.refused))


def find_damage(store: Store, folder: Folder) -> str | None:
    """What is wrong with the bytes of a checkpoint, in words, or None: reads all of them."""
    from ckptflow.commit.catalog import read_manifest
    from ckptflow.transfer.streams import pool_for_reading
    from ckptflow.transfer.verify import verify_checkpoint

    with closing(pool_for_reading(store)) as pool:
        problems = verify_checkpoint(store, folder, read_manifest(store, folder), pool)
    return "; ".join(map(str, problems[:3])) or None


def read_policies(
    last: int | None, best: Sequence[str], every_steps: int | None, every_seconds: float | None
) -> list[Policy]:
    """The policies that a command line names, perhaps none."""
    from ckptflow.commit.retention import KeepEvery, KeepLast

    policies: list[Policy] = [KeepLast(last)] if last is not None else []
    policies += [_best(text) for text in best]
    policies += [KeepEvery(steps=every_steps)] if every_steps else []
    policies += [KeepEvery(seconds=every_seconds)] if every_seconds else []
    return policies


def _best(text: str) -> Policy:
    from ckptflow.commit.retention import KeepBest

    metric, *rest = text.split(":")
    count = rest.pop() if rest and rest[-1].isdecimal() else "1"
    mode = rest.pop() if rest else None
    if rest or not metric or mode not in ("min", "max", None):
        raise ValueError(f"--best {text!r} is not of the form METRIC, METRIC:max, METRIC:min, METRIC:3 or METRIC:max:3")
    try:
        return KeepBest(metric, int(count), mode)  # type: ignore[arg-type]  # one of them
    except ValueError as error:
        raise ValueError(
            f"--best {text!r}: the name does not say which value is best: give {metric}:max if the highest is, "
            f"{metric}:min if the lowest is"
        ) from error


def check_metrics(policies: Sequence[Policy], checkpoints: Sequence[HasMetrics]) -> None:
    """A metric that no checkpoint has retains nothing: a typo must not cost the best. `checkpoints`: oldest first."""
    from ckptflow.commit.retention import KeepBest

    for policy in policies:
        if isinstance(policy, KeepBest):
            check_metric(policy.metric, checkpoints)


def to_json(url: str, found: ByHand, *, has_acted: bool) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    freed = found.freed_bytes
    return {
        "url": url,
        "deleted": has_acted,
        "frees_bytes": sum(freed.values()),
        "refused": found.why_not,
        "folders": [
            {
                "folder": str(decision.folder),
                "step": decision.folder.step,
                "incarnation": decision.folder.incarnation,
                "size_bytes": found.size_bytes(decision.folder),
                "frees_bytes": freed.get(decision.folder, 0),
                "keep": decision.keep,
                "reason": decision.reason,
            }
            for decision in found.plan.decisions
        ],
    }


def render(url: str, found: ByHand, *, has_acted: bool) -> None:
    """Prints a line for each folder, and the sum."""
    console = make_console()
    decisions, freed = found.plan.decisions, found.freed_bytes
    if not decisions:
        console.print(f"{printable(url)}: nothing is here")
        return
    rows = [
        [
            str(decision.folder.step),
            str(decision.folder.incarnation),
            size_text(found.size_bytes(decision.folder)),
            "" if decision.keep else size_text(freed[decision.folder]),
            "keep" if decision.keep else "delete",
            decision.reason,
        ]
        for decision in decisions
    ]
    columns = {"step": "right", "inc": "right", "size": "right", "frees": "right", "what": "left", "why": "left"}
    print_table(console, columns, rows, ["" if decision.keep else "red" for decision in decisions])  # type: ignore[arg-type]
    count = len(found.plan.deletions)
    what = "deleted" if has_acted else "would be deleted"
    console.print(f"{count} of {len(decisions)} {what}: {size_text(sum(freed.values()))}")
    if found.why_not and not has_acted:
        console.print(f"Now it would be refused: {found.why_not}", style="red", soft_wrap=True)
    elif count and not has_acted:
        console.print("Nothing was deleted. Add --yes to do it.", style="dim")
