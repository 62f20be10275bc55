"""The page of a run: one HTML string that needs nothing else. Pure, but for the templates that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ckptflow import __version__
from ckptflow.format.words import age_text, size_text
from ckptflow.report import figures as drawn
from ckptflow.report import words
from ckptflow.report.run import Run, SavedCheckpoint
from ckptflow.report.skeleton import Figures, render

GENERATOR = "ckptflow report"
CHECKPOINTS_SHOWN = 500
ROWS_OPENED = 40  # of a table that is folded from there on
FOLDERS_SHOWN = 200
METRICS_SHOWN = 6


@dataclass(frozen=True)
class Plot:
    """A figure with what is said of it."""

    title: str
    words: str
    place: Markup


@dataclass(frozen=True)
class Share:
    """So many checkpoints of which retention decides alike."""

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
    figures = Figures()
    lives = {life.number: life for life in run.incarnations}
    return render(
        "run.html",
        figures,
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
            "ended": lambda life: words.end_text(life, lives.get(life.next) if life.next else None),
            "age": lambda time: age_text(time, run.made_at) if time else "at a time that is not known",
        },
        run=run,
        version=__version__,
        lives=run.incarnations[::-1][: drawn.MAX_LIVES],
        timeline=_timeline(run, figures),
        shares=_shares(run),
        shown=run.checkpoints[::-1][:CHECKPOINTS_SHOWN],
        metric_names=_metric_names(run.checkpoints),
        plots=_plots(run, figures),
        save_plots=_save_plots(run, figures),
        measured=_measured(run),
        opened=ROWS_OPENED,
        most_folders=FOLDERS_SHOWN,
        most_metrics=METRICS_SHOWN,
    )


def _timeline(run: Run, figures: Figures) -> Plot | None:
    if not any(life.claimed_at or life.first_saved_at for life in run.incarnations):
        return None
    count = len(run.checkpoints)
    few = f" {count:,} checkpoints are too many: some are drawn." if count > drawn.MAX_POINTS else ""
    untimed = sum(each.created_at is None for each in run.checkpoints)
    few += f" Not drawn, since no time of them is known: {untimed:,}." if untimed else ""
    said = (
        "A line is an incarnation as its checkpoints show it, from its start to its last save; a dotted line leads "
        f"from the checkpoint that was restored, where that is still there, to the incarnation that did.{few}"
    )
    return Plot("Steps over time", said, figures.place(drawn.timeline(run), "Steps over time; told in the table below"))


def _shares(run: Run) -> list[Share]:
    kinds = {True: "kept", None: "up to the policies", False: "would be deleted"}
    found = []
    for keep, what in kinds.items():
        chosen = [each for each in run.checkpoints if each.keep is keep]
        if chosen:
            found.append(Share(what, len(chosen), sum(each.size_bytes for each in chosen)))
    return found


def _metric_names(checkpoints: Sequence[SavedCheckpoint]) -> list[str]:
    """Those that most checkpoints have first."""
    counts: dict[str, int] = {}
    for checkpoint in checkpoints:
        for name in checkpoint.metrics:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])


def _plots(run: Run, figures: Figures) -> list[Plot]:
    if not run.checkpoints:
        return []
    copied = any(each.copied_bytes for each in run.checkpoints)
    said = "Bytes of a checkpoint's shards." + (" What was not sent was copied inside the storage." if copied else "")
    found = [Plot("Size", said, figures.place(drawn.sizes(run), "Size by step"))]
    for name in _metric_names(run.checkpoints)[:METRICS_SHOWN]:
        having = [each for each in run.counting if name in each.metrics]
        said = "No checkpoint that counts has it."
        if having:
            low = min(having, key=lambda each: each.metrics[name])
            high = max(having, key=lambda each: each.metrics[name])
            said = (
                f"Lowest {words.number_text(low.metrics[name])} at step {low.step:,}, "
                f"highest {words.number_text(high.metrics[name])} at step {high.step:,}."
            )
        title = words.cut(name)
        found.append(Plot(title, said, figures.place(drawn.metric(run, name), f"{title} by step. {said}")))
    return found


def _save_plots(run: Run, figures: Figures) -> list[Plot]:
    found = []
    for title, said, figure in (
        ("How long saves took", "In the background, while training went on.", drawn.durations(run)),
        ("How long saves held training up", "Of each save the worker that was held up longest.", drawn.stalls(run)),
    ):
        if figure is not None:
            found.append(Plot(title, said, figures.place(figure, f"{title}; told in the table")))
    return found


def _measured(run: Run) -> list[Duration]:
    found = []
    for what, values in (
        ("from the call of save to the commit", [each.save_s for each in run.checkpoints]),
        ("until the slowest worker's shards were durable", [each.write_s for each in run.checkpoints]),
        ("training held up, the worker held up longest", [each.blocked_s for each in run.checkpoints]),
    ):
        known = [value for value in values if value is not None]
        median, longest = words.spread_text(known) if known else ("not recorded", "not recorded")
        found.append(Duration(what, len(known), median, longest))
    return found
