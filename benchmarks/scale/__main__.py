"""What a job of many workers takes and asks of the storage, in virtual time, with the real code.

    python -m benchmarks.scale [--workers 1,2,4,8,100,1000,10000] [--calibrate] [--page docs/scale.md]

Prints tables. With `--page` it puts them, and two plots, into that page; see there for what is assumed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.scale.job import MOST_REAL, WAYS, Figures, Job, simulate
from benchmarks.scale.model import MIB, PRICES, PRICES_OF, SHARD_BYTES
from benchmarks.scale.plots import plot
from benchmarks.scale.tables import (
    describe,
    goal_table,
    price_table,
    save_dollars,
    save_table,
    start_dollars,
    start_table,
)

DEFAULT_SHARD_BYTES = 8 * MIB  # what a manager takes by itself on an object store
_GOAL = 1000  # workers


def job_of(workers: int, seed: int, shard_bytes: int = SHARD_BYTES) -> Job:
    """1 GB for each worker, and as many tensors as a large model has, at most."""
    return Job(workers, workers * 10**9, max(100, min(25_000, 25 * workers)), shard_bytes, seed=seed)


def main() -> None:
    arguments = _arguments()
    jobs = [job_of(workers, arguments.seed) for workers in arguments.workers]
    found = [_told(job) for job in jobs]
    small = [
        _told(job_of(workers, arguments.seed, DEFAULT_SHARD_BYTES))
        for workers in arguments.workers
        if workers in (100, _GOAL)
    ]
    texts = {
        "goals": "\n".join(goal_table(each) for each in found if each.job.workers == _GOAL),
        "save": save_table(found + small),
        "start": start_table(found + small),
        "prices": f"{price_table(found + small)}\n\n({PRICES_OF}.)",
    }
    if arguments.calibrate:
        from benchmarks.scale.calibrate import calibration_table

        texts["calibration"] = calibration_table(arguments.folder)
    for name, text in texts.items():
        sys.stdout.write(f"\n{name}\n{text}\n")
    if arguments.page:
        _put_into(Path(arguments.page), texts)
        images = Path(arguments.page).parent / "images"
        (images / "scale-times.svg").write_text(times_plot(found), encoding="utf-8")
        (images / "scale-requests.svg").write_text(requests_plot(found), encoding="utf-8")


def times_plot(found: Sequence[Figures]) -> str:
    curves = {
        "commit after the last shard": _curve(found, lambda each: each.save.tail_s + each.save.chief_cpu_s),
        "start, until the tensors": _curve(found, lambda each: each.start.decided_s + each.start.chief_cpu_s),
        **{f"tensors, {way}": _curve(found, _read_s(way)) for way in WAYS},
    }
    return plot("Commit and restore, 1 GB of state for each worker", "s", curves)


def _read_s(way: str) -> Callable[[Figures], float]:
    return lambda each: each.start.read_s[way]


def requests_plot(found: Sequence[Figures]) -> str:
    def requests(each: Figures) -> float:
        return sum(count for verb, count in each.save.requests.items() if verb != "503")

    curves = {
        "requests of a save, thousands": _curve(found, lambda each: requests(each) / 1000),
        "a save, $": _curve(found, lambda each: save_dollars(PRICES[0], each)),
        **{f"start, {way}, $": _curve(found, _start_dollars(way)) for way in WAYS[:2]},
    }
    return plot("Requests and dollars, 1 GB of state for each worker", "", curves)


def _start_dollars(way: str) -> Callable[[Figures], float]:
    return lambda each: start_dollars(PRICES[0], each, way)


def _curve(found: Sequence[Figures], value: Callable[[Figures], float]) -> list[tuple[float, float]]:
    return [(each.job.workers, value(each)) for each in found]


def _told(job: Job) -> Figures:
    began_s = time.monotonic()
    found = simulate(job)
    how = (
        "all of them real" if job.workers <= MOST_REAL else f"messages of {len(job.real)} real ones, the others' alike"
    )
    sys.stderr.write(f"{describe(job)}: {how}; {time.monotonic() - began_s:.0f} s\n")
    return found


def _put_into(page: Path, texts: Mapping[str, str]) -> None:
    """Replaces what stands in the page between `<!-- NAME -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    for name, table in texts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--workers",
        type=lambda text: [int(each) for each in text.split(",")],
        default=[1, 2, 4, 8, 100, 1000, 10_000],
        help="how many, several with commas between them; 10,000 take some minutes",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calibrate", action="store_true", help="compares with 1, 2, 4 and 8 real processes")
    parser.add_argument("--folder", default=".", help="on whose disk the calibration's server keeps its files")
    parser.add_argument("--page", default="", help="a page of Markdown that the tables are put into")
    return parser.parse_args()


if __name__ == "__main__":
    main()
