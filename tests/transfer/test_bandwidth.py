"""A limit on what is sent, on a clock of its own: no test waits."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.commit.copying import copy_checkpoint
from ckptflow.format.layout import Folder
from ckptflow.testing import MemoryStore, StoreWrapper
from ckptflow.transfer import streams
from ckptflow.transfer.bandwidth import Bandwidth
from ckptflow.transfer.streams import StoppedError
from tests.roots import SHARD_BYTES, make_root

FOLDER = Folder(1, 1)


class Clock:
    """Time goes on only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def read(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def limited(bytes_per_s: float) -> tuple[Clock, Bandwidth]:
    clock = Clock()
    return clock, Bandwidth(bytes_per_s, clock.read, clock.sleep)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 50)), min_size=1, max_size=30),
    st.integers(1, 200),
)
def test_in_no_window_more_goes_through_than_the_limit_and_one_amount(
    asked: list[tuple[int, float]], bytes_per_s: int
) -> None:
    clock, bandwidth = limited(bytes_per_s)
    sent: list[tuple[float, int]] = []
    for size_bytes, pause_s in asked:
        clock.now_s += pause_s
        bandwidth.wait(size_bytes)
        sent.append((clock.now_s, size_bytes))
    for first, (begin_s, _) in enumerate(sent):
        for last in range(first, len(sent)):
            between = sum(size for _, size in sent[first:last])  # the last one has its time from now on
            assert between <= bytes_per_s * (sent[last][0] - begin_s) * (1 + 1e-9) + 1e-6


def test_who_asks_after_a_pause_does_not_wait() -> None:
    clock, bandwidth = limited(10)
    bandwidth.wait(100)
    clock.now_s += 10
    before = clock.now_s
    bandwidth.wait(100)
    assert clock.now_s == before
    bandwidth.wait(1)
    assert clock.now_s == pytest.approx(before + 10)


def test_what_is_not_wanted_any_more_waits_no_longer() -> None:
    clock, bandwidth = limited(1)
    bandwidth.wait(1_000_000)
    with pytest.raises(StoppedError):
        bandwidth.wait(1, lambda: clock.now_s > 101)
    assert clock.now_s < 102


class AtOnce(StoreWrapper):
    """A store that knows how many writes were under way at once."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.most = self.now = 0
        self._lock = threading.Lock()

    def put(self, key: str, data: memoryview) -> str | None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().put(key, data)
        finally:
            with self._lock:
                self.now -= 1


@pytest.fixture
def source() -> MemoryStore:
    store = MemoryStore()
    make_root(store, (1,), arrays={"large": np.arange(20 * SHARD_BYTES // 4, dtype=np.float32)})
    return store


def test_a_copy_keeps_to_it_over_all_streams(source: MemoryStore) -> None:
    clock, bandwidth = limited(SHARD_BYTES)
    copied = copy_checkpoint(source, MemoryStore(), FOLDER, lambda _: None, concurrency=4, bandwidth=bandwidth)
    assert clock.now_s - 100 >= (copied.sent_bytes - SHARD_BYTES) / SHARD_BYTES > 15


def test_what_is_there_already_takes_no_turn(source: MemoryStore) -> None:
    target = MemoryStore()
    copy_checkpoint(source, target, FOLDER, lambda _: None)
    clock, bandwidth = limited(1)
    copied = copy_checkpoint(source, target, FOLDER, lambda _: None, bandwidth=bandwidth)
    assert (copied.sent_bytes, clock.now_s) == (0, 100)


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_at_once_than_asked_for(source: MemoryStore, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    made = streams.Streams.__init__

    def notes(self: streams.Streams, *args: object, **words: object) -> None:
        seen.append(words.get("fixed"))  # type: ignore[arg-type]
        made(self, *args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(streams.Streams, "__init__", notes)
    target = AtOnce(MemoryStore())
    copy_checkpoint(source, target, FOLDER, lambda _: None, concurrency=count)
    assert 1 <= target.most <= count
    assert count in seen
