"""What is measured, at which scales: data for the quick suite and the full one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MIB, GIB = 2**20, 2**30
TENSOR_COUNT = 64
SHARD_BYTES = 65 * MIB
CONCURRENCY = 4

LOCAL = {
    "raw device": "benchmarks.peers.clients:Device",
    "raw device, two at once": "benchmarks.peers.clients:DeviceTwice",
    "ckptflow": "benchmarks.peers.ours:Ckptflow",
    "tf.train.Checkpoint": "benchmarks.peers.tensorflow:TrainCheckpoint",
    "tf.train.Checkpoint, async": "benchmarks.peers.tensorflow:AsyncTrainCheckpoint",
    "Keras ModelCheckpoint": "benchmarks.peers.tensorflow:ModelCheckpoint",
    "Orbax async": "benchmarks.peers.orbax:OrbaxAsync",
    "PyTorch DCP async": "benchmarks.peers.dcp:DistributedCheckpoint",
}
S3 = {
    "obstore alone": "benchmarks.peers.clients:Obstore",
    "ckptflow, fast": "benchmarks.peers.ours:CkptflowFast",
    "s3fs alone": "benchmarks.peers.clients:Fsspec",
    "ckptflow, s3fs": "benchmarks.peers.ours:CkptflowFsspec",
    "boto3 alone": "benchmarks.peers.clients:Boto3",
}
GCS = {
    "gcsfs alone": "benchmarks.peers.clients:Fsspec",
    "ckptflow, gcsfs": "benchmarks.peers.ours:CkptflowFsspec",
}
LIMITS = ("raw device", "raw device, two at once", "obstore alone", "s3fs alone", "boto3 alone", "gcsfs alone")
TRAINING = {
    "ckptflow": "benchmarks.peers.training:TrainingWithCkptflow",
    "tf.train.Checkpoint, async": "benchmarks.peers.training:TrainingWithAsyncCheckpoint",
}
# Above these, a peer takes more than a minute for a round, or more memory than a small machine has.
MAX_VARIABLES = {"Keras ModelCheckpoint": 1000, "Orbax async": 10_000, "PyTorch DCP async": 10_000}
MEMORY_PER_PEER = 2.5  # times the state, in the middle of a save; the limits hold a few buffers


@dataclass(frozen=True)
class Turns:
    """One point at which peers take turns."""

    experiment: str
    storage: str
    size_bytes: int
    variable_count: int
    rounds: int
    settings: dict[str, Any]

    @property
    def peers(self) -> dict[str, str]:
        if self.experiment == "training":
            return TRAINING
        return {"local": LOCAL, "s3": S3, "gcs": GCS}[self.storage]

    @property
    def restores(self) -> list[str]:
        """On an object storage only the server knows what is cold; of many small variables nothing is."""
        return ["cold", "warm"] if self.experiment == "size" else ["warm"]

    @property
    def title(self) -> str:
        return f"{self.experiment} {self.storage} {self.size_bytes / MIB:,.0f} MiB {self.variable_count:,} variables"


def turns(*, is_full: bool) -> list[Turns]:
    """The points of the quick suite, or of the full one."""
    found = []
    sizes = {16 * MIB: 3, 256 * MIB: 3, GIB: 5} if not is_full else {16 * MIB << i: 7 for i in range(7)}
    if is_full:
        sizes |= {2 * GIB: 3, 4 * GIB: 3, 8 * GIB: 3}
    found += [Turns("size", "local", size, TENSOR_COUNT, rounds, {}) for size, rounds in sizes.items()]
    counts = {1000: 3, 20_000: 3} if not is_full else {10: 7, 100: 7, 1000: 7, 10_000: 3, 20_000: 5, 100_000: 2}
    found += [Turns("variables", "local", count * 4096, count, rounds, {}) for count, rounds in counts.items()]
    settings = {"concurrency": CONCURRENCY, "shard_bytes": SHARD_BYTES, "memory_budget_bytes": 5 * SHARD_BYTES}
    found.append(Turns("objects", "s3", GIB, TENSOR_COUNT, 5 if is_full else 3, settings))
    small = {"concurrency": CONCURRENCY, "shard_bytes": 17 * MIB, "memory_budget_bytes": 5 * 17 * MIB}
    found.append(Turns("objects", "gcs", 256 * MIB if is_full else 64 * MIB, TENSOR_COUNT, 3, small))
    for threads in (1, 2):
        how = {"threads": threads, "batch": 24 * threads}
        found.append(Turns("training", "local", GIB // 2, TENSOR_COUNT, 41 if is_full else 5, how))
    return found


EXPERIMENTS = ("size", "variables", "objects", "training", "workers")
PEERS = tuple({**LOCAL, **S3, **GCS, **TRAINING})
WORKERS = {False: (1, 2, 4), True: (1, 2, 3, 4)}
WORKERS_SIZE_BYTES = GIB // 2
RESTORING = {False: (1, 2, 4), True: (1, 2, 4, 8)}  # workers behind one link
RESTORING_SIZE_BYTES = GIB // 2
