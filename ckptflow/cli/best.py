"""`--best METRIC`: the checkpoint with the best value of a metric, in `ls` and `export`, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ckptflow.commit.retention import HasMetrics, Mode

BestBy = Annotated[
    str | None,
    typer.Option("--best", metavar="METRIC", help="By this metric, the best value first.", show_default=False),
]
BestMode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="min|max",
        help="Whether the lowest or the highest value is best. Default: the lowest of a loss or an error.",
        show_default=False,
    ),
]


def read_mode(metric: str | None, mode: str | None) -> Mode | None:
    """Which value is best, or None if no metric is given. Raises ValueError, in the words of the command line."""
    from ckptflow.commit.retention import choose_mode

    if metric is None:
        if mode is not None:
            raise ValueError("--mode says which value of a metric is best: give the metric as --best METRIC")
        return None
    if mode not in (None, "min", "max"):
        raise ValueError(f"--mode is min or max, not {mode!r}")
    try:
        return choose_mode(metric, mode)  # type: ignore[arg-type]  # one of them
    except ValueError as error:
        raise ValueError(
            f"--best {metric!r}: the name does not say which value is best: give --mode max if the highest is, "
            "--mode min if the lowest is"
        ) from error


def check_metric(metric: str, checkpoints: Sequence[HasMetrics]) -> None:
    """Raises ValueError for a metric by which none of the checkpoints, oldest first, is ranked, if there are any."""
    from ckptflow.commit.retention import newest_of_steps

    known = sorted({name for checkpoint in newest_of_steps(checkpoints) for name in checkpoint.metrics})
    if checkpoints and metric not in known:
        is_replaced = any(metric in checkpoint.metrics for checkpoint in checkpoints)
        why = " (those of the same step that are newer have not)" if is_replaced else ""
        there = f"there is {', '.join(known)}" if known else "there are none"
        raise ValueError(f"no checkpoint here has the metric {metric!r}{why}; {there}")


def best_url(url: str, metric: str, mode: Mode | None, storage_options: dict[str, Any]) -> str:
    """The URL of the best checkpoint in the root `url`. Raises `CheckpointNotFoundError` if there are none."""
    from ckptflow.commit.finding import no_checkpoint
    from ckptflow.commit.retention import best_first
    from ckptflow.reading import list_checkpoints, split_url, url_below

    found = list_checkpoints(url, storage_options=storage_options)
    if not found:
        raise no_checkpoint(url, None, ())
    check_metric(metric, found)
    return url_below(url, str(split_url(best_first(found, metric, mode)[0].url)[1]))
