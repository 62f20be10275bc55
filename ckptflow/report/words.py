"""What the page says in words: numbers with their units, states, and what happened to an incarnation. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime

from ckptflow.format.words import count_text, size_text
from ckptflow.report.attempts import RunAttempt
from ckptflow.report.run import Run, SavedCheckpoint

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
    """The median and the longest."""
    return seconds_text(statistics.median(values)), seconds_text(max(values))


def state_text(state: str) -> str:
    """A checkpoint's state: `--json` has the names of the format, a reader gets plain ones."""
    return {"newest": "current, the newest", "counts": "current", "outside": "superseded"}[state]


def kept_text(each: SavedCheckpoint, run: Run) -> str:
    """Whether a prune by hand would retain it and why; nothing if only the job's policies would tell."""
    if each.keep is None:
        return ""
    reason = each.reason
    if each.folder == run.resumes_from and run.newest is not None and run.newest.folder != run.resumes_from:
        reason = "the newest that can be restored"  # the newest one is damaged, and retained as well
    return f"{'retained' if each.keep else 'would be deleted'}: {cut(reason, 300)}"


def why_text(attempt: RunAttempt) -> str:
    """Why an incarnation started where it did, and how much work that discarded."""
    if attempt.claim_problem is not None and attempt.reason is None:
        return f"Not known: its claim {attempt.claim_problem}"
    where = f"step {attempt.restored_step:,}" if attempt.restored_step is not None else "an unknown step"
    if attempt.reason is None:
        return "Not known: neither its claim nor a manifest of it can be read."
    if attempt.restored is None and attempt.reason not in ("start", "fresh"):
        meant = "roll back to an older step" if attempt.reason == "rollback" else "resume from the newest checkpoint"
        return f"Was to {meant}; no manifest of it can be read, so the step is not known."
    said = {
        "start": "Started from scratch: there was no current checkpoint yet.",
        "fresh": "Started from scratch with fresh=True: earlier checkpoints are superseded.",
        "resume": f"Resumed from {where}.",
        "rollback": f"Rolled back to {where}.",
        "damage": f"Fell back to {where}: newer checkpoints were damaged.",
        "outside": f"Restored {where}, which was superseded: no current checkpoint could be restored.",
    }[attempt.reason]
    if attempt.given_up_steps and attempt.reason != "fresh":
        said += (
            f" {count_text(attempt.given_up_steps, 'committed step')} discarded: incarnation {attempt.previous} had "
            f"reached step {attempt.previous_step:,}."
        )
    elif attempt.given_up_steps and attempt.previous_step is not None:
        said += f" Incarnation {attempt.previous} had reached step {attempt.previous_step:,}."
    elif attempt.given_up_steps is None and attempt.reason in ("rollback", "damage", "outside"):
        said += " How much that discarded is not known: it has been pruned since."
    return said


def saves_text(attempt: RunAttempt) -> str:
    """What is still stored of an incarnation's saves."""
    said = []
    if attempt.checkpoints == 1:
        said.append(f"1 checkpoint stored, step {attempt.first_step:,}.")
    elif attempt.checkpoints:
        said.append(
            f"{attempt.checkpoints:,} checkpoints stored, steps {attempt.first_step:,} to {attempt.last_step:,}."
        )
    else:
        said.append("No checkpoint of it is stored.")
    if attempt.pruned:
        said.append(f"At least {attempt.pruned:,} more pruned.")
    if attempt.partial:
        said.append(f"{count_text(attempt.partial, 'save')} not committed, {size_text(attempt.partial_bytes)}.")
    return " ".join(said)


def end_text(attempt: RunAttempt, following: RunAttempt | None) -> str:
    """How an incarnation ended: storage has the next one's claim, and nothing else."""
    if attempt.next is None:
        return "The newest. Storage does not tell whether it still runs."
    if following is None or following.claimed_at is None:
        return f"Ended: incarnation {attempt.next} took over at an unknown time."
    if attempt.last_saved_at is None:
        return f"Ended: incarnation {attempt.next} took over on {time_text(following.claimed_at)}."
    after_s = (following.claimed_at - attempt.last_saved_at).total_seconds()
    if after_s < 0:
        return f"Ended: incarnation {attempt.next} took over before its last save, according to the clocks."
    return f"Ended: incarnation {attempt.next} took over {seconds_text(after_s)} after its last save."
