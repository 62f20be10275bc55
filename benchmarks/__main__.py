"""Save and restore, compared with raw baselines and with alternatives.

    python -m benchmarks [--full] [--only size,objects] [--peers "ckptflow;raw device"] [--out bench-results/quick.json]

Writes JSON, an HTML page and Chrome traces; prints tables. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import psutil
from msgspec import structs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import experiments, machine, restoring, tables
from benchmarks.experiments import MIB, Turns
from benchmarks.link import linked
from benchmarks.results import FORMAT, Result, Run, Timeline, encode
from benchmarks.turns import take_turns
from benchmarks.workers import measure_workers
from tests.servers import fake_gcs, seaweedfs

# gcsfs asks the bucket's type over gRPC, and an emulator lets it hang for a minute.
_ENV = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
CANNOT_SHOW = (
    "An accelerator: there, values must first come to the host. All of this is on CPUs.",
    "A network: servers run on this machine, on loopback, and share its cores with what is measured.",
    "GCS's speed: the server is an emulator in memory. It shows that the path works, and what clients cost.",
    "Several machines: up to four workers share these cores and this disk, so more of them are not faster here.",
    "A disk without a cache: “cold” drops this machine's page cache, but a virtual disk's host has its own.",
    "Any other machine. Trust ratios within one run; single rounds on a shared disk differ by a factor of two.",
)
BIAS = (
    "We wrote it, and chose what is measured: many equal float32 variables that all change, and some models.",
    "Ours fsyncs and checksums every byte; the others are fsynced by the benchmark, and check less.",
    "On object storage, “durable” is what the server has acknowledged.",
    "TensorFlow, Keras, Orbax and PyTorch run with their defaults; someone who knows them well may tune them.",
    "Orbax and PyTorch hold their own arrays: their figures compare complete workflows, not one function.",
)


def main() -> None:
    arguments = _arguments()
    console = Console(width=120)
    _say_first(console)
    counts: Sequence[int] = experiments.WORKERS[arguments.full] if "workers" in arguments.only else ()
    readers: Sequence[int] = experiments.RESTORING[arguments.full] if "workers" in arguments.only else ()
    points = _points(arguments)
    run = Run(
        format=FORMAT,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command="python -m benchmarks " + shlex.join(sys.argv[1:]),
        machine=machine.describe(arguments.folder),
        cannot_show=CANNOT_SHOW,
        bias=BIAS,
        results=(),
    )
    with _progress(console) as progress, tempfile.TemporaryDirectory(prefix="ckptflow-bench-logs-") as logs:
        task = progress.add_task("", total=len(points) + len(counts) + len(readers) * len(restoring.WAYS))

        def found(*results: Result, timelines: Sequence[Timeline] = ()) -> None:
            """Written at once: what was found outlives an end in the middle."""
            nonlocal run
            run = structs.replace(run, results=run.results + results, timelines=run.timelines + tuple(timelines))
            _write_json(run, arguments.out)
            progress.advance(task)

        for each in points:
            progress.update(task, description=each.title)
            found(*run_turns(each, arguments.folder, logs, arguments.peers))
        for count in counts:
            progress.update(task, description=f"{count} worker(s)")
            try:
                size_bytes = int(arguments.size_mib * MIB) or experiments.WORKERS_SIZE_BYTES
                result, line = measure_workers(count, size_bytes, arguments.rounds or 5, arguments.folder)
                found(result, timelines=[line])
            except Exception as error:
                traceback.print_exc()
                found(_failed("workers", count, str(error)))
        for result in _restores(readers, arguments):
            progress.update(task, description=f"{result.worker_count} worker(s) have restored by {result.peer}")
            found(result)
    tables.print_run(console, run)
    _write_pages(console, run, arguments.out)
    if any(result.error and result.peer.startswith("ckptflow") for result in run.results):
        raise SystemExit(1)


def run_turns(each: Turns, folder: str, logs: str, peers: Sequence[str]) -> list[Result]:
    """The results of one point; a server is started for it where it needs one."""
    chosen = {name: target for name, target in each.peers.items() if not peers or name in peers}
    skipped = [name for name in chosen if each.variable_count > experiments.MAX_VARIABLES.get(name, sys.maxsize)]
    results: list[Result] = []
    with _place(each, folder) as (url, options):
        points = {
            name: {
                "url": f"{url}/{number}",
                "size_bytes": each.size_bytes,
                "variable_count": each.variable_count,
                "storage": each.storage,
                "options": options,
                "settings": each.settings_of(name),
                "restores": each.restores,
            }
            for number, name in enumerate(chosen)
        }
        groups = _groups([name for name in chosen if name not in skipped], each)
        for group in groups:
            targets = {name: chosen[name] for name in group}
            found = take_turns(each.experiment, targets, points, rounds=each.rounds, logs=logs, env=_ENV)
            found = [structs.replace(result, parameters=each.settings) for result in found]
            results += found if len(groups) == 1 else [_not_beside(result) for result in found]
    reason = "not run: it takes more than a minute for a round with so many variables"
    return results + [_skipped(each, name, reason) for name in skipped]


def _restores(counts: Sequence[int], arguments: argparse.Namespace) -> Iterator[Result]:
    """Those of each number of workers, behind one link."""
    size_bytes = int(arguments.size_mib * MIB) or experiments.RESTORING_SIZE_BYTES
    if not counts:
        return
    with restoring.place(arguments.folder) as options:
        for count, way in itertools.product(counts, restoring.WAYS):
            try:
                yield restoring.measure_restores(count, way, size_bytes, arguments.rounds or 3, options)
            except Exception as error:
                traceback.print_exc()
                failed = _failed("workers", count, str(error))
                yield structs.replace(failed, storage="s3", peer=restoring.WAYS[way])


def _points(arguments: argparse.Namespace) -> list[Turns]:
    """What is to be measured, each once."""
    points = [each for each in experiments.turns(is_full=arguments.full) if each.experiment in arguments.only]
    if arguments.rounds:
        points = [replace(each, rounds=arguments.rounds) for each in points]
    if arguments.size_mib:
        points = [replace(each, size_bytes=int(arguments.size_mib * MIB)) for each in points]
    points = [each for each in points if each.settings.get("link", arguments.links[0]) in arguments.links]
    if arguments.slower != 1:
        slower = {"slower": arguments.slower}
        points = [
            replace(each, settings=each.settings | slower) if each.experiment == "link" else each for each in points
        ]
    points = [each for number, each in enumerate(points) if each not in points[:number]]
    return [each for each in points if not arguments.peers or set(arguments.peers) & set(each.peers)]


def _groups(names: list[str], each: Turns) -> list[list[str]]:
    """All at once, where the machine has the memory; else one after the other, each for itself."""
    holding = [name for name in names if name not in experiments.LIMITS]
    needed = len(holding) * experiments.MEMORY_PER_PEER * each.size_bytes
    return [names] if needed < 0.9 * psutil.virtual_memory().available else [[name] for name in names]


def _not_beside(result: Result) -> Result:
    warning = "measured by itself, as the memory does not hold all of them: the disk may have been another by then"
    return structs.replace(result, note=f"{warning}; {result.note}")


@contextlib.contextmanager
def _place(each: Turns, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a point's peers put what they save, and the options to get there."""
    if each.storage == "local":
        with tempfile.TemporaryDirectory(dir=os.path.abspath(folder), prefix="ckptflow-bench-") as place:
            yield place, {}
        return
    with seaweedfs(os.path.abspath(folder)) if each.storage == "s3" else fake_gcs() as server:
        server.make_bucket("bench")
        url = f"{'s3' if each.storage == 's3' else 'gs'}://bench"
        if each.link is None:
            yield url, server.storage_options
            return
        there = urlsplit(server.endpoint)
        with linked(there.hostname or "", there.port or 0, each.link) as port:
            yield url, server.options_at(f"http://127.0.0.1:{port}")


