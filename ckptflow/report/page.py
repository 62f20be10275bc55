"""The page of a run: one self-contained HTML string. Pure, except that it reads the templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ckptflow import __version__
from ckptflow.format.words import age_text, count_text, size_text
from ckptflow.report import figures, words
from ckptflow.report.chart import Chart, draw
from ckptflow.report.run import Run, SavedCheckpoint
from ckptflow.report.skeleton import render

GENERATOR = "ckptflow report"
CHECKPOINTS_SHOWN = 500
ROWS_OPENED = 40  # of a table that is folded from there on
FOLDERS_SHOWN = 200
METRICS_SHOWN = 6


@dataclass(frozen=True)
class Plot:
    """A chart with what is said about it."""

    title: str
    words: str
    place: Markup


@dataclass(frozen=True)
class Share:
    """How many checkpoints have the same retention decision."""

    what: str
    count: int
    size_bytes: int


@dataclass(frozen=True)
class Duration:
    """One duration over all saves of which it is known."""

    what: str
    count: int
    median: str
    longest: str


def make_page(run: Run) -> str:
    """The page as HTML. Every string of the run is text on it, never markup."""
    attempts = {attempt.number: attempt for attempt in run.incarnations}
    return render(
        "run.html",
        title=f"{words.cut(run.name)}: a run's checkpoints",
        generator=f"{GENERATOR} {__version__}",
        filters={
            "size": size_text,
            "time": words.time_text,
            "seconds": words.seconds_text,
            "metrics": words.metrics_text,
            "cut": words.cut,
            "why": words.why_text,
            "saves": words.saves_text,
            "state": words.state_text,
            "kept": lambda each: words.kept_text(each, run),
            "ended": lambda attempt: words.end_text(attempt, attempts.get(attempt.next) if attempt.next else None),
            "age": lambda time: age_text(time, run.made_at) if time else "at an unknown time",
        },
        run=run,
        version=__version__,
        attempts=run.incarnations[::-1][: figures.MAX_ATTEMPTS],
        timeline=_timeline(run),
        shares=_shares(run),
        shown=run.checkpoints[::-1][:CHECKPOINTS_SHOWN],
        metric_names=_metric_names(run.checkpoints),
        plots=_plots(run),
        save_plots=_save_plots(run),
        measured=_measured(run),
        opened=ROWS_OPENED,
        most_folders=FOLDERS_SHOWN,
        most_metrics=METRICS_SHOWN,
    )


def _timeline(run: Run) -> Plot | None:
    if not any(attempt.claimed_at or attempt.first_saved_at for attempt in run.incarnations):
        return None
    said = (
        "A solid line is an incarnation, from its start to its last save that is still stored. A dotted line leads "
        "from a restored checkpoint, if it is still stored, to the incarnation that restored it."
    )
    if any(attempt.pruned for attempt in run.incarnations):
        said += (
            " Ticks are pruned checkpoints that later manifests name: their steps are known, their times are not, so "
            "they are placed on the line of their incarnation."
        )
    count = len(run.checkpoints)
    said += f" {count:,} checkpoints are too many: some are drawn." if count > figures.MAX_POINTS else ""
    untimed = sum(each.created_at is None for each in run.checkpoints)
    said += f" {count_text(untimed, 'checkpoint')} not drawn: the time is not known." if untimed else ""
    return _plot("Steps over time", said, figures.timeline(run), "the table below has the same data")


def _plot(title: str, said: str, chart: Chart, label: str) -> Plot:
    return Plot(title, said, draw(chart, f"{title}; {label}"))


def _shares(run: Run) -> list[Share]:
    kinds = {True: "retained", None: "depends on the policies", False: "would be deleted"}
    found = []
    for keep, what in kinds.items():
        chosen = [each for each in run.checkpoints if each.keep is keep]
        if chosen:
            found.append(Share(what, len(chosen), sum(each.size_bytes for each in chosen)))
    return found


def _metric_names(checkpoints: Sequence[SavedCheckpoint]) -> list[str]:
    """First those that most checkpoints have."""
    counts: dict[str, int] = {}
    for checkpoint in checkpoints:
        for name in checkpoint.metrics:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])


def _plots(run: Run) -> list[Plot]:
    if not run.checkpoints:
        return []
    copied = any(each.copied_bytes for each in run.checkpoints)
    said = "Bytes of a checkpoint's shards." + (" What was not sent was copied inside the storage." if copied else "")
    found = [_plot("Size", said, figures.sizes(run), "by step")]
    for name in _metric_names(run.checkpoints)[:METRICS_SHOWN]:
        chart = figures.metric(run, name)
        if chart is None:
            continue
        having = [each for each in run.counting if math.isfinite(each.metrics.get(name, math.nan))]
        said = "No current checkpoint has it."
        if having:
            low = min(having, key=lambda each: each.metrics[name])
            high = max(having, key=lambda each: each.metrics[name])
            said = (
                f"Lowest {words.number_text(low.metrics[name])} at step {low.step:,}, "
                f"highest {words.number_text(high.metrics[name])} at step {high.step:,}."
            )
        title = words.cut(name)
        found.append(_plot(title, said, chart, f"by step. {said}"))
    return found


def _save_plots(run: Run) -> list[Plot]:
    found = []
    for title, said, chart in (
        ("How long saves took", "In the background, while training continued.", figures.durations(run)),
        ("How long saves blocked training", "The slowest worker of each save.", figures.stalls(run)),
    ):
        if chart is not None:
            found.append(_plot(title, said, chart, "the table above has the medians"))
    return found


def _measured(run: Run) -> list[Duration]:
    found = []
    for what, values in (
        ("from the call of save to the commit", [each.save_s for each in run.checkpoints]),
        ("until the slowest worker's shards were durable", [each.write_s for each in run.checkpoints]),
        ("training blocked, slowest worker", [each.blocked_s for each in run.checkpoints]),
    ):
        known = [value for value in values if value is not None]
        median, longest = words.spread_text(known) if known else ("not recorded", "not recorded")
        found.append(Duration(what, len(known), median, longest))
    return found
