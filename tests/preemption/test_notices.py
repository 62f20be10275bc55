"""Real signals to this very process: heard at once, given back, and never heard for somebody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ckptflow.preemption import notices
from ckptflow.preemption.notices import BY_FUNCTION, Notice, Notices
from tests.waiting import HANG_S, until


def listeners() -> list[str]:
    """Threads of notices; others of ckptflow's stay from other tests."""
    names = ("ckptflow-signals", "ckptflow-notice", "ckptflow-told")
    return [thread.name for thread in threading.enumerate() if thread.name in names]


@contextmanager
def listening(
    *signals: int, ask: Callable[[], object] | None = None
) -> Iterator[tuple[Notices, list[tuple[Notice, str]]]]:
    """Notices, and (what was told, in which thread)."""
    told: list[tuple[Notice, str]] = []
    heard = Notices(signals, ask, lambda notice: told.append((notice, threading.current_thread().name)))
    try:
        yield heard, told
    finally:
        heard.close()
        heard.close()
    until(lambda: not listeners(), HANG_S)


def test_a_signal_is_heard_and_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SAME_SIGNAL_S", HANG_S)  # a busy machine takes its time between two signals

    def handler_before(*_: object) -> None:
        raise AssertionError("replaced while notices are listened for")

    theirs, mine = socket.socketpair()
    theirs.setblocking(False)
    mine.settimeout(HANG_S)
    before = signal.signal(signal.SIGUSR1, handler_before)
    descriptor_before = signal.set_wakeup_fd(theirs.fileno())
    try:
        with listening(signal.SIGUSR1, signal.SIGUSR2) as (heard, told):
            before_s = time.monotonic()
            os.kill(os.getpid(), signal.SIGUSR1)
            until(lambda: told, HANG_S)
            assert heard.told is told[0][0]
            assert told[0][0].by == signal.SIGUSR1
            assert before_s <= told[0][0].at_s <= time.monotonic()
            assert told[0][1] != threading.main_thread().name
            os.kill(os.getpid(), signal.SIGUSR1)  # at once, as `timeout` does: still alive
            os.kill(os.getpid(), signal.SIGUSR2)
            received = bytearray()
            while len(received) < 3:
                received += mine.recv(16)
            assert sorted(received) == [signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2]  # whose descriptor it was
            assert len(told) == 1
        assert signal.getsignal(signal.SIGUSR1) is handler_before
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == theirs.fileno()
    finally:
        signal.set_wakeup_fd(descriptor_before)
        signal.signal(signal.SIGUSR1, before)
        theirs.close()
        mine.close()


def test_several_may_be_closed_in_the_order_in_which_they_were_made() -> None:
    heard_before: list[int] = []
    theirs, mine = socket.socketpair()
    theirs.setblocking(False)
    mine.settimeout(HANG_S)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    before = signal.signal(signal.SIGTERM, lambda number, _: heard_before.append(number))
    descriptor_before = signal.set_wakeup_fd(theirs.fileno())
    told: list[str] = []
    first, second, third = (
        Notices(numbers, None, lambda _, name=name: told.append(name))  # type: ignore[misc]
        for name, numbers in (
            ("first", [signal.SIGTERM]),
            ("second", [signal.SIGUSR1]),
            ("third", [signal.SIGUSR1, signal.SIGTERM]),
        )
    )
    reused = first._outbox.fileno()
    try:
        first.close()
        os.dup2(writer, reused)  # as with the next file that is opened
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: told, HANG_S)
        assert mine.recv(16) == bytes([signal.SIGTERM])  # passed on by way of both that are open, not by the closed one
        with pytest.raises(BlockingIOError):
            os.read(reader, 16)
        second.close()
        third.close()
        assert told == ["third"]
        assert not heard_before
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: heard_before, HANG_S)
        assert mine.recv(16) == bytes([signal.SIGTERM])
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == theirs.fileno()
    finally:
        for notices_ in (third, second, first):
            notices_.close()
        signal.set_wakeup_fd(descriptor_before)
        signal.signal(signal.SIGTERM, before)
        for descriptor in (reader, writer, reused):
            os.close(descriptor)
        theirs.close()
        mine.close()
    until(lambda: not listeners(), HANG_S)


