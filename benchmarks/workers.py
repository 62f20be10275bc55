"""Several workers of one job, on one machine: who writes how much, how soon it is committed, and the time line of it.

Each worker is a real process under `MultiWorkerMirroredStrategy` on loopback; every one holds a copy of the state. Its
variables are of 64 different sizes, the largest 64 times the smallest.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.experiments import TENSOR_COUNT
from benchmarks.results import Event, Result, Timeline
from benchmarks.turns import summarize
from tests.processes import run_workers

_TIMEOUT_S = 600


def measure_workers(count: int, size_bytes: int, rounds: int, folder: str) -> tuple[Result, Timeline]:
    """Saves by `count` workers to a local folder, and the time line of the last one."""
    with tempfile.TemporaryDirectory(dir=os.path.abspath(folder), prefix="ckptflow-workers-") as place:
        env = {"BENCH_PLACE": place, "BENCH_SIZE": str(size_bytes), "BENCH_ROUNDS": str(rounds + 1)}
        run_workers("benchmarks.workers:main", count, env=env, timeout_s=_TIMEOUT_S)
        found = []
        for worker in range(count):
            with open(f"{place}/worker-{worker}.json") as file:
                found.append(json.load(file))
    measured = [_round([each["rounds"][number] for each in found]) for number in range(rounds + 1)]
    result = Result(
        experiment="workers",
        peer="ckptflow",
        storage="local",
        size_bytes=size_bytes,
        variable_count=TENSOR_COUNT,
        worker_count=count,
        rounds=rounds,
        measures=summarize(measured),
        note="MultiWorkerMirroredStrategy; share: of the bytes, what the worker with the most (the least) wrote, "
        "as a ratio to an equal share",
    )
    return result, timeline(f"one save by {count} worker(s)", size_bytes, [each["rounds"][-1] for each in found])


def timeline(title: str, size_bytes: int, workers: Sequence[dict[str, Any]]) -> Timeline:
    """The spans of every worker, from the moment in which the chief's save was called."""
    zero_ns = workers[0]["called_ns"]
    events = [
        Event(
            worker=worker,
            thread=span["thread"],
            name=span["name"],
            start_s=(span["start_ns"] - zero_ns) / 1e9,
            end_s=(span["end_ns"] - zero_ns) / 1e9,
            size_bytes=span["arguments"].get("size_bytes", 0),
            shard=span["arguments"].get("shard", ""),
        )
        for worker, each in enumerate(workers)
        for span in each["spans"]
    ]
    return Timeline(title, "local", size_bytes, len(workers), tuple(sorted(events, key=lambda event: event.start_s)))


def _round(workers: Sequence[dict[str, Any]]) -> dict[str, float]:
    """One save, as all workers saw it."""
    writes = [[span for span in each["spans"] if span["name"] == "write"] for each in workers]
    written = [sum(span["arguments"]["size_bytes"] for span in spans) for spans in writes]
    last_shard_ns = max(span["end_ns"] for spans in writes for span in spans)
    equal = sum(written) / len(written)
    return {
        "blocked_s": max(each["blocked_s"] for each in workers),
        "durable_s": (workers[0]["committed_ns"] - workers[0]["called_ns"]) / 1e9,
        "commit_after_last_shard_s": (workers[0]["committed_ns"] - last_shard_ns) / 1e9,
        "most_written_share": max(written) / equal,
        "least_written_share": min(written) / equal,
    }


def main() -> None:
    """One worker."""
    import tensorflow as tf

    import ckptflow
    from ckptflow.spans import record

    place, size_bytes = os.environ["BENCH_PLACE"], int(os.environ["BENCH_SIZE"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    module = tf.Module()
    with strategy.scope():
        unit = size_bytes // 4 // sum(range(1, TENSOR_COUNT + 1))
        module.v = [tf.Variable(tf.fill((unit * (i + 1),), float(i))) for i in range(TENSOR_COUNT)]
    found = []
    rounds = int(os.environ["BENCH_ROUNDS"])
    keep = ckptflow.KeepLast(1)
    with ckptflow.CheckpointManager(f"{place}/run", {"m": module}, strategy=strategy, keep=keep) as manager:
        manager.restore_latest()
        for number in range(rounds):
            for variable in module.v:
                variable.assign_add(tf.ones(variable.shape))
            manager.wait()  # all begin together
            with record() as spans:
                called_ns, start = time.time_ns(), time.perf_counter()
                pending = manager.save(number)
                blocked_s = time.perf_counter() - start
                pending.result()
                committed_ns = time.time_ns()
                manager.wait()
            lines = [{field: getattr(span, field) for field in span.__slots__} for span in spans]
            found.append({"called_ns": called_ns, "committed_ns": committed_ns, "blocked_s": blocked_s, "spans": lines})
        for variable in module.v:
            variable.assign(tf.zeros(variable.shape))
        manager.restore_latest()
        wrong = [i for i, variable in enumerate(module.v) if tf.reduce_any(variable != i + rounds)]
        if wrong:
            raise AssertionError(f"worker {worker}: the restored variables {wrong[:5]} are not the saved ones")
    with open(f"{place}/worker-{worker}.json", "w") as file:
        json.dump({"rounds": found}, file)


if __name__ == "__main__":
    main()
