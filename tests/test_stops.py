"""Time in which this process was stopped is found, and counts for no limit."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.finding import await_checkpoint
from ckptflow.commit.lineage import claim_next
from ckptflow.errors import CommitTimeoutError, StorageUnavailableError
from ckptflow.peers.link import Link
from ckptflow.peers.loans import Key
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import Answer, Peer, Watch
from ckptflow.stops import Stops, Ticking, awake_s
from ckptflow.storage.retry import Retries
from ckptflow.testing import MemoryStore
from tests.commit.reports import FOLDER, claimed, coordinator, draft, receipt, report
from tests.commit.roots import folders
from tests.peers.post import LocalPost
from tests.waiting import HANG_S, until

STOP_S = 10 * HANG_S


class Clock:
    """Time as these modules have it, which goes on while the process is stopped, and the clock that does not."""

    def __init__(self, patch: pytest.MonkeyPatch, *modules: str) -> None:
        self.looks = 0
        self._stopped_s = 0.0
        self._awake_s = time.monotonic
        for name in modules:
            patch.setattr(f"{name}.time", SimpleNamespace(monotonic=self._now, sleep=time.sleep), raising=False)
        patch.setattr("ckptflow.stops.ticking.awake_s", self._awake)

    def stop(self) -> None:
        self._stopped_s += STOP_S

    def _now(self) -> float:
        self.looks += 1
        return self._awake_s() + self._stopped_s

    def _awake(self) -> float:
        return self._now() - self._stopped_s


def test_a_stop_is_what_is_long_between_two_looks() -> None:
    """All of it but for 3 s, which may also have been code that keeps the interpreter's lock."""
    now = [100.0]
    stops = Stops(lambda: now[0], lambda: 0.0)
    for step_s, stopped_s in ((0.5, 0.0), (3.0, 0.0), (0.0, 0.0), (60.5, 57.5), (0.5, 57.5), (10.5, 65.0)):
        now[0] += step_s
        assert stops.look() == now[0] - stopped_s
    assert stops.look() == now[0] - 65.0


def test_time_in_which_a_process_computes_is_no_stop() -> None:
    now, used = [100.0], [7.0]
    stops = Stops(lambda: now[0], lambda: used[0])
    for ran_s, stopped_s in ((60.0, 0.0), (10.0, 47.0), (500.0, 47.0), (0.0, 104.0)):
        now[0] += 60.0
        used[0] += ran_s
        assert stops.look() == now[0] - stopped_s


STOPPED = """
import os, signal, subprocess, sys, time
from ckptflow.stops import awake_s

before_s, began_s = awake_s(), time.monotonic()
# Goes on 9 s after it has been seen stopped.
program = 'while ! grep -q "^State:.T" /proc/$1/status; do sleep 0.05; done; sleep 9; kill -CONT $1'
beside = subprocess.Popen(["sh", "-c", program, "sh", str(os.getpid())])
os.kill(os.getpid(), signal.SIGSTOP)
beside.wait()
awake_for_s = awake_s() - before_s
print(time.monotonic() - began_s - awake_for_s)
"""


def test_a_process_that_was_stopped_knows_how_long() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert float(done.stdout) >= 4.0


FORKED = """
import os, threading, time
from ckptflow import stops

stops.awake_s()
is_held, is_over = threading.Event(), threading.Event()

def hold():
    with stops.ticking._start, stops.ticking._stops._lock:
        is_held.set()
        is_over.wait()

threading.Thread(target=hold, daemon=True).start()
is_held.wait()
child = os.fork()
if child == 0:
    stops.awake_s()
    os._exit(0)
print(os.waitpid(child, 0)[1])
is_over.set()
"""


def test_a_child_forked_while_another_thread_looks_has_its_own_clock() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert done.stdout == "0\n"


def test_a_signal_during_a_look_may_look_too() -> None:
    comes_in, looks = [False], list[float]()

    def clock() -> float:
        if comes_in.pop():  # a handler, while the lock is held
            comes_in.append(False)
            looks.append(stops.look())
        comes_in.append(False)
        return 1.0

    stops = Stops(clock, lambda: 0.0)
    comes_in.append(True)
    assert [stops.look(), *looks] == [1.0, 1.0]


def test_where_no_thread_can_be_started_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("ckptflow.stops.ticking", Ticking())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    before_s = time.monotonic()
    assert before_s <= awake_s() <= time.monotonic()


def test_retries_go_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ckptflow.storage.retry")
    tries: list[int] = []

    def call() -> str:
        tries.append(1)
        if len(tries) == 1:
            clock.stop()
            raise StorageUnavailableError("the server has closed the connection meanwhile")
        return "fine"

    assert Retries(max_wait_s=HANG_S, first_wait_s=0.001).run(call) == "fine"


def test_workers_wait_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ckptflow.peers.rounds")
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
    clock = Clock(monkeypatch, "ckptflow.commit.coordinator", "ckptflow.commit.receipts")
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
    clock = Clock(monkeypatch, "ckptflow.commit.finding")
    store = claimed()
    report(store, receipt(1), receipt(2))
    looks: list[int] = []

    def check() -> bool:
        looks.append(1)
        clock.stop()
        if len(looks) == 3:
            coordinator(store).commit(draft(), receipt(0))
        return True

    assert await_checkpoint(store, FOLDER, HANG_S, check).step == FOLDER.step


def test_who_leaves_after_a_stop_is_not_waited_for_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ckptflow.commit.coordinator", "ckptflow.commit.receipts")
    store = claimed()
    waiting = coordinator(store, timeout_s=4 * HANG_S)
    is_hurried: list[bool] = []

    def look(verb: str, key: str) -> None:
        if (verb, key) == ("list", f"{FOLDER}/") and not is_hurried:
            is_hurried.append(True)
            clock.stop()
            waiting.hurry(0.1)

    store.hook = look
    with pytest.raises(CommitTimeoutError, match="in the time that an error has left them"):
        waiting.commit(draft(), receipt(0))


def test_a_manifest_is_sent_again_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, *(f"ckptflow.commit.{name}" for name in ("coordinator", "receipts", "lineage")))
    store = claimed()
    report(store, receipt(1), receipt(2))
    sent: list[str] = []

    def look(verb: str, key: str) -> None:
        if (verb, key) == ("create", FOLDER.manifest_key):
            sent.append(key)
            if len(sent) == 1:
                clock.stop()
                raise StorageUnavailableError("the server has closed the connection meanwhile")

    store.hook = look
    coordinator(store, timeout_s=HANG_S).commit(draft(), receipt(0))
    assert len(sent) == 2


def test_a_claim_is_sent_again_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ckptflow.commit.lineage")
    store = MemoryStore()
    sent: list[str] = []

    def look(verb: str, key: str) -> None:
        if verb == "create":
            sent.append(key)
            if len(sent) == 1:
                clock.stop()
                raise StorageUnavailableError("the server has closed the connection meanwhile")

    store.hook = look
    assert claim_next(store, Summaries(store), "start", HANG_S).number == 1
    assert len(sent) > 1


def test_a_transfer_between_workers_goes_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ckptflow.peers.link")
    data, into = os.urandom(2**16), bytearray(2**16)
    near, far = socket.socketpair()
    stops: list[None] = []

    def is_stopped() -> bool:
        if any(into) and not stops:  # a part of it has come
            clock.stop()
            stops.append(None)
            far.sendall(data[2**15 :])
        return False

    with near, far:
        far.sendall(struct.pack(">BQ", 1, len(data)) + data[: 2**15])
        Link(near).pull(Key(0, 0, 0, len(data)), memoryview(into), is_stopped)
    assert bytes(into) == data
