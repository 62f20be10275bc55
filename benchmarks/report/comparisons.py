"""What is compared with what: a run's results by the point at which they were measured, and each measure's unit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.experiments import WORKS, link_name
from benchmarks.results import Result, Run, Stat

MIB, GIB = 2**20, 2**30
OURS = "ckptflow"
# Where the first save of a job costs more than those after it, which a median would hide.
FIRST_TOLD = ("blocked_s",)
_CLIENTS = {"ckptflow, fast": "obstore alone", "ckptflow, s3fs": "s3fs alone", "ckptflow, gcsfs": "gcsfs alone"}


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: its unit, and what to multiply the figure with to have it in that unit."""

    name: str
    title: str
    unit: str
    factor: float = 1

    def of(self, result: Result) -> Stat | None:
        """In this unit; None where the result has no such figure."""
        stat = result.measures.get(self.name)
        if stat is None:
            return None
        first = None if stat.first is None else stat.first * self.factor
        return Stat(stat.median * self.factor, stat.low * self.factor, stat.high * self.factor, first)

    @property
    def is_memory(self) -> bool:
        return self.name.startswith("peak_")

    def text(self, value: float) -> str:
        """With the unit; short times in milliseconds."""
        if self.unit == "s" and abs(value) < 0.1:
            return f"{number(value * 1e3)} ms"
        return f"{self.figure(value)} {self.unit}"

    def figure(self, value: float) -> str:
        """Without the unit; what is counted has no decimals, unless it is the middle of two."""
        return f"{value:,.0f}" if self.unit == "requests" and value == int(value) else number(value)


MEASURES = (
    Measure("durable_s", "Save, until it is durable", "s"),
    Measure("blocked_s", "Training blocked by a save", "ms", 1e3),
    Measure("save_cpu_s", "CPU time of a save", "CPU-s"),
    Measure("peak_save_bytes", "Extra memory at the peak of a save", "MiB", 1 / MIB),
    Measure("restore_cold_s", "Restore, read from the disk", "s"),
    Measure("restore_warm_s", "Restore, a second time", "s"),
    Measure("restore_cpu_s", "CPU time of a restore", "CPU-s"),
    Measure("peak_restore_bytes", "Extra memory at the peak of a restore", "MiB", 1 / MIB),
    Measure("slowdown", "Training slowed down by", "%", 100),
    Measure("step_s", "One training step, mean with saves", "ms", 1e3),
    Measure("plain_step_s", "One training step without saves", "ms", 1e3),
    Measure("commit_after_last_shard_s", "From the last shard to the commit", "ms", 1e3),
    Measure("most_written_share", "Bytes of the worker with the most", "× an equal share"),
    Measure("least_written_share", "Bytes of the worker with the least", "× an equal share"),
    Measure("save_requests", "Requests of a save", "requests"),
    Measure("restore_requests", "Requests of a restore", "requests"),
    Measure("save_sent_bytes", "Bytes sent by a save", "MiB", 1 / MIB),
    Measure("save_copied_bytes", "Bytes copied inside the storage, not sent", "MiB", 1 / MIB),
    Measure("stored_bytes", "Stored by five checkpoints", "MiB", 1 / MIB),
    Measure("save_1_s", "The first save", "s"),
    Measure("save_2_s", "The second save", "s"),
    Measure("save_3_s", "The third save", "s"),
    Measure("save_restarted_s", "The first save after a restart", "s"),
    Measure("restarted_sent_bytes", "Bytes sent by the first save after a restart", "MiB", 1 / MIB),
    Measure("restore_read_bytes", "Bytes read by a restore", "MiB", 1 / MIB),
)


