"""What is measured, at which scales: data for the quick suite and the full one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.link import Link
from ckptflow.job.arguments import DEFAULT_MEMORY_BUDGET_BYTES

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
LINK_STREAMS = (8, 16, 32, 64)  # of the clients alone, of which the best is compared with


def _alone(client: str, target: str) -> dict[str, str]:
    return {f"{client} alone, {streams} at once": target for streams in LINK_STREAMS}


LINK_S3 = {
    "ckptflow, fast": "benchmarks.peers.ours:CkptflowFast",
    **_alone("obstore", "benchmarks.peers.clients:Obstore"),
    "ckptflow, s3fs": "benchmarks.peers.ours:CkptflowFsspec",
    **_alone("s3fs", "benchmarks.peers.clients:Fsspec"),
    **_alone("boto3", "benchmarks.peers.clients:Boto3"),
}
LINK_GCS = {
    "ckptflow, gcsfs": "benchmarks.peers.ours:CkptflowFsspec",
    **_alone("gcsfs", "benchmarks.peers.clients:Fsspec"),
}
# As to a cloud: 12 MB/s and 20 ms for each connection, an eighth more or less, one request in a hundred refused; and
# with one in twenty ten times slower. See `link.py`.
LINKS = {
    "usual": Link(12e6, 0.02, jitter=0.125, refused=0.01),
    "slow": Link(12e6, 0.02, jitter=0.125, refused=0.01, slow=0.05),
}
LIMITS = (
    "raw device",
    "raw device, two at once",
    "obstore alone",
    "s3fs alone",
    "boto3 alone",
    "gcsfs alone",
    *(name for name in {**LINK_S3, **LINK_GCS} if " alone, " in name),
)
TRAINING = {
    "ckptflow": "benchmarks.peers.training:TrainingWithCkptflow",
    "tf.train.Checkpoint, async": "benchmarks.peers.training:TrainingWithAsyncCheckpoint",
}
# What is trained, of a model whose whole state is saved. See `peers/tuned.py`.
WORKS = {
    "frozen": "95 % frozen",
    "lora": "LoRA adapters",
    "embedding": "a fixed embedding table, 80 %",
    "all": "everything trained",
}
_OURS = {
    "ckptflow": "benchmarks.peers.unchanged:Reusing",
    "ckptflow, all sent": "benchmarks.peers.unchanged:Sending",
}
UNCHANGED = {
    "local": {"raw device": "benchmarks.peers.clients:Device", **_OURS},
    "s3": {"obstore alone": "benchmarks.peers.clients:Obstore", **_OURS},
}
# Above these, a peer takes more than a minute for a round, or more memory than a small machine has.
MAX_VARIABLES = {"Keras ModelCheckpoint": 1000, "Orbax async": 10_000, "PyTorch DCP async": 10_000}
MEMORY_PER_PEER = 2.5  # times the state, in the middle of a save; raw baselines take a few buffers


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
        if self.experiment == "link":
            return {"s3": LINK_S3, "gcs": LINK_GCS}[self.storage]
        if self.experiment == "unchanged":
            return UNCHANGED[self.storage]
        return {"local": LOCAL, "s3": S3, "gcs": GCS}[self.storage]

    def settings_of(self, peer: str) -> dict[str, Any]:
        """Behind a link ckptflow has its defaults, and a client alone the number in its name, in the same memory.

        Where a part of a model is trained ckptflow has its defaults as well, and a client alone what these come to.
        """
        if self.experiment == "unchanged" and peer in LIMITS:
            return {"concurrency": 16, "shard_bytes": 8 * MIB}
        if self.experiment != "link":
            return self.settings
        if " alone, " not in peer:
            return {}
        streams = int(peer.rpartition(", ")[2].split()[0])
        return {
            "concurrency": streams,
            "shard_bytes": min(8 * MIB, DEFAULT_MEMORY_BUDGET_BYTES // streams // MIB * MIB),
        }

    @property
    def link(self) -> Link | None:
        """What is between the peers and the server."""
        if self.experiment != "link":
            return None
        link, slower = LINKS[self.settings["link"]], self.settings.get("slower", 1)
        return replace(link, bytes_per_s=link.bytes_per_s / slower, latency_s=link.latency_s * slower)

    @property
    def restores(self) -> list[str]:
        """On an object storage only the server knows what is cold; of many small variables nothing is."""
        return {"size": ["cold", "warm"], "unchanged": []}.get(self.experiment, ["warm"])

    @property
    def title(self) -> str:
        if self.experiment == "unchanged":
            return f"{WORKS[self.settings['work']]}, {self.storage} {self.size_bytes / MIB:,.0f} MiB"
        what = f"link ({link_name(self.settings)})" if self.experiment == "link" else self.experiment
        return f"{what} {self.storage} {self.size_bytes / MIB:,.0f} MiB {self.variable_count:,} variables"


def link_name(settings: Mapping[str, Any]) -> str:
    """For people: "usual", or "slow, 4 times slower" where the machine could not keep up with all streams else."""
    slower = settings.get("slower", 1)
    return str(settings["link"]) + ("" if slower == 1 else f", {slower:g} times slower")


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
    for size_bytes in (384 * MIB, 2 * GIB) if is_full else (384 * MIB,):
        for name in LINKS:
            for storage in ("s3", "gcs"):
                count = size_bytes // (8 * MIB)
                found.append(Turns("link", storage, size_bytes, count, 5 if is_full else 3, {"link": name}))
    small = {"concurrency": CONCURRENCY, "shard_bytes": 17 * MIB, "memory_budget_bytes": 5 * 17 * MIB}
    found.append(Turns("objects", "gcs", 256 * MIB if is_full else 64 * MIB, TENSOR_COUNT, 3, small))
    for threads in (1, 2):
        how = {"threads": threads, "batch": 24 * threads}
        found.append(Turns("training", "local", GIB // 2, TENSOR_COUNT, 41 if is_full else 5, how))
    for work in WORKS:
        for storage in UNCHANGED:  # so many rounds that five checkpoints are there in some of them
            size_bytes, rounds = (GIB, 7) if is_full else (GIB // 4, 6)
            found.append(Turns("unchanged", storage, size_bytes, 0, rounds, {"work": work}))
    return found


EXPERIMENTS = ("size", "variables", "objects", "link", "training", "unchanged", "workers")
PEERS = tuple({**LOCAL, **S3, **GCS, **LINK_S3, **LINK_GCS, **TRAINING, **_OURS})
WORKERS = {False: (1, 2, 4), True: (1, 2, 3, 4)}
WORKERS_SIZE_BYTES = GIB // 2
RESTORING = {False: (1, 2, 4), True: (1, 2, 4, 8)}  # workers behind one link
RESTORING_SIZE_BYTES = GIB // 2
