"""How long a save blocks training, how long until it is durable, what it costs, and how fast it comes back.

    python -m benchmarks.save_restore [--gib 0.5] [--folder .] [--rounds 5]

Three peers write the same state, 64 float32 variables, to the same folder, each in a process of its own, one after the
other. `raw` is the limit: page-aligned buffers straight to the disk and back, nothing checked. `tf.train.Checkpoint` is
`write`, then fsync of what it wrote, which it leaves out itself. Every figure is the median of all rounds after one
that warms up. Restores start with the files put out of the page cache.

What this cannot show: several workers (each writes its share, here one writes all), object storage, an accelerator
(there, values must first come to the host), how much a save slows down the training beside it, memory, and anything
about another machine. On a shared or virtual disk single rounds differ by a factor of two: trust large ratios only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

TENSOR_COUNT = 64
BLOCK_BYTES = 64 << 20


class Peer:
    """One way to save and restore; `save` returns once training may go on, `finish` once it is durable."""

    state: TensorFlowState | None = None

    def save(self, round_number: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Nothing is left to do."""

    def restore(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


class Raw(Peer):
    """O_DIRECT from and to reused, page-aligned memory: what the disk can do."""

    def __init__(self, folder: str, size_bytes: int) -> None:
        self._folder = folder
        self._blocks = [BLOCK_BYTES] * (size_bytes // BLOCK_BYTES) or [size_bytes]
        self._buffer = mmap.mmap(-1, self._blocks[0])
        np.frombuffer(self._buffer, np.uint8)[:] = 1

    def save(self, round_number: int) -> None:
        for number, size_bytes in enumerate(self._blocks):
            with self._open(number, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                if os.pwrite(descriptor, memoryview(self._buffer)[:size_bytes], 0) != size_bytes:
                    raise OSError("short write")
                os.fsync(descriptor)

    def restore(self) -> None:
        for number, size_bytes in enumerate(self._blocks):
            with self._open(number, os.O_RDONLY) as descriptor:
                if os.preadv(descriptor, [memoryview(self._buffer)[:size_bytes]], 0) != size_bytes:
                    raise OSError("short read")

    @contextmanager
    def _open(self, number: int, flags: int) -> Iterator[int]:
        descriptor = os.open(f"{self._folder}/raw-{number}", flags | os.O_DIRECT, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class TensorFlowState:
    """The state that the two real peers save: values that change in each round and can be checked after a restore."""

    def __init__(self, size_bytes: int) -> None:
        import tensorflow as tf

        length = size_bytes // 4 // TENSOR_COUNT
        self.module = tf.Module()
        self.module.variables_list = [tf.Variable(tf.random.normal((length,))) for _ in range(TENSOR_COUNT)]
        self._saved: list[float] = []

    def train(self) -> None:
        """Every value changes, as in a step."""
        for variable in self.module.variables_list:
            variable.assign_add(variable * 0.5 + 1.0)

    def mark(self) -> None:
        self._saved = [float(variable[-1]) for variable in self._sample()]

    def spoil(self) -> None:
        for variable in self.module.variables_list:
            variable.assign(variable * 0.0)

    def check(self) -> None:
        if [float(variable[-1]) for variable in self._sample()] != self._saved:
            raise AssertionError("the restored values are not the saved ones")

    def _sample(self) -> Any:
        return self.module.variables_list[:: TENSOR_COUNT // 4]


class TrainCheckpoint(Peer):
    """`tf.train.Checkpoint.write` and `read`, with the fsync that durability takes."""

    def __init__(self, folder: str, size_bytes: int) -> None:
        import tensorflow as tf

        self.state = state = TensorFlowState(size_bytes)
        self._checkpoint = tf.train.Checkpoint(module=state.module)
        self._prefix = f"{folder}/tf"

    def save(self, round_number: int) -> None:
        self._checkpoint.write(self._prefix)

    def finish(self) -> None:
        folder = os.path.dirname(self._prefix)
        for path in [*(entry.path for entry in os.scandir(folder)), folder]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def restore(self) -> None:
        self._checkpoint.read(self._prefix).assert_consumed()


class Ckptflow(Peer):
    """A CheckpointManager with its defaults, keeping one checkpoint."""

    def __init__(self, folder: str, size_bytes: int) -> None:
        import ckptflow

        self.state = state = TensorFlowState(size_bytes)
        self._manager = ckptflow.CheckpointManager(f"{folder}/run", {"m": state.module}, keep=ckptflow.KeepLast(1))
        self._manager.restore_latest()

    def save(self, round_number: int) -> None:
        self._manager.save(round_number)

    def finish(self) -> None:
        self._manager.wait()

    def restore(self) -> None:
        self._manager.restore_latest()

    def close(self) -> None:
        self._manager.close()


PEERS: dict[str, Callable[[str, int], Peer]] = {
    "raw": Raw,
    "tf.train.Checkpoint": TrainCheckpoint,
    "ckptflow": Ckptflow,
}


def drop_from_page_cache(folder: str) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(name: str, folder: str, size_bytes: int, rounds: int) -> dict[str, float]:
    """One peer's medians in seconds; the first round warms up and is not counted."""
    peer = PEERS[name](folder, size_bytes)
    state = peer.state
    taken: dict[str, list[float]] = {"blocked": [], "durable": [], "save_cpu": [], "restore": [], "restore_cpu": []}
    for number in range(rounds + 1):
        if state is not None:
            state.train()
            state.mark()
        started, cpu = time.perf_counter(), cpu_s()
        peer.save(number)
        blocked = time.perf_counter() - started
        peer.finish()
        durable, save_cpu = time.perf_counter() - started, cpu_s() - cpu
        if state is not None:
            state.spoil()
        drop_from_page_cache(folder)
        started, cpu = time.perf_counter(), cpu_s()
        peer.restore()
        restore, restore_cpu = time.perf_counter() - started, cpu_s() - cpu
        if state is not None:
            state.check()
        if number:
            for key, value in zip(taken, (blocked, durable, save_cpu, restore, restore_cpu), strict=True):
                taken[key].append(value)
    peer.close()
    return {key: statistics.median(values) for key, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.5)
    parser.add_argument("--folder", default=".", help="on the disk to measure; what is written is removed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size_bytes = int(arguments.gib * 2**30) // (TENSOR_COUNT * 4096) * TENSOR_COUNT * 4096
    if arguments.peer:
        print(json.dumps(measure(arguments.peer, arguments.folder, size_bytes, arguments.rounds)))
        return
    console = Console(width=100)
    heads = ("peer", "blocks training", "durable after", "CPU-s", "cold restore", "CPU-s")
    table = Table(*heads, title=f"{size_bytes / 2**30:.2f} GiB in {TENSOR_COUNT} variables, {os.cpu_count()} cores")
    for name in PEERS:
        folder = tempfile.mkdtemp(prefix="ckptflow-bench-", dir=arguments.folder)
        command = [sys.executable, "-m", "benchmarks.save_restore", "--peer", name, "--folder", folder]
        command += ["--gib", str(arguments.gib), "--rounds", str(arguments.rounds)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            shutil.rmtree(folder)
        if done.returncode:
            table.add_row(name, f"failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        blocked = "" if name == "raw" else f"{result['blocked'] * 1000:,.1f} ms"
        seconds = [f"{result[key]:.2f}" for key in ("durable", "save_cpu", "restore", "restore_cpu")]
        table.add_row(name, blocked, f"{seconds[0]} s", seconds[1], f"{seconds[2]} s", seconds[3])
    console.print(table)
    console.print(f"Medians of {arguments.rounds} rounds.", " ".join((__doc__ or "").split("\n\n")[-1].split()))


if __name__ == "__main__":
    main()
