"""A reply that nobody waits for any more is not read to its end, by whichever client, and is not asked for again."""

from __future__ import annotations

import logging
import math
import threading
from functools import partial

import pytest

from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.wanted import while_wanted
from ckptflow.storage.wrappers import CountingStore, FaultyStore
from ckptflow.testing import MemoryStore
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.streams import Streams, Turns
from tests.servers import BUCKET, Server
from tests.waiting import HANG_S, until

SIZE_BYTES = 4 * 2**20


@pytest.mark.parametrize(("scheme", "client"), [("s3", "obstore"), ("s3", "fsspec"), ("gs", "fsspec")])
def test_the_rest_is_left(
    seaweedfs: Server, fake_gcs: Server, scheme: str, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = seaweedfs if scheme == "s3" else fake_gcs
    store = open_store(f"{scheme}://{BUCKET}/wanted-{client}", {**server.storage_options, "client": client})
    store.put("object", memoryview(b"x" * SIZE_BYTES))
    into = bytearray(SIZE_BYTES)
    with (
        caplog.at_level(logging.WARNING),
        while_wanted(partial(next, iter([True]), False)),  # no longer, once it has been asked for
        pytest.raises(StorageError, match="given up"),
    ):
        store.get("object", memoryview(into))
    assert not caplog.records  # nor is it asked for again
    assert into[-1] == 0
    assert store.get("object", memoryview(into)) == SIZE_BYTES
    assert into[-1] == ord("x")
    store.close()


def test_what_fails_is_not_tried_again_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """No pause, no warning, no further request; what is written is wanted, whoever waits for it."""
    faulty = FaultyStore(MemoryStore())
    asked = CountingStore(faulty)
    store = RetryingStore(asked, first_wait_s=0.001)
    faulty.fail("get", StorageUnavailableError("not now"))
    into = memoryview(bytearray(1))
    with while_wanted(partial(next, iter([True]), False)), pytest.raises(StorageUnavailableError, match="not now"):
        store.get("a", into)
    assert asked.calls == [("get", "a")]
    assert not caplog.records
    with while_wanted(lambda: False):
        with pytest.raises(StorageError, match="given up"):
            store.get("a", into)
        assert asked.calls == [("get", "a")]
        faulty.fail("put", StorageUnavailableError("not now"))
        store.put("a", memoryview(b"x"))
    assert asked.keys("put") == ["a", "a"]
    faulty.assert_all_used()


@pytest.mark.parametrize("first", [OSError("the first"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("in_a_pause", [False, True])
def test_after_the_first_error_nothing_that_was_asked_for_is_asked_for_again(
    first: BaseException, in_a_pause: bool
) -> None:
    """What fails for now is tried again for those who wait, and nobody does any more, nor for the pause before that.
    The first error is raised."""
    asked: list[str] = []
    is_asking = threading.Event()
    turns = Turns(Streams(2, fixed=2))

    def fail(verb: str, key: str) -> None:
        asked.append(key)
        if not in_a_pause:
            is_asking.set()
            until(lambda: turns.is_stopped, HANG_S)
        raise StorageUnavailableError("503")

    wait_s = 10 * HANG_S if in_a_pause else 0.001
    store = RetryingStore(
        MemoryStore(hook=fail), first_wait_s=wait_s, max_wait_s=math.inf, tell=lambda event: is_asking.set()
    )

    def fail_with(error: Exception) -> None:
        raise error

    def work(number: int, buffer: Buffer) -> None:
        if number == 1:
            turns.transfer(1, lambda: store.get("a", buffer.view))
        assert is_asking.wait(HANG_S)
        if isinstance(first, Exception):
            turns.transfer(1, lambda: fail_with(first))

    def consume(number: int, buffer: Buffer, result: None) -> None:
        raise first

    with pytest.raises(type(first)) as raised:
        run(BufferPool(2 * 2**12, 2**12), 2, work, consume, turns=turns, threads=2)
    assert raised.value is first
    assert asked == ["a"]
    assert turns.streams.under_way == 0
