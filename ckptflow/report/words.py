"""What the page says in words: numbers with their units, and the story of an incarnation. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime

from ckptflow.format.words import count_text, size_text
from ckptflow.report.lives import RunAttempt

_METRICS_SHOWN = 6
_NAME_CHARACTERS = 60


def seconds_text(seconds: float | None) -> str:
    """0.4 ms, 12 ms, 3.4 s, 2 min, 3.1 h."""
    if seconds is None:
        return "not recorded"
    if 0 < seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.01 else 0}f} ms"
    for unit, unit_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds:.3g} s"


def time_text(time: datetime | None) -> str:
    """In UTC, as all times on the page: it is read elsewhere."""
    return time.strftime("%Y-%m-%d %H:%M:%S") if time else "not known"


def number_text(value: float) -> str:
    return f"{value:.5g}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    shown = [f"{cut(name)} {number_text(value)}" for name, value in list(metrics.items())[:_METRICS_SHOWN]]
    more = len(metrics) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def cut(text: str, most: int = _NAME_CHARACTERS) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def spread_text(values: Sequence[float]) -> tuple[str, str]:
    """The middle one and the longest."""
    return seconds_text(statistics.median(values)), seconds_text(max(values))


def why_text(life: RunAttempt) -> str:
    """Why an incarnation started where it did, and what it left behind by that."""
    if life.claim_problem is not None and life.reason is None:
        return f"Not known: its claim {life.claim_problem}"
    where = f"step {life.restored_step:,}" if life.restored_step is not None else "a step that is not known"
    if life.reason is None:
        return "Not known: neither a manifest nor a claim of it can be read."
    if life.restored is None and life.reason not in ("start", "fresh"):
        meant = "to go back to an older step" if life.reason == "rollback" else "to go on from the newest checkpoint"
        return f"Meant {meant}; no manifest of it can be read, so from which is not known."
    said = {
        "start": "Began anew: nothing counted here yet.",
        "fresh": "Began anew with fresh=True: what was there before no longer counts.",
        "resume": f"Resumed from {where}.",
        "rollback": f"Rolled back to {where}.",
        "damage": f"Fell back to {where}: what was newer was damaged.",
        "outside": f"Took {where}, which did not count: nothing that counted could be restored.",
    }[life.reason]
    if life.given_up_steps and life.reason != "fresh":
        said += (
            f" Threw away {count_text(life.given_up_steps, 'committed step')}: incarnation {life.previous} had come to "
        )
        said += f"step {life.previous_step:,}."
    elif life.given_up_steps and life.previous_step is not None:
        said += f" Incarnation {life.previous} had come to step {life.previous_step:,}."
    elif life.given_up_steps is None and life.reason in ("rollback", "damage", "outside"):
        said += " How much that threw away is not known: it has been pruned since."
    return said


def saves_text(life: RunAttempt) -> str:
    """What is there of an incarnation's saves."""
    said = []
    if life.checkpoints == 1:
        said.append(f"1 checkpoint is there, step {life.first_step:,}.")
    elif life.checkpoints:
        said.append(f"{life.checkpoints:,} checkpoints are there, steps {life.first_step:,} to {life.last_step:,}.")
    else:
        said.append("None of its checkpoints is there.")
    if life.pruned:
        said.append(f"{life.pruned:,} more {'was' if life.pruned == 1 else 'were'} pruned, or more.")
    if life.partial:
        said.append(f"{count_text(life.partial, 'save')} not committed, {size_text(life.partial_bytes)}.")
    return " ".join(said)


def end_text(life: RunAttempt, following: RunAttempt | None) -> str:
    """How an incarnation ended: storage knows of the next one's claim, and of nothing else."""
    if life.next is None:
        return "The newest. Whether it still runs is not in storage."
    if following is None or following.claimed_at is None:
        return f"Ended: incarnation {life.next} took over; when is not known."
    if life.last_saved_at is None:
        return f"Ended: incarnation {life.next} took over on {time_text(following.claimed_at)}."
    after_s = (following.claimed_at - life.last_saved_at).total_seconds()
    if after_s < 0:
        return f"Ended: incarnation {life.next} took over before its last save, by the clocks."
    return f"Ended: incarnation {life.next} took over {seconds_text(after_s)} after its last save."
