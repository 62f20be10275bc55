"""Time in which this process was stopped is found, and counts for no limit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ckptflow.commit.finding import await_checkpoint
from ckptflow.errors import StorageUnavailableError
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import Answer, Peer, Watch
from ckptflow.stops import Stops, awake_s
from ckptflow.storage.retry import Retries
from tests.commit.reports import FOLDER, claimed, coordinator, draft, receipt, report
from tests.commit.roots import folders
from tests.peers.post import LocalPost
from tests.waiting import HANG_S, until

STOP_S = 10 * HANG_S


class Clock:
    """Time as one module has it, which goes on while the process is stopped, and how long it was."""

    def __init__(self, module: str, patch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self._stopped_s = 0.0
        for name in (module, "ckptflow.stops"):
            patch.setattr(f"{name}.time", SimpleNamespace(monotonic=self._now, sleep=time.sleep))
        patch.setattr("ckptflow.stops.stopped_s", lambda: self._stopped_s)
        if module == "ckptflow.commit.receipts":
            patch.setattr(f"{module}.stopped_s", lambda: self._stopped_s)

    def stop(self) -> None:
        self._stopped_s += STOP_S

    def _now(self) -> float:
        self.looks += 1
        return time.monotonic() + self._stopped_s


def test_a_stop_is_what_is_long_between_two_looks() -> None:
    now = [100.0]
    stops = Stops(lambda: now[0])
    for step_s, stopped_s in ((0.5, 0.0), (3.0, 0.0), (0.0, 0.0), (60.5, 60.0), (0.5, 60.0), (10.5, 70.0)):
        now[0] += step_s
        assert stops.look() == stopped_s
    assert stops.look() == 70.0


STOPPED = """
import os, signal, subprocess, sys
from ckptflow.stops import stopped_s

before_s = stopped_s()
# Goes on 5 s after it has been seen stopped.
program = 'while ! grep -q "^State:.T" /proc/$1/status; do sleep 0.05; done; sleep 5; kill -CONT $1'
beside = subprocess.Popen(["sh", "-c", program, "sh", str(os.getpid())])
os.kill(os.getpid(), signal.SIGSTOP)
beside.wait()
print(stopped_s() - before_s)
"""


def test_a_process_that_was_stopped_knows_how_long() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert float(done.stdout) >= 4.0


def test_retries_go_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock("ckptflow.storage.retry", monkeypatch)
    tries: list[int] = []

    def call() -> str:
        tries.append(1)
        if len(tries) == 1:
            clock.stop()
            raise StorageUnavailableError("the server has closed the connection meanwhile")
        return "fine"

    assert Retries(max_wait_s=HANG_S, first_wait_s=0.001).run(call) == "fine"


def test_workers_wait_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock("ckptflow.peers.rounds", monkeypatch)
    post = LocalPost()
    peers = [Peer(f"/job:worker/replica:0/task:{worker}", f"host{worker}:1") for worker in range(2)]

    def gather(worker: int) -> list[bytes]:
        watch = Watch(peers, lambda peer, timeout_s: Answer.HERE, HANG_S, awake_s)
        if worker == 1:
            until(lambda: clock.looks > 3, HANG_S)  # the other waits
            clock.stop()
            seen = clock.looks
            until(lambda: clock.looks > seen + 3, HANG_S)
        return Rounds(post, worker, peers, watch, HANG_S).gather("t", b"%d" % worker, "save", limit_s=HANG_S)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(gather, (0, 1))) == [[b"0", b"1"]] * 2


def test_a_commit_waits_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock("ckptflow.commit.receipts", monkeypatch)
    store = claimed()
    looks = threading.Semaphore(0)

    def look(verb: str, key: str) -> None:
        if (verb, key) == ("list", f"{FOLDER}/"):
            clock.stop()
            looks.release()

    store.hook = look

    def late() -> None:
        for _ in range(3):
            assert looks.acquire(timeout=HANG_S)
        report(store, receipt(1), receipt(2))

    worker = threading.Thread(target=late)
    worker.start()
    coordinator(store, timeout_s=HANG_S).commit(draft(), receipt(0))
    worker.join()
    assert folders(store) == [str(FOLDER)]


def test_a_worker_that_is_not_the_chief_looks_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock("ckptflow.commit.finding", monkeypatch)
    store = claimed()
    report(store, receipt(1), receipt(2))
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        clock.stop()
        if len(looks) == 3:
            coordinator(store).commit(draft(), receipt(0))

    assert await_checkpoint(store, FOLDER, HANG_S, check).step == FOLDER.step
