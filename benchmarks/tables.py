"""Tables of a run for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.experiments import WORKS, link_name
from benchmarks.results import Result, Run

_MIB = 2**20
# Measure, heading, factor, digits.
_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("blocked_s", "blocked ms", 1e3, 1),
    ("durable_s", "durable s", 1, 3),
    ("save_cpu_s", "save CPU-s", 1, 2),
    ("peak_save_bytes", "peak MiB", 1 / _MIB, 0),
    ("restore_cold_s", "cold restore s", 1, 3),
    ("restore_warm_s", "warm restore s", 1, 3),
    ("restore_cpu_s", "restore CPU-s", 1, 2),
    ("restore_read_bytes", "restore reads MiB", 1 / _MIB, 0),
    ("peak_restore_bytes", "peak MiB", 1 / _MIB, 0),
    ("save_requests", "save requests", 1, 0),
    ("step_s", "step ms", 1e3, 1),
    ("slowdown", "slowed by", 100, 1),
    ("commit_after_last_shard_s", "commit after last shard ms", 1e3, 1),
    ("most_written_share", "most share", 1, 3),
    ("least_written_share", "least share", 1, 3),
)
_Column = tuple[tuple[str, ...], str, float, int]
# Of saves that copy what has not changed: measures that stand together in a cell; of some
# the first save's, then the others' median.
_UNCHANGED_COLUMNS: tuple[_Column, ...] = (
    (("save_1_s", "save_2_s", "save_3_s"), "saves 1/2/3 s", 1, 2),
    (("durable_s",), "median of 2 on", 1, 3),
    (("save_restarted_s",), "after restart", 1, 2),
    (("blocked_s",), "blocked ms", 1e3, 1),
    (("first save_sent_bytes", "save_sent_bytes"), "sent MiB", 1 / _MIB, 1),
    (("save_copied_bytes",), "copied", 1 / _MIB, 1),
    (("stored_bytes",), "stored", 1 / _MIB, 0),
    (("first save_requests", "save_requests"), "requests", 1, 0),
    (("peak_save_bytes",), "peak MiB", 1 / _MIB, 0),
)


def print_run(console: Console, run: Run) -> None:
    """One table for each point; a peer without figures says why."""
    console.print(machine.one_line(run.machine))

    def point(result: Result) -> tuple[str, str, int, int, str]:
        variant = link_name(result.parameters) if "link" in result.parameters else result.parameters.get("threads", "")
        variant = WORKS.get(result.parameters.get("work", ""), variant)
        return (result.experiment, result.storage, result.size_bytes, result.variable_count, str(variant))

    for key, group in itertools.groupby(run.results, key=point):
        experiment, storage, size_bytes, count, variant = key
        title = f"{experiment}, {storage}: {size_bytes / _MIB:,.0f} MiB"
        title += f" in {count:,} variables" if count else ""
        if variant:
            title += f", {variant} thread(s)" if experiment == "training" else f", {variant}"
        console.print(_table(title, list(group)))


def _table(title: str, results: list[Result]) -> Table:
    is_unchanged = results[0].experiment == "unchanged"
    plain: list[_Column] = [((measure,), heading, factor, digits) for measure, heading, factor, digits in _COLUMNS]
    known = _UNCHANGED_COLUMNS if is_unchanged else plain
    columns = [column for column in known if any(column[0][-1] in result.measures for result in results)]
    rows, missing = [], []
    for result in results:
        name = f"{result.worker_count}, {result.peer}" if result.experiment == "workers" else result.peer
        cells = [_cell(result, measures, factor, digits) for measures, _, factor, digits in columns]
        rows.append((name, cells, "dim" if result.is_limit or result.error else ""))
        if result.error:
            missing.append(f"{name}: {result.error}")
    table = Table(title=title, title_justify="left", caption="\n".join(missing), caption_justify="left")
    table.add_column("workers" if results[0].experiment == "workers" else "peer", no_wrap=True)
    for measures, heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=len(measures) > 1)
    for name, cells, style in rows:
        table.add_row(name, *cells, style=style)
    return table


def _cell(result: Result, measures: Sequence[str], factor: float, digits: int) -> str:
    values = [value for measure in measures if (value := _value(result, measure)) is not None]
    return "/".join(f"{value * factor:,.{digits}f}" for value in values)


def _value(result: Result, measure: str) -> float | None:
    stat = result.measures.get(measure.removeprefix("first "))
    if stat is None:
        return None
    return stat.first if measure.startswith("first ") else stat.median
