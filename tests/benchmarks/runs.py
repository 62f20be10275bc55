"""A run as the suite writes it, with everything that may be in one: failures, gaps, hostile names."""

from __future__ import annotations

from typing import Any

from benchmarks.results import FORMAT, Event, Result, Run, Stat, Timeline

MIB, GIB = 2**20, 2**30
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>%{x}$y$ <b>&amp;"


def stat(median: float, first: float | None = None) -> Stat:
    return Stat(median, median * 0.9, median * 1.3, first)


def result(peer: str, seconds: float, **fields: Any) -> Result:
    """One that takes `seconds` for a save, and for the rest in proportion."""
    fields = {"experiment": "size", "storage": "local", "size_bytes": GIB, "variable_count": 64, **fields}
    measures = {
        "durable_s": stat(seconds),
        "save_cpu_s": stat(seconds * 0.5),
        "restore_cold_s": stat(seconds * 1.1),
        "restore_warm_s": stat(seconds * 0.8),
        "restore_cpu_s": stat(seconds * 0.4),
    }
    if not fields.get("is_limit"):
        measures["blocked_s"] = stat(0.002 if peer.startswith("ckptflow") else seconds * 0.7, first=0.004)
        measures["peak_save_bytes"] = stat(300e6)
    return Result(peer=peer, worker_count=1, rounds=5, measures=measures, **fields)


def failed(peer: str, error: str, **fields: Any) -> Result:
    fields = {"experiment": "size", "storage": "local", "size_bytes": GIB, "variable_count": 64, **fields}
    return Result(peer=peer, worker_count=1, error=error, **fields)


def local(**where: Any) -> list[Result]:
    """All peers on a disk at one point; one failed."""
    scale = where.get("size_bytes", GIB) / GIB
    return [
        result("raw device", 0.28 * scale, is_limit=True, note="no tensors", **where),
        result("raw device, two at once", 0.25 * scale, is_limit=True, **where),
        result("ckptflow", 0.3 * scale, note="durable and checksummed", **where),
        result("tf.train.Checkpoint", 1.54 * scale, note="fsynced by the benchmark", **where),
        result("tf.train.Checkpoint, async", 1.2 * scale, **where),
        result("Keras ModelCheckpoint", 2.4 * scale, **where),
        result("Orbax async", 1.75 * scale, **where),
        failed("PyTorch DCP async", "ModuleNotFoundError: No module named 'torch'", **where),
    ]


def objects() -> list[Result]:
    where: dict[str, Any] = {"experiment": "objects", "storage": "s3", "parameters": {"concurrency": 4}}
    found = [
        result("obstore alone", 0.9, is_limit=True, **where),
        result("ckptflow, fast", 0.99, **where),
        result("s3fs alone", 1.4, is_limit=True, **where),
        result("ckptflow, s3fs", 1.5, **where),
    ]
    for each in found:
        del each.measures["restore_cold_s"]
        each.measures["save_requests"] = Stat(19, 19, 19, 19)
    return found


