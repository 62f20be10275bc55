"""What is late at the end is begun a second time: the first that is done counts, and nobody waits for the other."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.errors import CorruptCheckpointError, StorageUnavailableError
from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.transfer import attempts
from ckptflow.transfer.attempts import FEWEST, HELPERS, LATE, LEAST_S, RECENT, Attempts, late_after_s
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.streams import Streams, Turns
from tests.transfer.helpers import FOLDER, ArraySource, ArrayTarget, DictStore, arrays_for, same_bits, write_checkpoint
from tests.transfer.test_buffers import all_free
from tests.waiting import HANG_S, until

# ---- the rule, in virtual time

MANY = 1000


@given(st.lists(st.floats(0.3, 1.0), min_size=RECENT, max_size=200), st.integers(2, 1000), st.integers(0, 19))
def test_one_slow_one_in_twenty_does_not_make_slow_what_is_usual(taken_s: list[float], factor: int, at: int) -> None:
    usual_s = max(taken_s)
    taken_s[at::20] = [each * factor for each in taken_s[at::20]]
    late_s = late_after_s(taken_s, MANY)
    assert late_s is not None
    assert late_s <= LATE * usual_s


def test_what_ended_last_is_what_is_usual() -> None:
    assert late_after_s([8.0] * 32 + [1.0] * RECENT, MANY) == LATE


def test_too_few_tell_nothing_and_what_is_quick_is_not_late() -> None:
    assert late_after_s([1.0] * (RECENT - 1), MANY) is None
    assert late_after_s([1.0] * RECENT, MANY) == LATE
    assert late_after_s([0.001] * RECENT, MANY) == LEAST_S


@pytest.mark.parametrize("count", range(1, 2 * RECENT + 2))
def test_where_there_are_few_half_of_them_tell(count: int) -> None:
    """Else the last of so few would be waited for, however late it is. Of up to three none is: two tell nothing."""
    found = Attempts(count)
    for _ in range(count):
        found.begin(0.0)
    for number in range(1, count):
        found.end(number, 1.0)
    assert found.begin_late(2.0) == (0 if count > FEWEST else None)
    needed = max(FEWEST, min(RECENT, count // 2))
    assert late_after_s([1.0] * needed, count) == LATE
    assert late_after_s([1.0] * (needed - 1), count) is None


def all_but(count: int, late: int) -> Attempts:
    """All begun at 0 s, and ended a second later, but for the first `late`."""
    found = Attempts(count, helpers=2)
    assert [found.begin(0.0) for _ in range(count + 1)] == [*range(count), None]
    assert all(found.end(number, 1.0) for number in range(late, count))
    return found


def test_the_late_ones_are_begun_again_and_not_for_ever() -> None:
    found = all_but(12, late=2)
    assert found.wait_s(1.5) == LATE - 1.5
    assert found.begin_late(1.9) is None
    assert [found.begin_late(2.0) for _ in range(3)] == [0, 1, None]
    assert found.wait_s(3.0) == 1.0
    assert [found.begin_late(4.0) for _ in range(3)] == [0, 1, None]
    assert found.wait_s(9.0) is None
    assert [found.may_help() for _ in range(3)] == [True, True, False]


def test_the_first_success_wins_and_an_error_counts_if_none_is_left() -> None:
    found = all_but(12, late=3)
    assert [found.begin_late(2.0) for _ in range(3)] == [0, 1, 2]
    assert found.is_raced(0)
    assert found.end(0, 3.0)
    assert not found.end(0, 9.0)
    assert not found.fail(0)
    assert not found.fail(1)
    assert not found.is_raced(1)
    assert found.end(1, 3.0)
    assert [found.fail(2), found.fail(2)] == [False, True]
    alone = all_but(12, late=1)
    assert alone.fail(0)


# ---- pipelines


@pytest.fixture
def all_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has not ended when nothing else is left is late."""
    monkeypatch.setattr(attempts, "LATE", 0)
    monkeypatch.setattr(attempts, "LEAST_S", 0.0)
    monkeypatch.setattr(attempts, "MOST_ATTEMPTS", 2)


COUNT = RECENT + 4


class Race:
    """Work of which number 0 waits, in its first attempt, until it is let go."""

    def __init__(self) -> None:
        self.pool = BufferPool(6 * 2**12, 2**12)
        self.streams = Streams(6, fixed=6)
        self.tries: Counter[int] = Counter()
        self.go_on = threading.Event()
        self.consumed: dict[int, str] = {}
        self.first_error: Exception | None = None
        self.second_error: Exception | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        turns, found = Turns(self.streams), Attempts(COUNT, helpers=HELPERS)

        def work(number: int, buffer: Buffer) -> str:
            with self._lock:
                self.tries[number] += 1
                name = f"{number}, try {self.tries[number]}"
            return turns.transfer(1, lambda: transfer(number, name, buffer), lambda: found.is_raced(number))

        def transfer(number: int, name: str, buffer: Buffer) -> str:
            if name == "0, try 1":
                assert self.go_on.wait(HANG_S)
                if self.first_error is not None:
                    raise self.first_error
            elif number == 0 and self.second_error is not None:
                raise self.second_error
            buffer.view[: len(name)] = name.encode()
            return name

        def consume(number: int, buffer: Buffer, name: str) -> None:
            assert bytes(buffer.view[: len(name)]).decode() == name
            assert number not in self.consumed
            self.consumed[number] = name

        run(self.pool, COUNT, work, consume, turns=turns, threads=6, attempts=found)

    def all_back(self) -> bool:
        """Whatever the slow one held."""
        return self.streams.under_way == 0 and all_free(self.pool)


