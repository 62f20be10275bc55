"""One simulated job: it starts, saves three times, of which the last lets the first go, and starts again."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec

from benchmarks.scale.kernel import Kernel, virtual_time
from benchmarks.scale.messages import Member, PostOffice
from benchmarks.scale.model import PIECE_BYTES, SHARD_BYTES, Network, Storage, exchange_s, read_s, send
from benchmarks.scale.state import make_specs
from benchmarks.scale.store import Bucket, SimulatedStore
from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Resume, Start
from ckptflow.commit.retention import KeepLast
from ckptflow.format.layout import Folder, receipt_name, with_tag
from ckptflow.format.manifest import (
    LINE_END,
    Manifest,
    Receipt,
    ReceiptSlice,
    ShardRecord,
    TensorRecord,
    digest_of,
    encode,
)
from ckptflow.format.spec import TensorSpec
from ckptflow.transfer.plan import WorkerPlan, plan_shards, plan_workers

MOST_REAL = 64  # workers whose messages are real; of more, some are, and the others say the same
_SAMPLE = 16
WAYS = ("each reads all", "each reads 1/N, and exchanges", "each reads its own 1/N")


@dataclass(frozen=True)
class Job:
    """What is simulated."""

    workers: int
    size_bytes: int
    tensors: int
    shard_bytes: int = SHARD_BYTES
    storage: Storage = field(default_factory=Storage)
    network: Network = field(default_factory=Network)
    piece_bytes: int = PIECE_BYTES
    seed: int = 1

    @property
    def real(self) -> list[int]:
        """The workers that run."""
        if self.workers <= MOST_REAL:
            return list(range(self.workers))
        return sorted({*range(0, self.workers, self.workers // _SAMPLE), 1, self.workers - 1})


@dataclass(frozen=True)
class SaveFigures:
    """One save. In virtual time: `written_s` until the last shard is there, and `tail_s` from then on until the save is
    acknowledged, without what the processor takes. That is measured: `chief_cpu_s` of the commit, `prune_cpu_s` of
    what comes after it. `requests` are those of all workers, by verb, without what pruning adds.
    """

    written_s: float
    tail_s: float
    chief_cpu_s: float
    shards: int
    requests: Mapping[str, int]
    prune_requests: Mapping[str, int]
    prune_cpu_s: float
    manifest_bytes: int
    receipt_bytes: int

    @property
    def polls(self) -> int:
        """How often receipts were looked for by a listing: one more is that of the claims."""
        return self.requests["list"] - 1


@dataclass(frozen=True)
class StartFigures:
    """A start, without the bytes of tensors, and how long these take, by the way in which they are read. `requests` of
    the chief, and of each other worker."""

    decided_s: float
    rounds: int
    message_bytes: int
    chief_cpu_s: float
    worker_cpu_s: float
    requests: Mapping[str, int]
    others: Mapping[str, int]
    read_s: Mapping[str, float]
    read_requests: Mapping[str, int]


@dataclass(frozen=True)
class Figures:
    """What came out. `save` is one in which nothing is deleted, `pruning_save` one in which the oldest is."""

    job: Job
    plan_cpu_s: float
    save: SaveFigures
    pruning_save: SaveFigures
    start: StartFigures


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("ckptflow")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def simulate(job: Job, specs: Sequence[TensorSpec] | None = None) -> Figures:
    """The same for the same job, but for what the processor takes. `specs`: of what is saved, else it is made up."""
    kernel = Kernel()
    bucket = Bucket(kernel, job.storage, job.seed)
    specs = specs or make_specs(job.tensors, job.size_bytes, job.seed)
    with _quiet(), virtual_time(kernel, job.seed):
        save, third = _save_often(kernel, bucket, job, specs, _begin(kernel, bucket, job))
        start = _restart(kernel, bucket, job)
    return Figures(job, _plan_cpu_s(job, specs), save, third, start)


def _begin(kernel: Kernel, bucket: Bucket, job: Job) -> Start:
    """The first start, on an empty root."""
    office = PostOffice(kernel, job.network, job.workers, job.real)

    def begin(worker: int) -> Callable[[], Start]:
        store = SimulatedStore(bucket)
        resume = Resume(store, Member(office, worker), Summaries(store), check=lambda _: None, load=lambda *_: None)
        return lambda: resume.start_anew(fresh=False)

    started: list[Start] = kernel.finish([kernel.spawn(begin(worker)) for worker in job.real])
    return started[0]


def _save_often(
    kernel: Kernel, bucket: Bucket, job: Job, specs: Sequence[TensorSpec], start: Start
) -> tuple[SaveFigures, SaveFigures]:
    """The second save, in which nothing is deleted, and the third, in which the first is."""
    if start.held is None:
        raise ValueError("nothing was claimed")
    plans = plan_workers(specs, workers=range(job.workers), world_size=job.workers, shard_bytes=job.shard_bytes)
    receipts = [_receipt(plan, start.held, job.seed) for plan in plans]
    # Small tensors are the chief's, whole: the digests of its slices are those of all copies.
    alike = {piece.tensor: piece.crc32c for piece in receipts[0].slices if len(piece.shape) == 1}
    tensors = tuple(TensorRecord(name=spec.name, dtype=spec.dtype, shape=spec.shape, slices=()) for spec in specs)
    store = SimulatedStore(bucket)
    coordinator = Coordinator(store, start, Summaries(store), [KeepLast(2)], commit_timeout_s=36_000.0)
    figures = []
    for step in (1, 2, 3):
        folder = Folder(step, start.held.number)
        told = [msgspec.structs.replace(each, folder=str(folder), digest=digest_of(alike)) for each in receipts]
        draft = Draft(folder, job.workers, tensors)
        figures.append(_save(kernel, bucket, job, store, coordinator, draft, told, alike, start.held.tag))
    return figures[1], figures[2]


def _plan_cpu_s(job: Job, specs: Sequence[TensorSpec]) -> float:
    """What planning takes one worker, the chief or another."""
    taken = []
    for worker in {0, job.workers // 2}:
        began = time.process_time()
        plan_shards(specs, worker=worker, world_size=job.workers, shard_bytes=job.shard_bytes)
        taken.append(time.process_time() - began)
    return max(taken)


def _receipt(plan: WorkerPlan, held: Held, seed: int) -> Receipt:
    """What a worker tells of its plan once it is written; checksums are drawn."""
    chance = random.Random(f"{seed} {plan.worker}")
    return Receipt(
        folder="",
        writer_id=held.writer_id,
        worker=plan.worker,
        world_size=plan.world_size,
        shards=tuple(
            ShardRecord(name=with_tag(shard.name, held.tag), size_bytes=shard.size_bytes, crc32c=chance.getrandbits(32))
            for shard in plan.shards
        ),
        slices=tuple(
            ReceiptSlice(
                tensor=piece.name,
                shard=number,
                offset=piece.offset,
                start=piece.start,
                shape=piece.shape,
                crc32c=chance.getrandbits(32),
            )
            for number, shard in enumerate(plan.shards)
            for piece in shard.slices
        ),
    )


def _save(
    kernel: Kernel,
    bucket: Bucket,
    job: Job,
    store: SimulatedStore,
    coordinator: Coordinator,
    draft: Draft,
    receipts: Sequence[Receipt],
    alike: Mapping[str, int],
    tag: str,
) -> SaveFigures:
    """One save: all workers send, each puts its receipt when it has, the chief commits and prunes."""
    began_s, receipt_bytes = kernel.now_s, 0
    sent = send(job.storage, bucket.chance, [[shard.size_bytes for shard in each.shards] for each in receipts])
    shards = bucket.shards[str(draft.folder)] = {}
    for worker, receipt in enumerate(receipts):
        shards |= {shard.name: shard.size_bytes for shard in receipt.shards}
        if worker:
            line = encode(receipt) + LINE_END  # the second one is not read, since the digests are alike
            receipt_bytes = max(receipt_bytes, len(line))
            key = draft.folder.key(receipt_name(worker, job.workers, tag))
            at_s = began_s + sent.ended_s[worker] + job.storage.request_s(bucket.chance, len(line))
            kernel.at(at_s, partial(bucket.small.__setitem__, key, line))

    def commit() -> None:
        kernel.sleep(sent.ended_s[0])
        coordinator.check_claim_before()
        store.put(draft.folder.key(receipt_name(0, job.workers, tag)), memoryview(encode(receipts[0])))
        coordinator.commit(draft, receipts[0], alike=alike, is_checked=True)

    store.requests.clear()
    committing = kernel.spawn(commit)
    kernel.finish([committing])
    requests = Counter(store.requests)
    requests["put"] += sent.requests - sent.refused + job.workers - 1
    requests["503"] += sent.refused
    store.requests.clear()
    pruning = kernel.spawn(coordinator.prune)
    kernel.finish([pruning])
    written_s = max(sent.ended_s)
    return SaveFigures(
        written_s=written_s,
        tail_s=(committing.ended_s or 0.0) - began_s - written_s,
        chief_cpu_s=committing.cpu_s,
        shards=len(shards),
        requests=dict(requests),
        prune_requests=dict(store.requests),
        prune_cpu_s=pruning.cpu_s,
        manifest_bytes=len(bucket.small[draft.folder.manifest_key]),
        receipt_bytes=receipt_bytes,
    )


def _restart(kernel: Kernel, bucket: Bucket, job: Job) -> StartFigures:
    """Another start, which restores the newest; its tensors take no time here."""
    office = PostOffice(kernel, job.network, job.workers, job.real)
    stores = {worker: SimulatedStore(bucket) for worker in job.real}
    manifests: list[Manifest] = []

    def begin(worker: int) -> Callable[[], Start]:
        store = stores[worker]
        resume = Resume(store, Member(office, worker), Summaries(store), check=take, load=lambda *_: None)
        return lambda: resume.run(None)

    def take(manifest: Manifest) -> None:
        manifests.append(manifest)

    began_s = kernel.now_s
    tasks = [kernel.spawn(begin(worker)) for worker in job.real]
    kernel.finish(tasks)
    size_bytes = sum(tensor.size_bytes for tensor in manifests[0].tensors)
    own_bytes, storage = size_bytes / job.workers, job.storage
    shared_s = read_s(storage, own_bytes, job.workers, job.piece_bytes)
    return StartFigures(
        decided_s=max(task.ended_s or 0.0 for task in tasks) - began_s,
        rounds=office.rounds,
        message_bytes=office.sent_bytes,
        chief_cpu_s=tasks[0].cpu_s,
        worker_cpu_s=max((task.cpu_s for task in tasks[1:]), default=0.0),
        requests=dict(stores[0].requests),
        others=dict(stores[job.real[-1]].requests) if job.workers > 1 else {},
        read_s={
            WAYS[0]: read_s(storage, size_bytes, job.workers, job.piece_bytes),
            WAYS[1]: shared_s + exchange_s(job.network, size_bytes, job.workers),
            WAYS[2]: shared_s,
        },
        read_requests={
            WAYS[0]: job.workers * -(-size_bytes // job.piece_bytes),
            WAYS[1]: -(-size_bytes // job.piece_bytes),
            WAYS[2]: -(-size_bytes // job.piece_bytes),
        },
    )
