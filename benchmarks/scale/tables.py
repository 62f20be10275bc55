"""Figures as tables, in Markdown: the same in the terminal and on the page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.scale.job import WAYS, Figures, Job
from benchmarks.scale.model import GB, MIB, PRICES, Prices

_SAVES_PER_MONTH = 30 * 24 * 2  # one in half an hour
_KEPT = 2


def save_table(found: Sequence[Figures]) -> str:
    """What a save takes, and what it asks of the storage."""
    head = (
        "workers",
        "shard MiB",
        "shards",
        "last shard after s",
        "acknowledged after that s",
        "and chief's CPU s",
        "a plan's CPU s",
        "writes",
        "lists",
        "of which pages beyond 1,000",
        "reads",
        "503s",
    )
    return _table(head, [_save_row(each) for each in found])


def _save_row(each: Figures) -> tuple[str, ...]:
    save, requests = each.save, each.save.requests
    return (
        f"{each.job.workers:,}",
        f"{each.job.shard_bytes / MIB:.0f}",
        f"{save.shards:,}",
        f"{save.written_s:.1f}",
        f"{save.tail_s:.2f}",
        f"{save.chief_cpu_s:.2f}",
        f"{each.plan_cpu_s:.2f}",
        f"{requests['put']:,}",
        f"{requests['list'] + requests.get('page', 0):,}",
        f"{requests.get('page', 0):,}",
        f"{requests['get']:,}",
        f"{requests.get('503', 0):,}",
    )


def start_table(found: Sequence[Figures]) -> str:
    """What a start takes until it is known what is read, and how long the bytes of tensors take."""
    head = (
        "workers",
        "shard MiB",
        "manifest MiB",
        "rounds",
        "until the tensors s",
        "of messages MB",
        "chief's lists",
        "gets",
        "another's lists",
        "gets",
        *(f"{way} s" for way in WAYS),
    )
    rows = []
    for each in found:
        start = each.start
        rows.append(
            (
                f"{each.job.workers:,}",
                f"{each.job.shard_bytes / MIB:.0f}",
                f"{each.save.manifest_bytes / MIB:.1f}",
                f"{start.rounds}",
                f"{start.decided_s:.1f}",
                f"{start.message_bytes / 1e6:,.1f}",
                f"{start.requests['list'] + start.requests.get('page', 0):,}",
                f"{start.requests['get']:,}",
                f"{start.others.get('list', 0):,}",
                f"{start.others.get('get', 0):,}",
                *(f"{start.read_s[way]:,.1f}" for way in WAYS),
            )
        )
    return _table(head, rows)


def dollars(prices: Prices, requests: Mapping[str, int]) -> float:
    """What requests cost; deletes are free."""
    writes = requests.get("put", 0) + requests.get("list", 0) + requests.get("page", 0)
    return writes * prices.per_write + requests.get("get", 0) * prices.per_read


def save_dollars(prices: Prices, each: Figures) -> float:
    """What a save costs that deletes the oldest."""
    return dollars(prices, each.pruning_save.requests) + dollars(prices, each.pruning_save.prune_requests)


def start_dollars(prices: Prices, each: Figures, way: str) -> float:
    start = each.start
    others = {verb: count * (each.job.workers - 1) for verb, count in start.others.items()}
    reads = {"get": start.read_requests[way]}
    return dollars(prices, start.requests) + dollars(prices, others) + dollars(prices, reads)


def price_table(found: Sequence[Figures]) -> str:
    """A save, a start, and a month of saves."""
    head = ("workers", "shard MiB", "a save $", *(f"a start, {way} $" for way in WAYS), *_month_heads())
    rows = []
    for each in found:
        s3 = PRICES[0]
        rows.append(
            (
                f"{each.job.workers:,}",
                f"{each.job.shard_bytes / MIB:.0f}",
                f"{save_dollars(s3, each):,.4f}",
                *(f"{start_dollars(s3, each, way):,.4f}" for way in WAYS),
                *(f"{amount:,.0f}" for prices in PRICES for amount in _month(prices, each)),
            )
        )
    return _table(head, rows)


def _month_heads() -> list[str]:
    return [f"{prices.name}: {what} $" for prices in PRICES for what in ("a month's saves", "a month's storage")]


def _month(prices: Prices, each: Figures) -> tuple[float, float]:
    return save_dollars(prices, each) * _SAVES_PER_MONTH, _KEPT * each.job.size_bytes / GB * prices.per_gb_month


def goal_table(each: Figures) -> str:
    """What was to be reached with 1,000 workers."""
    save, job = each.save, each.job
    tail_s = save.tail_s + save.chief_cpu_s
    formula = save.shards + job.workers + 1
    rows = [
        ("a worker's plan", "< 1 s of CPU", f"{each.plan_cpu_s:.2f} s"),
        ("commit after the last shard, with the chief's CPU", "≤ 3 s", f"{tail_s:.2f} s"),
        ("the same, of a save that deletes", "≤ 3 s", f"{_tail_s(each):.2f} s"),
        ("the chief's CPU per save", "≤ 2 s", f"{save.chief_cpu_s:.2f} s"),
        ("writes", f"shards + workers + 1 = {formula:,}", f"{save.requests['put']:,}"),
        ("lists", "polls + 1", f"{save.polls} + 1"),
    ]
    return _table(("of a save", "goal", "simulated"), rows)


def _tail_s(each: Figures) -> float:
    return each.pruning_save.tail_s + each.pruning_save.chief_cpu_s


def describe(job: Job) -> str:
    return f"{job.workers:,} workers, {job.size_bytes / 1e9:,.0f} GB, {job.tensors:,} tensors"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:" if number else "---" for number in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
