"""The most important figures, with the raw baseline and the best alternative: the page's first table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.report.comparisons import FIRST_TOLD, Comparison, Measure, is_ours, number, of, why_missing
from benchmarks.results import Result


@dataclass(frozen=True)
class Row:
    """One figure of ours. An empty string: there is nothing of that kind to compare with."""

    what: str
    ours: str
    limit: str
    to_limit: str  # ours, as a multiple of the raw baseline
    peer: str
    to_peer: str  # the best alternative, as a multiple of ours: above 1 is for us
    is_behind: bool  # the best alternative is better


@dataclass(frozen=True)
class Block:
    """Rows of one comparison."""

    title: str
    rows: tuple[Row, ...]


_MEASURES = {
    "size": ("durable_s", "blocked_s", "save_cpu_s", "peak_save_bytes", "restore_cold_s", "restore_warm_s"),
    "variables": ("durable_s", "blocked_s", "restore_warm_s"),
    "objects": ("durable_s", "save_cpu_s", "restore_warm_s", "restore_cpu_s"),
    "link": ("durable_s", "restore_warm_s"),
    "training": ("slowdown",),
    "unchanged": ("durable_s", "save_sent_bytes", "stored_bytes", "peak_save_bytes"),
    "workers": ("durable_s", "commit_after_last_shard_s", "most_written_share"),
}


def headline(comparisons: Sequence[Comparison]) -> list[Block]:
    """The largest size, the most variables, each object storage, link and training, what is unchanged, and workers."""
    chosen = [_largest(of(comparisons, "size"), "size_bytes"), _largest(of(comparisons, "variables"), "variable_count")]
    for name in ("objects", "link", "training", "unchanged", "workers"):
        chosen += of(comparisons, name)
    names = {
        "size": "Large state",
        "variables": "Many variables",
        "objects": "Object storage",
        "link": "Links like those to a cloud",
        "training": "Training that saves every 15 steps",
        "unchanged": "Part of the model is trained",
        "workers": "Several workers on one machine",
    }
    blocks = [
        Block(f"{names[comparison.experiment]}: {comparison.title}", tuple(_rows(comparison)))
        for comparison in chosen
        if comparison is not None
    ]
    return [block for block in blocks if block.rows]


def _rows(comparison: Comparison) -> Iterator[Row]:
    is_alone = sum(is_ours(each) for each in comparison.results) == 1
    most = max(result.worker_count for result in comparison.results)
    for result, label in zip(comparison.results, comparison.labels, strict=True):
        if not is_ours(result) or (comparison.experiment == "workers" and result.worker_count < most):
            continue
        name = "" if is_alone else f" ({label.removeprefix('ckptflow, ')})"
        if not result.measures:
            yield Row(f"everything{name}", f"missing: {why_missing(result, _ANY)}", "", "", "", "", False)
        for measure_name in _MEASURES[comparison.experiment]:
            measure = comparison.measure(measure_name)
            if measure is not None and measure_name in result.measures:
                yield _row(comparison, result, measure, name)


def _row(comparison: Comparison, result: Result, measure: Measure, name: str) -> Row:
    stat = measure.of(result)
    assert stat is not None  # asked for only where it is
    ours = measure.text(stat.median)
    if measure.name in FIRST_TOLD and stat.first is not None:
        ours += f" (the first time {measure.text(stat.first)})"
    limit, peer = comparison.limit(result, measure), comparison.best_peer(measure)
    limit_stat = measure.of(limit) if limit else None
    peer_stat = measure.of(peer) if peer else None
    client = comparison.client(result)
    without_limit = f"missing: {client.peer} failed" if client and client.error else ""
    is_ratio = measure.unit != "× an equal share"  # a ratio of ratios says nothing
    return Row(
        what=f"{measure.title}{name}",
        ours=ours,
        limit=f"{measure.text(limit_stat.median)}, {limit.peer}" if limit and limit_stat else without_limit,
        to_limit=_ratio(stat.median, limit_stat.median) if limit_stat else "",
        peer=f"{measure.text(peer_stat.median)}, {peer.peer}" if peer and peer_stat else "",
        to_peer=_ratio(peer_stat.median, stat.median) if peer_stat and is_ratio else "",
        is_behind=peer_stat is not None and peer_stat.median < stat.median,
    )


def _ratio(value: float, by: float) -> str:
    return f"{number(value / by)} ×" if by > 0 and value > 0 else ""


def _largest(comparisons: Sequence[Comparison], scale: str) -> Comparison | None:
    """The largest one in which we have figures; else the largest."""
    return max(comparisons, key=lambda each: (bool(each.ours()), getattr(each, scale)), default=None)


_ANY = Measure("", "", "")