@dataclass(frozen=True)
class Comparison:
    """Peers at one point; in the experiment "workers", one peer with each number of workers."""

    experiment: str
    storage: str
    size_bytes: int
    variable_count: int
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        count = f" in {self.variable_count:,} variables" if self.variable_count else ""
        words = [f"{size(self.size_bytes)}{count}, {storage_name(self.storage)}"]
        threads = self.results[0].parameters.get("threads")
        words += [f"TensorFlow with {threads} thread{'' if threads == 1 else 's'}"] if threads else []
        parameters = self.results[0].parameters
        words += [f"the link “{link_name(parameters)}”"] if "link" in parameters else []
        words += [WORKS.get(parameters["work"], parameters["work"])] if "work" in parameters else []
        counts = {result.worker_count for result in self.results}
        words += [f"{counts.pop()} workers"] if self.experiment != "workers" and max(counts) > 1 else []
        return ", ".join(words)

    @property
    def labels(self) -> list[str]:
        """One for each result, none twice."""
        one_peer = len({result.peer for result in self.results}) == 1
        found: list[str] = []
        for result in self.results:
            workers = f"{result.worker_count} worker{'' if result.worker_count == 1 else 's'}"
            label = (
                result.peer if self.experiment != "workers" else workers if one_peer else f"{result.peer}, {workers}"
            )
            again = sum(each == label or each.startswith(f"{label} #") for each in found)
            found.append(f"{label} #{again + 1}" if again else label)
        return found

    def measures(self) -> list[Measure]:
        """Those with a figure here, known ones first; CPU time by the GiB where the bytes are what costs."""
        present = {name for result in self.results for name in result.measures}
        found = [measure for measure in MEASURES if measure.name in present]
        found += [_unknown(name) for name in sorted(present - {measure.name for measure in MEASURES})]
        return [self._as_here(measure) for measure in found]

    def measure(self, name: str) -> Measure | None:
        return next((measure for measure in self.measures() if measure.name == name), None)

    def ours(self) -> list[Result]:
        """With figures."""
        return [result for result in self.results if is_ours(result) and result.measures]

    def limit(self, ours: Result, measure: Measure) -> Result | None:
        """The raw baseline: the client that `ours` goes through, alone; else the best of the baselines."""
        client = self.client(ours)
        limits = [client] if client else [result for result in self.results if result.is_limit]
        return _best([result for result in limits if measure.name in result.measures], measure)

    def client(self, ours: Result) -> Result | None:
        """The client that `ours` goes through, alone; None on a disk."""
        return next((result for result in self.results if result.peer == _CLIENTS.get(ours.peer)), None)

    def best_peer(self, measure: Measure) -> Result | None:
        """The one with the lowest figure that is neither ours nor a raw baseline."""
        others = [result for result in self.results if not (is_ours(result) or result.is_limit)]
        return _best([result for result in others if measure.name in result.measures], measure)

    def _as_here(self, measure: Measure) -> Measure:
        is_one = not any("restore_cold_s" in result.measures for result in self.results)
        if measure.name == "restore_warm_s" and is_one:
            return Measure(measure.name, "Restore", measure.unit)  # whatever is cached, each peer finds it so
        if measure.name == "durable_s" and self.storage != "local":
            return Measure(measure.name, "Save, until the server has acknowledged it", measure.unit)
        if measure.unit != "CPU-s" or self.experiment not in ("size", "objects") or not self.size_bytes:
            return measure
        return Measure(measure.name, f"{measure.title}, by the GiB", "CPU-s/GiB", GIB / self.size_bytes)


def compare(run: Run) -> list[Comparison]:
    """Every result of the run in exactly one comparison, in the order of the run."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in run.results:
        key: tuple[object, ...] = (result.experiment, result.storage)
        if result.experiment != "workers":
            parameters = json.dumps(result.parameters, sort_keys=True)
            key += (result.size_bytes, result.variable_count, result.worker_count, parameters)
        groups.setdefault(key, []).append(result)
    found = []
    for results in groups.values():
        largest = max(results, key=lambda result: result.size_bytes)  # one that failed at once may not know its size
        place = (largest.experiment, largest.storage, largest.size_bytes, largest.variable_count)
        found.append(Comparison(*place, tuple(results)))
    return found


def of(comparisons: Sequence[Comparison], experiment: str) -> list[Comparison]:
    return [comparison for comparison in comparisons if comparison.experiment == experiment]


def why_missing(result: Result, measure: Measure) -> str:
    """In a few words, for a bar that is not there."""
    if result.error:
        return result.error
    if result.is_limit and measure.name in ("blocked_s", "peak_save_bytes", "peak_restore_bytes"):
        return "does not apply: only moves the bytes"
    return "not measured"


def is_ours(result: Result) -> bool:
    return result.peer == OURS or result.peer.startswith(f"{OURS},")


def number(value: float) -> str:
    """Three significant digits, no exponent; counts as they are."""
    if value == int(value) and (value == 0 or abs(value) >= 10):
        return f"{value:,.0f}"
    digits = max(0, 2 - _magnitude(value))
    return f"{value:,.{min(digits, 6)}f}"


def size(value: float) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", 2**10)):
        if value >= factor:
            return f"{number(value / factor).removesuffix('.00').removesuffix('.0')} {unit}"
    return f"{value:,.0f} B"


def storage_name(storage: str) -> str:
    names = {"local": "local disk", "s3": "S3 (SeaweedFS on loopback)", "gcs": "GCS (an emulator on loopback)"}
    return names.get(storage, storage)


def _magnitude(value: float) -> int:
    return int(f"{abs(value):.2e}".partition("e")[2])


def _best(results: Sequence[Result], measure: Measure) -> Result | None:
    return min(results, key=lambda result: result.measures[measure.name].median, default=None)


def _unknown(name: str) -> Measure:
    words, _, unit = name.rpartition("_")
    known = {"s": ("s", 1.0), "bytes": ("MiB", 1 / MIB)}
    if words and unit in known:
        return Measure(name, words.replace("_", " ").capitalize(), *known[unit])
    return Measure(name, name.replace("_", " ").capitalize(), "")