def training() -> list[Result]:
    def one(peer: str, step_s: float, slowdown: float) -> Result:
        measures = {"step_s": stat(step_s), "plain_step_s": stat(0.1), "blocked_s": stat(0.001)}
        measures |= {"slowdown": Stat(slowdown, -0.01, slowdown + 0.02)}
        return Result("training", peer, "local", GIB // 2, 64, 1, False, 7, measures, {"threads": 1, "batch": 24})

    return [
        one("ckptflow", 0.102, 0.02),
        one("tf.train.Checkpoint, async", 0.11, 0.1),
    ]


def unchanged() -> list[Result]:
    def one(peer: str, sent_mib: float, first_s: float, then_s: float) -> Result:
        measures = {"blocked_s": stat(0.001), "durable_s": stat(then_s, first=first_s), "stored_bytes": stat(700 * MIB)}
        measures |= {"save_1_s": stat(first_s), "save_2_s": stat(then_s), "save_restarted_s": stat(then_s)}
        measures |= {"save_sent_bytes": stat(sent_mib * MIB, first=256 * MIB)}
        return Result("unchanged", peer, "s3", GIB // 4, 0, 1, False, 6, measures, {"work": "frozen"})

    return [one("ckptflow", 13, 1.0, 0.1), one("ckptflow, all sent", 256, 1.0, 0.9)]


def workers() -> list[Result]:
    found = []
    for count in (1, 2, 4):
        measures = {
            "blocked_s": stat(0.004 * count),
            "durable_s": stat(0.2 + 0.05 * count),
            "commit_after_last_shard_s": stat(0.01 * count),
            "most_written_share": Stat(1.01, 1.0, 1.02),
            "least_written_share": Stat(0.99, 0.98, 1.0),
        }
        found.append(Result("workers", "ckptflow", "local", GIB // 2, 64, count, rounds=5, measures=measures))
    found.append(Result("workers", "ckptflow", "local", 0, 64, 3, error="a worker was killed"))
    return found


def timeline(worker_count: int = 2) -> Timeline:
    """A save: two threads that transfer, one that drives, and the caller's."""
    events = []
    for worker in range(worker_count):
        late_s = 0.001 * worker - 0.0005  # the other workers do not begin in the same moment
        events.append(Event(worker, "MainThread", "capture", late_s, late_s + 0.002))
        events.append(Event(worker, "ckptflow-save", "plan", late_s + 0.002, late_s + 0.003))
        for i in range(4):
            thread, start_s = f"ckptflow-transfer-{i % 2}", late_s + 0.003 + 0.05 * (i // 2)
            what: dict[str, Any] = {
                "size_bytes": 64 * MIB,
                "shard": f"shard-{worker:05}-of-{worker_count:05}-{i:04}.safetensors",
            }
            events.append(Event(worker, thread, "pack", start_s, start_s + 0.01, **what))
            events.append(Event(worker, thread, "write", start_s + 0.01, start_s + 0.05, **what))
        events.append(Event(worker, "ckptflow-save", "receipt", 0.104 + late_s, 0.106 + late_s, size_bytes=800))
    events.append(Event(0, "ckptflow-save", "await", 0.106, 0.11))
    events.append(Event(0, "ckptflow-save", "commit", 0.11, 0.116))
    events.append(Event(0, "ckptflow-save", "prune", 0.116, 0.13))
    return Timeline(f"one save by {worker_count} workers", "local", GIB // 2, worker_count, tuple(events))


def run(*results: Result, timelines: tuple[Timeline, ...] = (), **fields: Any) -> Run:
    about: dict[str, Any] = {
        "created_at": "2026-11-26T18:00:00+00:00",
        "command": "python -m benchmarks",
        "machine": {"cpu": "A CPU", "core_count": 2, "memory_bytes": 32 * GIB, "packages": {"tensorflow": "2.21.0"}},
        "cannot_show": ("An accelerator.", "A network."),
        "bias": ("We wrote it.",),
    }
    return Run(format=FORMAT, results=results, timelines=timelines, **{**about, **fields})


def whole() -> Run:
    """All experiments, as a quick run has them."""
    sizes = [each for size in (16 * MIB, 256 * MIB, GIB) for each in local(size_bytes=size)]
    counts = []
    for count in (10, 1000, 20_000):
        where: dict[str, Any] = {"experiment": "variables", "size_bytes": count * 4096, "variable_count": count}
        many = local(**where)
        if count > 1000:
            many = [each for each in many if each.peer != "Keras ModelCheckpoint"]
            many.append(failed("Keras ModelCheckpoint", "not run: it takes minutes for a round", **where))
        counts += many
    results = sizes + counts + objects() + training() + unchanged() + workers()
    return run(*results, timelines=(timeline(1), timeline(2)))


def hostile() -> Run:
    """Every string that a run can hold, as somebody else would have it."""
    name = HOSTILE
    where: dict[str, Any] = {"experiment": name, "storage": name, "parameters": {"threads": name}}
    results = [
        *local(size_bytes=16 * MIB),
        *local(),
        *objects(),
        *training(),
        *workers(),
        result(name, 0.5, note=name),
        failed(f"{name}!", name),
        result(name, 0.5, note=name, **where),
        result("ckptflow", 0.5, note=name, **where),
    ]
    results[-1].measures[f"{name}_bytes"] = Stat(1, 1, 1)
    event = Event(0, f"{name} thread", f"{name} span", 0.0, 0.1, 5, f"{name} shard")
    line = Timeline(name, name, 1, 1, (event,))
    said = {"created_at": name, "command": name, "machine": {"cpu": name, name: {name: name}}}
    return run(*results, timelines=(timeline(2), line), cannot_show=(name,), bias=(name,), **said)