def _failed(experiment: str, worker_count: int, error: str) -> Result:
    return Result(experiment, "ckptflow", "local", 0, experiments.TENSOR_COUNT, worker_count, error=error[-300:])


def _skipped(each: Turns, peer: str, why: str) -> Result:
    return Result(each.experiment, peer, each.storage, each.size_bytes, each.variable_count, 1, error=why)


def _say_first(console: Console) -> None:
    console.print("What this cannot show:", style="bold")
    for line in CANNOT_SHOW:
        console.print(f"  - {line}")
    console.print("Its bias:", style="bold")
    for line in BIAS:
        console.print(f"  - {line}")
    if os.getloadavg()[0] > 0.5:
        console.print(f"This machine is busy (load {os.getloadavg()[0]:.1f}): figures will be off.", style="bold red")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _write_json(run: Run, path: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(encode(run))


def _write_pages(console: Console, run: Run, path: str) -> None:
    from benchmarks.report import write_report, write_trace

    console.print(f"{path}: all figures")
    base = path.removesuffix(".json")
    write_report(run, f"{base}.html")
    console.print(f"{base}.html: the report")
    for number, line in enumerate(run.timelines):
        write_trace(line, f"{base}-{number}.trace.json")
        console.print(f"{base}-{number}.trace.json: {line.title}; open it in ui.perfetto.dev")


def _names(allowed: Sequence[str], separator: str) -> Callable[[str], list[str]]:
    """For argparse: some of `allowed`."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(separator) if name.strip()]
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r} here; there are: {separator.join(allowed)}")
        return names

    return parse


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all scales: hours, 24 GiB of memory, 60 GiB of disk")
    names = experiments.EXPERIMENTS
    parser.add_argument(
        "--only", type=_names(names, ","), default=list(names), help=f"some of {','.join(names)}", metavar="A,B"
    )
    parser.add_argument(
        "--peers", type=_names(experiments.PEERS, ";"), default=[], help="names as in the tables", metavar="A;B"
    )
    parser.add_argument("--rounds", type=int, default=0, help="instead of each experiment's own number")
    parser.add_argument("--size-mib", type=float, default=0, help="instead of each experiment's own size")
    links = list(experiments.LINKS)
    parser.add_argument(
        "--links", type=_names(links, ","), default=links, help=f"some of {','.join(links)}", metavar="A,B"
    )
    parser.add_argument(
        "--slower",
        type=float,
        default=1,
        help="links have so many times lower rates and longer latencies: where clients alone keep the processors busy, "
        "nothing can be seen of the number of streams",
    )
    parser.add_argument("--folder", default=".", help="on the disk to measure; what is written is removed")
    parser.add_argument("--out", default="bench-results/quick.json", help="the JSON; the page lies beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
