"""How soon a commit ends after the last worker's shards are there: a clock that only sleeping and requests move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptflow.commit import coordinator as coordinator_module
from ckptflow.commit import lineage as lineage_module
from ckptflow.commit import receipts as receipts_module
from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.retention import KeepLast
from ckptflow.format.layout import Folder, receipt_name, shard_name, writer_tag
from ckptflow.format.manifest import Receipt, encode
from ckptflow.testing import MemoryStore
from tests.commit.roots import Job
from tests.protocol.lives import write_checkpoint

FOLDER = Folder(1, 1)
LOCAL_S, REMOTE_S = 0.003, 0.03  # of a request: an fsync of a small file, a round trip


@dataclass
class Clock:
    """Stands for the module `time`, and for `awake_s`, in a commit."""

    now_s: float = 0.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    slept_s: list[tuple[float, float]] = field(default_factory=list)  # when, how long

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.slept_s.append((self.now_s, duration_s))
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Time passes; what is due happens at its time."""
        end_s = self.now_s + duration_s
        for at_s, happen in sorted(self.events, key=lambda event: event[0]):
            if at_s <= end_s:
                self.now_s = at_s
                happen()
        self.events = [event for event in self.events if event[0] > end_s]
        self.now_s = end_s


@dataclass
class Run:
    """One commit of a step that workers report at `reports_s`: how it went."""

    commit_s: float
    last_s: float  # when the last receipt was durable
    clock: Clock
    calls: list[tuple[float, str, str]]  # when, verb, key

    def after(self, verb: str) -> list[str]:
        """The keys of the calls of `verb` that began once the last receipt was there."""
        return [key for at_s, called, key in self.calls if called == verb and at_s >= self.last_s]


def commit(reports_s: list[float], *, is_object_store: bool, prune: bool = True) -> Run:
    """A real coordinator's commit; the chief has written its own share at time 0."""
    clock, calls = Clock(), []
    request_s = REMOTE_S if is_object_store else LOCAL_S

    def hook(verb: str, key: str) -> None:
        calls.append((clock.now_s, verb, key))
        clock.advance(request_s)

    objects: dict[str, bytes] = {}
    job = Job(MemoryStore(objects))
    job.begin_anew()
    store = MemoryStore(objects, hook)
    store.is_object_store = is_object_store
    draft, receipt = write_checkpoint(MemoryStore(objects), job.start, FOLDER, b"value")
    world_size = len(reports_s) + 1
    shards = tuple(msgspec.structs.replace(shard, name=shard_name(0, world_size, 0)) for shard in receipt.shards)
    receipt = msgspec.structs.replace(receipt, shards=shards, world_size=world_size)
    coordinator = Coordinator(store, job.start, Summaries(store), [KeepLast(1)], commit_timeout_s=10_000.0)

    tag = writer_tag(receipt.writer_id)

    def report(worker: int) -> Callable[[], None]:
        other = Receipt(folder=str(FOLDER), writer_id=receipt.writer_id, worker=worker, world_size=world_size)
        return lambda: objects.update({FOLDER.key(receipt_name(worker, world_size, tag)): encode(other)})

    clock.events = [(at_s, report(worker)) for worker, at_s in enumerate(reports_s, start=1)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (coordinator_module, lineage_module, receipts_module):
            patch.setattr(module, "awake_s", clock.monotonic)
        for module in (lineage_module, receipts_module):
            patch.setattr(module, "time", clock)
        coordinator.commit(Draft(FOLDER, world_size, draft.tensors), receipt, prune=prune)
    return Run(clock.now_s, max(reports_s), clock, calls)


times = st.floats(0, 20) | st.floats(0, 1)


@settings(max_examples=60)
@given(st.lists(times, min_size=1, max_size=3))
def test_on_a_disk_it_ends_within_100_ms(reports_s: list[float]) -> None:
    run = commit(reports_s, is_object_store=False)
    assert run.commit_s - run.last_s <= 0.1
    assert len(run.after("get")) <= 2 * len(reports_s) + 1  # a pass that had begun, and one more; a first one's claim
    assert (len(run.after("create")), run.after("list")) == (1, ["lineage/"])


@settings(max_examples=60)
@given(st.lists(times | st.floats(0, 1_000), min_size=1, max_size=3))
def test_on_an_object_store_it_ends_within_two_polls(reports_s: list[float]) -> None:
    run = commit(reports_s, is_object_store=True)
    pauses = [duration_s for at_s, duration_s in run.clock.slept_s if at_s + duration_s >= run.last_s]
    assert len(pauses) <= 2
    assert all(duration_s <= 1.0 for _, duration_s in run.clock.slept_s)
    assert len(run.after("get")) <= len(reports_s) + 3  # each once, the last one perhaps again; and the claim
    looks = run.after("list").count(f"{FOLDER}/")
    assert looks <= 2
    assert (len(run.after("create")), run.after("list")[looks:]) == (1, ["lineage/"])
    requests_s = REMOTE_S * len([at_s for at_s, _, _ in run.calls if at_s >= run.last_s])
    assert run.commit_s - run.last_s <= sum(pauses) + requests_s + REMOTE_S


@pytest.mark.parametrize("is_object_store", [False, True])
def test_waiting_costs_few_requests(is_object_store: bool) -> None:
    """A worker that is an hour late is asked for about once a second at most on an object store, 20 times on a disk."""
    run = commit([3_600.0], is_object_store=is_object_store, prune=False)
    polls = sum(verb == "get" for _, verb, _ in run.calls)
    assert polls <= 3_600 * (1 if is_object_store else 20) + 20


def test_nothing_is_waited_for_once_all_have_reported() -> None:
    run = commit([-1.0, -1.0, -1.0], is_object_store=True)
    assert run.clock.slept_s == []
    assert [verb for _, verb, _ in run.calls] == ["list", *["get"] * 4, "create", "list", "get"]
