"""Few workers and many: their waits have the same limits. One round each, in virtual time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from benchmarks.scale.kernel import Kernel, Signal, Task, virtual_time
from ckptflow.errors import PeerError
from ckptflow.peers.post import Put
from ckptflow.peers.progress import CALLS, MANY
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import Answer, Peer, Watch

LIMIT_S = 40.0
COUNTS = [8, MANY, MANY + 1, 500]
SLOW, WAITING = 7, 5


class VirtualPost:
    """Texts by key. What is not there is waited for in virtual time."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.texts: dict[str, str] = {}
        self.signals: dict[str, Signal] = {}

    def put(self, key: str, text: str, timeout_s: float) -> Put:
        if key in self.texts:
            return Put.EXISTED
        self.replace(key, text)
        return Put.WRITTEN

    def get(self, key: str, timeout_s: float) -> str | None:
        self.kernel.wait(self.signals.setdefault(key, Signal()), timeout_s)
        return self.texts.get(key)

    look = get

    def replace(self, key: str, text: str) -> None:
        self.texts[key] = text
        self.kernel.set(self.signals.setdefault(key, Signal()))

    def forget(self, key: str) -> None: ...


class Job:
    """One round of `count` workers. Those that are no task have left their messages, and do no more."""

    def __init__(self, kernel: Kernel, count: int) -> None:
        self.kernel = kernel
        self.count = count
        self.post = VirtualPost(kernel)
        self.answers = dict.fromkeys(range(count), Answer.HERE)
        self.peers = [Peer(f"/job:worker/task:{worker}", f"host{worker}:1") for worker in range(count)]

    def rounds(self, worker: int) -> Rounds:
        def ask(peer: Peer, timeout_s: float) -> Answer:
            return self.answers[self.peers.index(peer)]

        watch = Watch(self.peers, ask, LIMIT_S, self.kernel.monotonic)
        return Rounds(self.post, worker, self.peers, watch, LIMIT_S)

    def leave_messages(self, *but_of: int) -> None:
        for worker in range(self.count):
            if worker not in but_of:
                self.post.put(f"t/{worker}", str(worker), 0.0)

    def begin(self, worker: int, after_s: float = 0.0) -> Task:
        def come() -> list[bytes] | str:
            self.kernel.sleep(after_s)
            message = b"%d" % worker
            try:
                return self.rounds(worker).gather("t", message, "save(step=5)", limit_s=LIMIT_S, hint=", in time")
            except PeerError as error:
                return str(error)

        return self.kernel.spawn(come)


@pytest.fixture(params=COUNTS)
def job(request: pytest.FixtureRequest) -> Iterator[Job]:
    kernel = Kernel()
    with virtual_time(kernel, seed=0):
        yield Job(kernel, request.param)


def test_worker_0_that_stands_still_after_its_message_is_named(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """All messages are there, its process answers, and the round does not end."""
    job.leave_messages(WAITING)
    (found,) = job.kernel.finish([job.begin(WAITING)])
    missing = f"worker 0 (host0:1) of {job.count} has not reached the end of save(step=5), where worker 5 has waited"
    assert found.startswith(missing)
    assert found.endswith(" s, in time")
    assert f"{missing} for 15 s" in caplog.text
    assert job.kernel.now_s < 2 * LIMIT_S


def test_worker_0_that_is_stopped_after_its_message_is_named(job: Job) -> None:
    job.leave_messages(WAITING)
    job.answers[0] = Answer.SILENT
    (found,) = job.kernel.finish([job.begin(WAITING)])
    assert found == f"worker 0 (host0:1) of {job.count} does not answer, in save(step=5)"


@pytest.mark.parametrize(("first_s", "other_s"), [(0.0, 0.0), (0.9 * LIMIT_S, 0.0), (0.0, 0.9 * LIMIT_S)])
def test_who_does_not_come_is_named_by_all_and_not_worker_0(job: Job, first_s: float, other_s: float) -> None:
    job.leave_messages(0, WAITING, SLOW)
    found = job.kernel.finish([job.begin(0, first_s), job.begin(WAITING, other_s)])
    assert found[0] == found[1]
    assert found[0].startswith(f"worker 7 (host7:1) of {job.count} has not reached save(step=5), where")
    assert job.kernel.now_s < 3 * LIMIT_S


def test_who_goes_on_is_waited_for_beyond_the_limit_and_named_in_the_log(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.leave_messages(0, WAITING, SLOW)

    def work() -> None:
        slow = job.rounds(SLOW)
        for _ in range(40):
            slow.show_progress(CALLS, "its storage")
            job.kernel.sleep(LIMIT_S / 8)

    everything = [b"%d" % worker for worker in range(job.count)]
    working = job.kernel.spawn(work)
    tasks = [job.begin(0), job.begin(WAITING), job.begin(SLOW, 5 * LIMIT_S)]
    with caplog.at_level(logging.WARNING, "ckptflow"):
        assert job.kernel.finish([working, *tasks])[1:] == [everything] * 3
    lines = [record.getMessage() for record in caplog.records]
    assert {15, 60} == {
        said_s for said_s in (15, 60) for line in lines if f"worker 5 has waited for {said_s} s" in line
    }
    assert all(f"worker 7 (host7:1) of {job.count}" in line for line in lines), lines
