"""`ckptflow bench`: how fast checkpoints can be saved to and restored from a storage, and what to set for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptflow.bench.profiles import PROFILES
from ckptflow.cli.options import Json, Options, OptionsJson, print_json, seconds, storage_options
from ckptflow.cli.render import Justify, bar, make_console, print_table
from ckptflow.printable import printable
from ckptflow.storage.throttling import MOST_AT_ONCE

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from ckptflow.bench.grid import Setting
    from ckptflow.bench.measure import Measured
    from ckptflow.bench.rates import Point, Rates
    from ckptflow.bench.recommend import Recommendation

_MIB = 2**20
_BAR, _LEAST_BAR, _MOST_BAR = "", 6, 24  # its heading, and the columns that it takes
_CHOSEN = "▶"
CANNOT_SHOW = (
    "other machines: their workers share the storage's limits, and each machine has a network of its own",
    "bytes in host memory: a device's must come to the host first, and TensorFlow takes its own time",
    "a storage's caches: what was written a moment ago may be read faster than what is old",
)


def _known(profile: str | None) -> str | None:
    if profile is not None and profile not in PROFILES:
        raise typer.BadParameter(f"{profile!r} is not one of {', '.join(PROFILES)}")
    return profile


def bench(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Where to measure: in a new folder, which is removed again.", show_default=False
        ),
    ],
    duration_s: Annotated[float, seconds("--seconds", min=1, help="About how long to measure.")] = 120,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=MOST_AT_ONCE, metavar="N", help="Try this many at once; may be repeated.", show_default=False
        ),
    ] = None,
    shard_mib: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=4096, metavar="MIB", help="Try shards of this many MiB; may be repeated.", show_default=False
        ),
    ] = None,
    memory_mib: Annotated[
        int, typer.Option(min=64, metavar="MIB", help="Memory for staging; settings that take more are not tried.")
    ] = 1280,
    size_mib: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=2**20,
            metavar="MIB",
            help="How much is saved each time; by default as much as the time allows.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=_known,
            help=f"Save as much as this model's state, instead of --size-mib: {', '.join(PROFILES)}.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Processes on this machine that save and restore together.",
        ),
    ] = 1,
    as_json: Json = False,
    options: Options = None,
    options_json: OptionsJson = None,
) -> None:
    """Measure saves and restores on your storage, compare with the raw client, and recommend settings.

    Measures the defaults, and shards of several sizes with several requests at once. Saves are packed, checksummed and
    durable, restores are verified; the raw client takes turns with them. Nothing in URL is touched: everything is
    written to a new folder in it and deleted again.

    \b
    Example:
      ckptflow bench s3://bucket/scratch
    """
    from ckptflow.bench.measure import measure
    from ckptflow.bench.recommend import recommend
    from ckptflow.storage.opening import local_path

    if profile is not None and size_mib is not None:
        raise typer.BadParameter("--profile and --size-mib both say how much is saved: give one of them")
    size_bytes = size_mib * _MIB if size_mib else None
    if profile is not None:
        size_bytes = PROFILES[profile].size_bytes
    its_options = storage_options(options, options_json, url=url)
    with _clearing_away(), bar("measuring", is_long=True) as progress:

        def tell(doing: str, done: int, total: int) -> None:
            progress.say(f"measuring: {doing}", done, total)

        measured = measure(
            url,
            its_options,
            seconds=duration_s,
            memory_bytes=memory_mib * _MIB,
            concurrencies=concurrency or (),
            shard_mib=shard_mib or (),
            size_bytes=size_bytes,
            worker_count=workers,
            tell=tell,
        )
    recommendation = recommend(measured.points)
    if as_json:
        print_json(to_json(measured, recommendation))
    else:
        told = f"{profile}: {PROFILES[profile]}" if profile else ""
        render(measured, recommendation, told, has_options=bool(its_options) and local_path(url) is None)


@contextmanager
def _clearing_away() -> Iterator[None]:
    """In the block, Ctrl-C ends it as usual; a second one, during the cleanup, says what a third would leave."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, second)
        raise KeyboardInterrupt

    def second(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(
            2, b"\nckptflow: removing what was written; another Ctrl-C leaves it: a folder ckptflow-bench-... in URL\n"
        )

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def to_json(measured: Measured, recommendation: Recommendation) -> dict[str, Any]:
    """The documented shape: see docs/cli.md."""
    return {
        "url": measured.url,
        "client": measured.client,
        "size_bytes": measured.size_bytes,
        "workers": measured.worker_count,
        "latency_s": measured.latency_s,
        "points": [_point_json(point) for point in _ordered(measured.points)],
        "is_sure": measured.is_sure,
        "not_measured": [{**_setting_json(setting), "why": why} for setting, why in measured.unmeasured],
        "recommendation": {
            **_setting_json(recommendation.setting),
            "beats_defaults": recommendation.beats_defaults,
            "why": list(recommendation.reasons),
        },
        "cannot_show": list(CANNOT_SHOW),
    }


def _setting_json(setting: Setting) -> dict[str, Any]:
    return {
        "is_default": setting.is_default,
        "concurrency": setting.given_concurrency,
        "shard_bytes": setting.shard_bytes,
        "memory_budget_bytes": setting.memory_bytes,
    }


def _point_json(point: Point) -> dict[str, Any]:
    return {
        **_setting_json(point.setting),
        "rounds": point.rounds,
        **{
            name: {
                "bytes_per_s": rates.bytes_per_s,
                "interval": rates.interval,
                "raw_bytes_per_s": rates.raw_bytes_per_s,
                "share_of_raw": rates.share_of_raw,
                "streams": rates.streams,
                "slowest_ratio": rates.slowest_ratio,
                "cpu_s_per_gib": rates.cpu_s_per_gib,
                "request_s": _percentiles(rates),
            }
            for name, rates in (("save", point.save), ("restore", point.restore))
        },
    }


def _percentiles(rates: Rates) -> dict[str, float]:
    from ckptflow.bench.rates import PERCENTILES

    return {f"p{percent}": rates.request_percentile_s(percent) for percent in PERCENTILES}


def _ordered(points: list[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.setting)


def render(measured: Measured, recommendation: Recommendation, profile: str, *, has_options: bool) -> None:
    """Prints what this cannot show, a line with a bar for each setting, and last what to set."""
    from ckptflow.bench.rates import CONFIDENCE, CONTENDERS, NARROW

    console = make_console()
    console.print("This cannot show:")
    for line in CANNOT_SHOW:
        console.print(f"  - {line}", soft_wrap=True)
    size_mib, count = measured.size_bytes // _MIB, measured.worker_count
    who = "" if count == 1 else f" by each of {count} workers at the same time"
    console.print(f"\n{size_mib:,} MiB each time{who}; medians in MiB/s", style="bold", soft_wrap=True)
    if profile:
        console.print(profile, soft_wrap=True)
    print_points(console, _ordered(measured.points), recommendation.setting, worker_count=count)
    sure = "all are" if measured.is_sure else "NOT all are: give more --seconds"
    for line in (
        f"{_CHOSEN} what to use. The bar shows how fast it saves.",
        f"raw: {measured.client} alone, random bytes, one request for each shard, as many at once as a save may have.",
        f"±: half the width of the {CONFIDENCE:.0%} confidence interval of the median; ? before five rounds.",
        f"The defaults, the fastest and {CONTENDERS} others are repeated until it is within {NARROW:.0%}: {sure}.",
    ):
        console.print(line, soft_wrap=True)
    for why in dict.fromkeys(why for _, why in measured.unmeasured):
        left_out = ", ".join(str(setting) for setting, its in sorted(measured.unmeasured) if its == why)
        console.print(f"not measured, {why}: {left_out}", soft_wrap=True)
    latency = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in measured.latency_s.items())
    console.print(f"\nA small object: {latency}. A commit creates one and lists once or twice.", soft_wrap=True)
    chosen = recommendation.setting
    point = next(point for point in measured.points if point.setting == chosen)
    for what, rates in (("save", point.save), ("restore", point.restore)):
        times = ", ".join(f"{name} {_milliseconds(took_s)}" for name, took_s in _percentiles(rates).items())
        console.print(f"A request of a {what}, {chosen}: {times}.", soft_wrap=True)
    console.print("\nTo use:", style="bold")
    console.print(f"  {manager_call(measured.url, chosen, has_options=has_options)}", soft_wrap=True)
    options_from = ("storage_options: what this command was given, as a dict",) if has_options else ()
    for reason in (*recommendation.reasons, *options_from):
        console.print(f"  - {reason}", soft_wrap=True)


def manager_call(url: str, chosen: Setting, *, has_options: bool) -> str:
    """Python, to paste. Options are not shown: they may hold a secret."""
    arguments = [repr(printable(url)), '{"model": model}']
    if not chosen.is_default:
        arguments += [f"concurrency={chosen.concurrency}", f"shard_bytes={chosen.shard_bytes}"]
    if not chosen.is_default or chosen.has_less_memory:
        arguments.append(f"memory_budget_bytes={chosen.memory_bytes}")
    if has_options:
        arguments.append("storage_options=storage_options")
    return f"CheckpointManager({', '.join(arguments)})"


def print_points(console: Console, points: list[Point], chosen: Setting, *, worker_count: int = 1) -> None:
    """A line for each setting, with a bar of how fast it saves; a narrow terminal is shown fewer columns."""
    most = max(point.save.bytes_per_s for point in points)
    rows = []
    for point in points:
        save, restore, setting = point.save, point.restore, point.setting
        name = "defaults" if setting.is_default else f"{setting.concurrency} of {setting.shard_bytes // _MIB} MiB"
        row = {
            "  setting": f"{_CHOSEN if setting == chosen else ' '} {name}",
            _BAR: "",
            "save": f"{save.bytes_per_s / _MIB:,.0f}",
            "±": _plus_minus(save),
            "raw save": f"{save.raw_bytes_per_s / _MIB:,.0f}",
            "restore": f"{restore.bytes_per_s / _MIB:,.0f}",
            "± ": _plus_minus(restore),  # headings are unique: this is the restore's
            "raw restore": f"{restore.raw_bytes_per_s / _MIB:,.0f}",
            "streams": f"{save.streams}, {restore.streams}",
            "slowest": f"{save.slowest_ratio:.2f}, {restore.slowest_ratio:.2f}",
            "memory": f"{setting.memory_bytes // _MIB} MiB",
            "CPU-s/GiB": f"{save.cpu_s_per_gib:.2f}",
            "rounds": str(point.rounds),
        }
        rows.append(row)
    hidden = set() if worker_count > 1 else {"slowest"}
    for more in ({"memory", "CPU-s/GiB", "rounds"}, {"streams"}, {"raw save", "raw restore"}, {"slowest"}, {"±", "± "}):
        if _width(rows, hidden) + _LEAST_BAR > console.width:
            hidden |= more
    columns = max(_LEAST_BAR, min(_MOST_BAR, console.width - _width(rows, hidden)))
    for row, point in zip(rows, points, strict=True):
        row[_BAR] = "█" * max(1, round(columns * point.save.bytes_per_s / most))
    shown: dict[str, Justify] = {
        name: "left" if name in ("  setting", _BAR) else "right" for name in rows[0] if name not in hidden
    }
    styles = ["bold green" if point.setting == chosen else "" for point in points]
    print_table(console, shown, [[row[name] for name in shown] for row in rows], styles)


def _width(rows: list[dict[str, str]], hidden: set[str]) -> int:
    """In columns, without the bar."""
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in rows[0] if name not in hidden]
    return sum(widths) + 2 * (len(widths) - 1)


def _milliseconds(taken_s: float) -> str:
    return f"{taken_s * 1000:,.{0 if taken_s >= 0.01 else 1}f} ms"


def _plus_minus(rates: Rates) -> str:
    return "?" if rates.spread is None else f"{rates.spread:.0%}"
