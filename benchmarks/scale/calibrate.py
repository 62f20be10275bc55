"""Whether the model is right where it can be tried: 1, 2, 4 and 8 real processes, behind a link of known rates."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks.link import Link, linked
from benchmarks.scale.job import WAYS, Job, simulate
from benchmarks.scale.model import MIB, Network, Storage
from ckptflow.format.spec import TensorSpec
from tests.processes import run_workers
from tests.servers import BUCKET, Server, seaweedfs

WORKERS = (1, 2, 4, 8)
STREAMS = 4
SHARD_BYTES = MIB
SHAPES = [(1024, 1024)] * 12 + [(1024,)] * 20  # 48 MiB
LINK = Link(bytes_per_s=2e6, latency_s=0.02)

# What the proxy does: every request has its latency and its connection's rate, and nothing else is in the way.
STORAGE = Storage(
    latency_s=LINK.latency_s,
    sigma=0.0,
    connection_bytes_per_s=LINK.bytes_per_s,
    link_bytes_per_s=1e12,
    slow=0.0,
    refused=0.0,
    puts_per_s=1e9,
    gets_per_s=1e9,
    streams=STREAMS,
)


def calibration_table(folder: str) -> str:
    """Predicted and measured seconds, in Markdown."""
    lines = [
        "| processes | a save, predicted s | measured s | off by | a restore, predicted s | measured s | off by |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workers, save_s, restore_s in measured(folder):
        foretold_s = predict(workers)
        cells = [
            f"{told:.2f} | {found:.2f} | {told / found - 1:+.0%}"
            for told, found in zip(foretold_s, (save_s, restore_s), strict=True)
        ]
        lines.append(f"| {workers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def predict(workers: int) -> tuple[float, float]:
    """The seconds of a save, and of a start with a restore."""
    specs = [TensorSpec(f"m/weights/{number}", "float32", shape) for number, shape in enumerate(SHAPES)]
    size_bytes = sum(4 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in SHAPES)
    job = Job(workers, size_bytes, len(specs), SHARD_BYTES, STORAGE, Network(), piece_bytes=SHARD_BYTES)
    found = simulate(job, specs)
    save_s = found.save.written_s + found.save.tail_s + found.plan_cpu_s + found.save.chief_cpu_s
    return save_s, found.start.decided_s + found.start.read_s[WAYS[0]]


def measured(folder: str) -> Iterator[tuple[int, float, float]]:
    """How many workers, and the median seconds of their saves and restores."""
    with tempfile.TemporaryDirectory(dir=os.path.abspath(folder), prefix="ckptflow-scale-") as place:
        with seaweedfs(place) as server:
            server.make_bucket(BUCKET)
            there = urlsplit(server.endpoint)
            with linked(there.hostname or "", there.port or 0, LINK) as port:
                for workers in WORKERS:
                    yield workers, *_measure(workers, _options(server, port))


def _options(server: Server, port: int) -> dict[str, Any]:
    given = server.storage_options["client_kwargs"] | {"endpoint_url": f"http://127.0.0.1:{port}"}
    return server.storage_options | {"client_kwargs": given, "client": "obstore"}


def _measure(workers: int, options: dict[str, Any]) -> tuple[float, float]:
    given = {
        "workers": workers,
        "url": f"s3://{BUCKET}/{workers}",
        "storage_options": options,
        "shapes": SHAPES,
        "shard_bytes": SHARD_BYTES,
        "streams": STREAMS,
    }
    env = {"CALIBRATION": json.dumps(given)}
    results = run_workers("benchmarks.scale.worker:save_and_restore", workers, env=env)
    found = [json.loads(result.output.splitlines()[-1]) for result in results]
    return median(found[0]["saves_s"]), median(
        max(each) for each in zip(*(f["restores_s"] for f in found), strict=True)
    )