def test_what_somebody_else_installed_meanwhile_stays() -> None:
    def later(*_: object) -> None:
        pass

    with listening(signal.SIGUSR1, signal.SIGUSR2) as (_, told):
        signal.signal(signal.SIGUSR2, later)
        ours = signal.set_wakeup_fd(-1)  # as asyncio does when its last handler goes
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: told, HANG_S)  # by way of the handler
        assert ours != -1
    assert signal.signal(signal.SIGUSR2, signal.SIG_DFL) is later
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_cannot_be_caught_leaves_nothing_behind() -> None:
    with pytest.raises(OSError):
        with listening(signal.SIGUSR1, signal.SIGKILL):
            pass
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    until(lambda: not listeners(), HANG_S)


def test_a_child_is_not_heard_and_can_be_ended() -> None:
    with listening(signal.SIGTERM) as (heard, told):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b"forked")
            time.sleep(HANG_S)
            os._exit(1)
        assert os.read(reader, 6) == b"forked"
        os.close(reader)
        os.close(writer)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
            process.terminate()
            assert process.wait(HANG_S) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: told, HANG_S)
        assert heard.told is not None


def test_a_function_is_asked_until_it_says_yes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "ASK_EVERY_S", 0.01)
    asked: list[str] = []
    secret = "PLAN" + "TED"  # a stack shows the lines of this file

    def ask() -> bool:
        asked.append(threading.current_thread().name)
        if len(asked) < 4:
            raise ConnectionError(f"no answer from http://me:{secret}@host/?key={secret}")
        return len(asked) == 6

    with listening(signal.SIGTERM, ask=ask) as (heard, told):
        until(lambda: told, HANG_S)
        assert heard.told is not None
        assert heard.told.by == BY_FUNCTION
        os.kill(os.getpid(), signal.SIGTERM)  # the first signal after a notice is no second signal
        time.sleep(0.05)
        assert [notice.by for notice, _ in told] == [BY_FUNCTION]
    assert asked == ["ckptflow-notice"] * 6
    said = [record for record in caplog.records if "notice function" in record.getMessage()]
    assert ["no answer" in (record.exc_text or str(record.exc_info)) for record in said] == [True]
    assert secret not in caplog.text


def test_a_function_that_hangs_keeps_no_signal_back() -> None:
    is_over = threading.Event()
    with listening(signal.SIGTERM, ask=lambda: is_over.wait(HANG_S)) as (_, told):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: told, HANG_S)
        is_over.set()
        assert told[0][0].by == signal.SIGTERM


SECOND_SIGNAL = """
import ctypes, logging, signal, sys
from ckptflow.preemption import notices
from ckptflow.preemption.notices import Notices
if sys.argv[1] == "logging works":
    notices._LAST_WORDS_S = 300.0
logging.basicConfig()
Notices([signal.SIGTERM], None, lambda notice: print("told", file=sys.stderr))
print("ready", flush=True)
if sys.argv[1] == "logging hangs":
    logging.getLogger().handlers[0].acquire()
sys.stdout.write("kept")
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)  # the main thread never comes back to Python
"""


@pytest.mark.parametrize("case", ["logging works", "logging hangs"])
def test_a_second_signal_leaves_at_once(case: str) -> None:
    command = [sys.executable, "-c", SECOND_SIGNAL, case]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stderr.readline() == "told\n"
            time.sleep(notices.SAME_SIGNAL_S + 0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 128 + signal.SIGTERM
            if case == "logging works":
                assert "SIGTERM again: leaving at once with exit code 143" in process.stderr.read()
                assert process.stdout.read() == "kept"
        finally:
            process.kill()