@pytest.fixture
def race(all_are_late: None) -> Iterator[Race]:
    race = Race()
    yield race
    race.go_on.set()
    until(lambda: race.streams.under_way == 0, HANG_S)


def test_nobody_waits_for_the_slow_one_and_what_it_brings_is_dropped(race: Race) -> None:
    race.run()
    assert race.consumed[0] == "0, try 2"
    assert len(race.consumed) == COUNT
    assert race.streams.under_way == 1  # it still writes into its buffer, and so keeps it
    kept = [race.pool.acquire_now() for _ in range(6)]
    assert kept[-1] is None
    for buffer in kept[:-1]:
        assert buffer is not None
        race.pool.release(buffer)
    race.go_on.set()
    until(race.all_back, HANG_S)


def test_an_error_of_the_slow_one_after_the_end_is_nothing(race: Race) -> None:
    race.first_error = OSError("gone")
    race.run()
    race.go_on.set()
    until(race.all_back, HANG_S)


def test_an_error_of_the_second_attempt_leaves_the_first(race: Race) -> None:
    race.second_error = OSError("the second")
    thread = threading.Thread(target=race.run)
    thread.start()
    until(lambda: race.tries[0] == 2 and race.streams.under_way == 1, HANG_S)
    race.go_on.set()
    thread.join(HANG_S)
    assert race.consumed[0] == "0, try 1"
    assert len(race.consumed) == COUNT
    assert race.all_back()


def test_if_both_fail_the_error_is_raised(race: Race) -> None:
    race.first_error, race.second_error = OSError("the first"), OSError("the second")
    errors: list[OSError] = []

    def catch() -> None:
        try:
            race.run()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    until(lambda: race.tries[0] == 2 and race.streams.under_way == 1, HANG_S)
    race.go_on.set()
    thread.join(HANG_S)
    assert [str(error) in ("the first", "the second") for error in errors] == [True]
    assert race.all_back()


def test_damage_that_was_found_is_not_undone_by_an_attempt_that_is_cut_off(race: Race) -> None:
    """Else the checkpoint would be tried again for ever, and not the one before."""
    race.first_error, race.second_error = StorageUnavailableError("503"), CorruptCheckpointError("twice the same")
    errors: list[Exception] = []

    def catch() -> None:
        try:
            race.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    until(lambda: race.tries[0] == 2 and race.streams.under_way == 1, HANG_S)
    race.go_on.set()
    thread.join(HANG_S)
    assert list(map(str, errors)) == ["twice the same"]
    assert race.all_back()


def test_the_slow_one_keeps_no_turn_from_others(race: Race) -> None:
    race.run()
    assert race.streams.under_way == 1
    turns, together = Turns(race.streams), threading.Barrier(race.streams.most)

    def work(number: int, buffer: Buffer) -> int:
        return turns.transfer(1, lambda: together.wait(HANG_S))

    pool = BufferPool(6 * 2**12, 2**12)
    run(pool, 6, work, turns=turns, threads=6)


def test_where_no_buffer_is_free_there_is_no_second_attempt(race: Race) -> None:
    taken = race.pool.acquire_now()
    assert taken is not None
    race.pool = BufferPool(2**12, 2**12)
    race.go_on.set()
    race.run()
    assert race.tries[0] == 1
    assert len(race.consumed) == COUNT


# ---- restores


class OneHangs(DictStore):
    """The first request for one place is not answered until it is let go, and then brings something else."""

    def __init__(self) -> None:
        super().__init__(is_object_store=True)
        self.go_on = threading.Event()
        self.hung: list[str] = []
        self.fails = False

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        if not self.hung:
            self.hung.append(key)
            assert self.go_on.wait(HANG_S)
            if self.fails:
                raise StorageUnavailableError("gone")
            into[:] = bytes(len(into))
            return len(into)
        return super().get(key, into, start)


@pytest.mark.usefixtures("all_are_late")
@pytest.mark.parametrize("fails", [False, True])
def test_one_request_that_hangs_does_not_hold_a_restore_up(fails: bool) -> None:
    specs = [TensorSpec(f"t{i}", "float32", (15_000,)) for i in range(24)]
    arrays = arrays_for(specs)
    store = OneHangs()
    store.fails = fails
    manifest = write_checkpoint(store, [ArraySource(specs, arrays)])
    pool, target = BufferPool(8 * 2**16, 2**16), ArrayTarget(manifest)
    streams = Streams(16, fixed=16)
    read_tensors(store, FOLDER, manifest, [Wanted(index) for index in range(len(specs))], target, pool, streams=streams)
    assert len(store.hung) == 1
    assert streams.under_way == 1
    store.go_on.set()
    until(lambda: streams.under_way == 0, HANG_S)
    assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(specs, arrays, strict=True))
