"""Several workers restore from S3 behind one link that all of them share: how long, and how many bytes go over it.

Each worker is a real process under `MultiWorkerMirroredStrategy` on loopback, the server is SeaweedFS, and the link a
proxy with one rate for all connections (`benchmarks.link`). What workers send one another does not go over it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from benchmarks.experiments import TENSOR_COUNT
from benchmarks.link import Link, linked
from benchmarks.results import Result
from benchmarks.turns import summarize
from tests.processes import run_workers
from tests.servers import BUCKET, seaweedfs

LINK_BYTES_PER_S = 400e6
WAYS = {"auto": "ckptflow", "storage": 'ckptflow, restore_from="storage"'}
_TIMEOUT_S = 900


@contextlib.contextmanager
def place(folder: str, bytes_per_s: float = LINK_BYTES_PER_S) -> Iterator[dict[str, Any]]:
    """The options by which a server is found behind the link."""
    with seaweedfs(os.path.abspath(folder)) as server:
        server.make_bucket(BUCKET)
        there = urlsplit(server.endpoint)
        link = Link(bytes_per_s=100e9, shared_bytes_per_s=bytes_per_s)
        with linked(there.hostname or "", there.port or 0, link) as port:
            given = server.storage_options["client_kwargs"] | {"endpoint_url": f"http://127.0.0.1:{port}"}
            yield server.storage_options | {"client_kwargs": given}


def measure_restores(count: int, way: str, size_bytes: int, rounds: int, options: dict[str, Any]) -> Result:
    """Restores by `count` workers, each with a manager of its own; the first round saves, and warms up."""
    with tempfile.TemporaryDirectory(prefix="ckptflow-restoring-") as out:
        env = {
            "BENCH_OUT": out,
            "BENCH_SIZE": str(size_bytes),
            "BENCH_ROUNDS": str(rounds + 1),
            "BENCH_WAY": way,
            "BENCH_OPTIONS": json.dumps(options),
            "BENCH_URL": f"s3://{BUCKET}/{count}-{way}",
        }
        run_workers("benchmarks.restoring:main", count, env=env, timeout_s=_TIMEOUT_S)
        found = []
        for worker in range(count):
            with open(f"{out}/worker-{worker}.json") as file:
                found.append(json.load(file))
    measured = [
        {
            "restore_warm_s": max(each[number]["restore_s"] for each in found),
            "restore_read_bytes": sum(each[number]["storage_bytes"] for each in found),
            "restore_cpu_s": sum(each[number]["cpu_s"] for each in found),
        }
        for number in range(rounds + 1)
    ]
    return Result(
        experiment="workers",
        peer=WAYS[way],
        storage="s3",
        size_bytes=size_bytes,
        variable_count=TENSOR_COUNT,
        worker_count=count,
        rounds=rounds,
        measures=summarize(measured),
        note=f"all behind one link of {LINK_BYTES_PER_S / 1e6:.0f} MB/s; bytes read: from storage, by all workers",
    )


def main() -> None:
    """One worker."""
    import tensorflow as tf

    import ckptflow
    from ckptflow.events import Event, Restored

    size_bytes, way = int(os.environ["BENCH_SIZE"]), os.environ["BENCH_WAY"]
    options = json.loads(os.environ["BENCH_OPTIONS"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    module = tf.Module()
    with strategy.scope():
        length = size_bytes // 4 // TENSOR_COUNT
        module.v = [tf.Variable(tf.fill((length,), float(i))) for i in range(TENSOR_COUNT)]
    url, state = os.environ["BENCH_URL"], {"m": module}
    with ckptflow.CheckpointManager(url, state, strategy=strategy, storage_options=options) as manager:
        manager.save(1).result()
    found = []
    for _ in range(int(os.environ["BENCH_ROUNDS"])):
        for variable in module.v:
            variable.assign(tf.zeros(variable.shape))
        told: list[Event] = []
        with ckptflow.CheckpointManager(
            url,
            state,
            strategy=strategy,
            storage_options=options,
            read_only=True,
            restore_from=way,  # type: ignore[arg-type]
            on_event=told.append,
        ) as manager:
            manager.wait()  # all begin together
            start_s, cpu_s = time.perf_counter(), time.process_time()
            manager.restore_latest()
            taken_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        wrong = [i for i, variable in enumerate(module.v) if tf.reduce_any(variable != float(i))]
        if wrong:
            raise AssertionError(f"the restored variables {wrong[:5]} are not the saved ones")
        (restored,) = (event for event in told if isinstance(event, Restored))
        found.append({"restore_s": taken_s, "cpu_s": cpu_s, "storage_bytes": restored.storage_bytes})
    with open(f"{os.environ['BENCH_OUT']}/worker-{strategy.cluster_resolver.task_id}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
