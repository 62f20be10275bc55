"""The messages' service: what is written once, and what a long wait leaves behind in TensorFlow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
import tensorflow as tf

from ckptflow.peers import service
from ckptflow.peers.post import Put, UnreachableError
from tests.waiting import HANG_S, until


class Reads:
    """Stands for TensorFlow's reads: counts those that have run out of time, which TensorFlow keeps."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.left_behind: Counter[str] = Counter()
        self.error: Exception | None = None
        self._changed = threading.Condition()

    def __call__(self, key: str, timeout_s: float) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self.texts or self.error is not None, timeout_s)
            if self.error is not None:
                raise self.error
            if key not in self.texts:
                self.left_behind[key] += 1
            return self.texts.get(key)

    def write(self, key: str, text: str) -> None:
        with self._changed:
            self.texts[key] = text
            self._changed.notify_all()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    monkeypatch.setattr(service, "_read", found)
    return found


def test_waiting_in_slices_leaves_few_reads_behind(reads: Reads) -> None:
    post = service.Service()
    for _ in range(300):
        assert post.get("t/all", 0.01) is None
        assert post.get("t/1", 0.0) is None
    assert max(reads.left_behind.values()) <= 5
    reads.write("t/all", "text")
    until(lambda: post.get("t/all", 0.1) == "text", HANG_S)
    assert post.get("t/all", 0.1) == "text"  # as often as one asks


def test_what_cannot_be_read_is_raised_and_can_be_asked_for_again(reads: Reads) -> None:
    post = service.Service()
    assert post.get("t/all", 0.01) is None
    reads.error = tf.errors.UnavailableError(None, None, "connection refused")
    with pytest.raises(UnreachableError, match="connection refused"):
        until(lambda: post.get("t/all", 0.1), HANG_S)
    reads.error = None
    reads.write("t/all", "text")
    until(lambda: post.get("t/all", 0.1) == "text", HANG_S)


def test_nobody_reads_on_for_one_who_has_left(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_UNWANTED_S", 0.1)
    before = set(threading.enumerate())
    service.Service().get("t/all", 0.01)
    (reading,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "ckptflow-read")
    until(lambda: not reading.is_alive(), HANG_S)


class Keys:
    """Stands for TensorFlow's context: keys that are written once, when `goes_on`."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.goes_on = threading.Event()
        self.error = error
        self.texts: dict[str, str] = {}
        self.calls = 0

    def set_config_key_value(self, key: str, text: str) -> None:
        self.calls += 1
        self.goes_on.wait(HANG_S)
        if self.error is not None:
            raise self.error
        if self.texts.setdefault(key, text) is not text:
            raise tf.errors.AlreadyExistsError(None, None, key)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], Keys]:
    def stand_in(error: BaseException | None = None) -> Keys:
        found = Keys(error)
        monkeypatch.setattr(service, "context", lambda: found)
        return found

    return stand_in


def test_what_was_not_confirmed_in_time_is_sent_once(keys: Callable[..., Keys]) -> None:
    held, post = keys(), service.Service()
    assert [post.put("t/1", "text", 0.01) for _ in range(5)] == [Put.UNKNOWN] * 5
    held.goes_on.set()
    assert post.put("t/1", "text", HANG_S) is Put.WRITTEN
    assert held.calls == 1
    assert post.put("t/1", "another", HANG_S) is Put.EXISTED


@pytest.mark.parametrize("error", [tf.errors.InternalError(None, None, "no"), RuntimeError("no"), SystemExit("no")])
def test_whatever_keeps_it_from_being_sent_is_told(error: BaseException, keys: Callable[..., Keys]) -> None:
    keys(error).goes_on.set()
    with pytest.raises(UnreachableError, match="no"):
        service.Service().put("t/1", "text", HANG_S)


@pytest.mark.parametrize("is_read", [False, True])
def test_where_no_thread_can_be_started_nothing_hangs(
    is_read: bool, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as a service that does not answer: whoever waits tries again."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(service, "_sender", service._Sender())
    post = service.Service()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        post.replace("t/sign", "text")
        assert not is_read or post.get("t/0", 0.0) is None
        with pytest.raises(UnreachableError, match="can't start new thread"):
            post.get("t/0", HANG_S) if is_read else post.put("t/0", "text", HANG_S)
    reads.write("t/0", "text")
    assert post.get("t/0", HANG_S) == "text"
