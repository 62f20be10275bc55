"""The pool: lazily made, reused for ever, blocking at the budget, and never stuck."""

from __future__ import annotations

import mmap
import threading

import pytest

from ckptflow.errors import UsageError
from ckptflow.transfer import buffers
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.streams import Streams, Turns
from tests.waiting import HANG_S


def test_buffers_are_made_when_wanted_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(size_bytes: int) -> Buffer:
        made.append(size_bytes)
        return Buffer(size_bytes)

    monkeypatch.setattr(buffers, "Buffer", make)
    pool = BufferPool(1_000_000, 100_000)
    assert made == []
    assert pool.buffer_bytes == 102_400
    with pool.buffer() as first:
        assert made == [pool.buffer_bytes]
        first.view[:3] = b"abc"
        with pool.buffer() as second:
            assert second is not first
    for _ in range(100):
        with pool.buffer() as buffer:
            assert buffer in (first, second)
    assert made == 2 * [pool.buffer_bytes]
    assert bytes(first.view[:3]) == b"abc"  # nobody zeroes


def test_both_views_are_one_page_aligned_memory() -> None:
    with BufferPool(2**20, 2**16).buffer() as buffer:
        assert buffer.array.ctypes.data % mmap.PAGESIZE == 0
        assert len(buffer.view) == buffer.array.size == 2**16
        buffer.array[5] = 7
        assert buffer.view[5] == 7


@pytest.mark.parametrize(("budget", "size"), [(100, 4096), (2**20, 0), (0, 1)])
def test_a_budget_holds_at_least_one_buffer(budget: int, size: int) -> None:
    with pytest.raises(ValueError, match="budget"):
        BufferPool(budget, size)


def test_acquire_waits_at_the_budget() -> None:
    pool = BufferPool(2**16, 2**16)
    buffer = pool.acquire()
    got: list[Buffer] = []
    waiter = threading.Thread(target=lambda: got.append(pool.acquire()))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    assert not got
    pool.release(buffer)
    waiter.join(HANG_S)
    assert got == [buffer]


def test_close_ends_the_waiting_and_leaves_used_memory_valid() -> None:
    pool = BufferPool(2**16, 2**16)
    buffer = pool.acquire()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pool.acquire()
        except UsageError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    waiter.join(0.02)
    pool.close()
    waiter.join(HANG_S)
    assert len(errors) == 1
    buffer.view[:] = b"x" * len(buffer.view)
    pool.release(buffer)
    with pytest.raises(UsageError, match="closed"):
        pool.acquire()


def test_more_threads_than_buffers_do_all_the_work() -> None:
    pool = BufferPool(2 * 2**16, 2**16)
    worked: list[int] = []
    consumed: list[int] = []
    used: set[int] = set()
    main = threading.current_thread()

    def work(number: int, buffer: Buffer) -> None:
        assert threading.current_thread() is not main
        buffer.array[0] = number
        worked.append(number)
        used.add(id(buffer))

    def consume(number: int, buffer: Buffer, result: None) -> None:
        assert threading.current_thread() is main
        assert buffer.array[0] == number
        consumed.append(number)

    run(pool, 100, work, consume, turns=Turns(Streams(16, fixed=16)), threads=16)
    assert sorted(worked) == sorted(consumed) == list(range(100))
    assert len(used) <= 2


def all_free(pool: BufferPool) -> bool:
    taken = [pool.acquire() for _ in range(pool.count)]  # waits for ever where one is lost
    for buffer in taken:
        pool.release(buffer)
    return len(set(map(id, taken))) == pool.count


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), ValueError("x")])
def test_the_first_error_stops_the_rest_and_no_buffer_is_lost(error: BaseException) -> None:
    pool = BufferPool(3 * 2**16, 2**16)
    started: list[int] = []

    def work(number: int, buffer: Buffer) -> None:
        started.append(number)
        if number == 5:
            raise error
        threading.Event().wait(0.001)  # else the others may be through before that one gets a lock

    with pytest.raises(type(error)) as raised:
        run(pool, 1000, work, turns=Turns(Streams(3, fixed=3)), threads=3)
    assert raised.value is error
    assert len(started) < 1000
    assert all_free(pool)


def test_an_error_while_consuming_waits_for_what_is_under_way() -> None:
    pool = BufferPool(3 * 2**16, 2**16)
    under_way: set[int] = set()
    lock = threading.Lock()

    def work(number: int, buffer: Buffer) -> None:
        with lock:
            under_way.add(number)
        threading.Event().wait(0.01)
        with lock:
            under_way.remove(number)

    def consume(number: int, buffer: Buffer, result: None) -> None:
        if number == 3:
            raise RuntimeError("target")

    with pytest.raises(RuntimeError, match="target"):
        run(pool, 1000, work, consume, turns=Turns(Streams(3, fixed=3)), threads=3)
    assert not under_way
    assert all_free(pool)


def test_two_users_share_one_buffer_without_a_deadlock() -> None:
    pool = BufferPool(2**16, 2**16)
    done: list[int] = []

    def use(base: int) -> None:
        run(
            pool,
            50,
            lambda number, buffer: None,
            lambda number, buffer, result: done.append(base + number),
            turns=Turns(Streams(4, fixed=4)),
            threads=4,
        )

    users = [threading.Thread(target=use, args=(base,)) for base in (0, 100, 200)]
    for user in users:
        user.start()
    for user in users:
        user.join(HANG_S)
    assert len(done) == 150
