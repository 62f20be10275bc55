"""A save that was not acknowledged has failed, whatever ended it, and the program learns of it, whatever it does."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import typer

import ckptflow
from ckptflow import CheckpointManager, KeepBest, KeepLast, PreemptionWatcher, SaveFailedError, UsageError
from ckptflow.errors import CommitUnknownError, PeerError, StorageUnavailableError
from ckptflow.events import Event, SaveFailed
from ckptflow.format.layout import receipt_name
from ckptflow.storage.opening import open_store
from ckptflow.testing import FaultyStore
from tests.manager.states import Weights, committed, wrap_store
from tests.speed.team import Team
from tests.waiting import HANG_S, raised_in_a_thread, until


class Panic(BaseException):
    """As `pyo3_runtime.PanicException` of a client that is written in Rust."""


ENDS: list[BaseException] = [Panic("a client's"), SystemExit(0), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
PLACES = [("put", "shard"), ("put", "receipt"), ("create", "manifest"), ("list", "lineage")]


def names(value: object) -> str:
    return type(value).__name__ if isinstance(value, BaseException) else "-".join(map(str, value))  # type: ignore[call-overload]


def failed_manager(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None, **options: Any
) -> tuple[CheckpointManager, FaultyStore]:
    """A manager whose step 1 is saved and whose step 2 has just failed, unknown to the program."""
    stores = wrap_store(monkeypatch, FaultyStore)
    manager = CheckpointManager(root, {"w": Weights()}, **options)
    manager.save(1).result()
    stores[0].fail("put", error or StorageUnavailableError("503 from the test"), key="shard")
    manager.save(2).wait()
    return manager, stores[0]


@pytest.mark.parametrize("place", PLACES, ids=names)
@pytest.mark.parametrize("end", ENDS, ids=names)
def test_whatever_ends_a_save_is_raised_told_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException, place: tuple[str, str]
) -> None:
    stores, told = wrap_store(monkeypatch, FaultyStore), list[Event]()
    manager = CheckpointManager(tmp_path, {"w": Weights()}, on_event=told.append, on_save_error="log")
    manager.save(1)
    manager.wait()  # also for its prune
    for call in (manager.wait, manager.close):
        stores[0].fail(place[0], end, key=place[1])
        pending = manager.save(2)
        with pytest.raises(SaveFailedError, match=type(end).__name__):
            pending.result()
        assert isinstance(pending.exception(), SaveFailedError)
        with pytest.raises(SaveFailedError) as raised:
            call()
        assert end in (raised.value.__cause__, getattr(raised.value.__cause__, "__cause__", None))
    stores[0].assert_all_used()
    assert [event.step for event in told if isinstance(event, SaveFailed)] == [2, 2]
    assert ckptflow.list_checkpoints(tmp_path)[0].step == 1


def test_it_is_raised_by_the_next_save_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, _ = failed_manager(tmp_path, monkeypatch, Panic())
    with pytest.raises(SaveFailedError, match="Panic"):
        manager.save(3)
    manager.save(3).result()
    manager.close()
    assert committed(tmp_path) == ["000000000001-i0001", "000000000003-i0001"]


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("end", [Panic("a client's"), SystemExit(0)], ids=names)
def test_every_worker_raises_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException, worker: int
) -> None:
    """The one that failed reports it, so that the chief need not wait `commit_timeout_s` for it."""
    stores: list[FaultyStore] = []

    def faulty(url: str) -> FaultyStore:
        stores.append(FaultyStore(open_store(url)))
        return stores[-1]

    def work(number: int) -> None:
        manager = CheckpointManager(str(tmp_path), {"w": Weights()}, commit_timeout_s=100_000)
        manager.save(1)
        manager.wait()
        if number == worker:
            for store in stores:
                store.fail("put", end, key=receipt_name(worker, 2).removesuffix(".json"))
        manager.save(2)
        with pytest.raises(PeerError if worker != number == 1 else SaveFailedError, match=type(end).__name__):
            manager.wait()
        manager.close()

    Team(monkeypatch, faulty).run(2, work)
    assert committed(tmp_path) == ["000000000001-i0001"]


def test_the_result_on_another_worker_waits_no_longer_than_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    class Slow(FaultyStore):
        def run(self, verb: str, key: str, call: Any) -> Any:
            if verb == "create" and "manifest" in key:
                gate.wait(HANG_S)
            return super().run(verb, key, call)

    def work(number: int) -> None:
        manager = CheckpointManager(str(tmp_path), {"w": Weights()}, commit_timeout_s=100_000)
        pending = manager.save(1)
        if number == 1:
            assert pending.wait()
            for timeout_s in (0, 0.001, -1):
                with pytest.raises(TimeoutError):
                    pending.result(timeout_s)
            gate.set()
            assert pending.result(HANG_S).step == 1
        manager.close()

    Team(monkeypatch, lambda url: Slow(open_store(url))).run(2, work)


def test_a_policy_that_ends_the_program_costs_neither_save_nor_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def leaves(_: object) -> list[bool]:
        sys.exit(0)

    with CheckpointManager(tmp_path, {"w": Weights()}, keep=[KeepLast(1), leaves]) as manager:
        for step in (1, 2, 3):
            assert manager.save(step).result().step == step
    assert len(committed(tmp_path)) == 3
    assert "pruning failed" in caplog.text


def test_the_thread_that_asks_for_notice_outlives_what_it_asks(tmp_path: Path) -> None:
    answers: Iterator[BaseException | bool] = iter([SystemExit(0), Panic(), True])

    def notice() -> bool:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with CheckpointManager(tmp_path, {"w": Weights()}) as manager:
        with PreemptionWatcher(manager, signals=(), notice=notice) as watcher:
            until(lambda: watcher.is_preempted, HANG_S)


# The program leaves


ALL_IS_WELL: list[BaseException] = [SystemExit(code) for code in (None, 0, False, 256)]
ALL_IS_WELL += [StopIteration(), StopAsyncIteration(), tf.errors.OutOfRangeError(None, None, "end"), typer.Exit(0)]


@pytest.mark.parametrize("error", ALL_IS_WELL, ids=names)
def test_leaving_by_what_says_that_all_is_well_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    manager, _ = failed_manager(tmp_path, monkeypatch)
    with pytest.raises(SaveFailedError, match="503 from the test") as raised, manager:
        raise error
    assert raised.value.__context__ is error


def test_a_generator_that_is_closed_hides_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def training() -> Iterator[int]:
        with failed_manager(tmp_path, monkeypatch)[0]:
            yield 2

    steps = training()
    next(steps)
    with pytest.raises(SaveFailedError):
        steps.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error", [SystemExit(3), SystemExit("why"), KeyboardInterrupt(), KeyError("mine"), typer.Exit(3)], ids=names
)
def test_any_other_end_goes_on_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    manager, _ = failed_manager(tmp_path, monkeypatch)
    with pytest.raises(type(error)) as raised, manager:
        raise error
    assert raised.value is error
    assert "503 from the test" in error.__notes__[0]


def test_an_exit_after_all_was_well_or_known_is_an_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, _ = failed_manager(tmp_path, monkeypatch)
    with pytest.raises(SystemExit), manager:  # noqa: PT012
        with pytest.raises(SaveFailedError):
            manager.wait()
        manager.save(3).result()
        sys.exit(0)
    assert manager.session.calls.is_closed


@pytest.mark.parametrize("verb", ["create", "get"])
def test_leaving_by_an_exception_asks_for_no_manifest_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Neither the time for receipts nor that for the manifest is waited for: the program wants to end."""
    stores = wrap_store(monkeypatch, FaultyStore)
    monkeypatch.setattr(ckptflow.job.arguments, "LEAVING_S", 0.2)
    with pytest.raises(KeyError, match="mine") as raised:  # noqa: PT012
        with CheckpointManager(tmp_path, {"w": Weights()}, commit_timeout_s=100_000) as manager:
            manager.save(1).result()
            stores[0].fail("create", StorageUnavailableError("EIO"), key="manifest", times=100_000)
            if verb == "get":
                stores[0].fail("get", StorageUnavailableError("EIO"), key="manifest", times=100_000)
            pending = manager.save(2)
            raise KeyError("mine")
    assert isinstance(pending.exception(), CommitUnknownError)
    assert "CommitUnknownError" in raised.value.__notes__[0]


# Calls from where none may come


def test_close_from_another_thread_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, _ = failed_manager(tmp_path, monkeypatch)
    assert "thread" in str(raised_in_a_thread(manager.close, UsageError)[0])
    with pytest.raises(SaveFailedError, match="503 from the test"), manager:
        pass


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Calls something in a handler of SIGUSR1; the handler that was there is put back."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda call: signal.signal(signal.SIGUSR1, lambda *_: call())
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("call", ["save", "wait", "close", "restore_latest"])
def test_a_signal_handler_that_saves_while_a_call_waits_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_signal: Callable[[Callable[[], object]], object], call: str
) -> None:
    """The handler's save is one more that is waited for, and how it fails is raised as ever."""
    is_out, gate = threading.Event(), threading.Event()

    class Waits(FaultyStore):
        def run(self, verb: str, key: str, call: Any) -> Any:
            if verb == "put" and "000000000002" in key and not gate.is_set():
                is_out.wait(HANG_S)
                os.kill(os.getpid(), signal.SIGUSR1)  # the main thread waits for this save by now, or soon
                gate.wait(HANG_S)
            return super().run(verb, key, call)

    stores = wrap_store(monkeypatch, Waits)
    handled: list[Any] = []

    def save() -> None:
        gate.set()
        stores[0].fail("put", StorageUnavailableError("503 from the test"), key="000000000003-i0001/shard")
        handled.append(manager.save(3))

    manager = CheckpointManager(tmp_path, {"w": Weights()})
    manager.save(1).result()
    on_signal(save)
    pending = manager.save(2)
    is_out.set()
    if call == "restore_latest":
        assert manager.restore_latest() is not None
    with pytest.raises(SaveFailedError, match="503 from the test"):
        manager.save(4) if call == "save" else manager.close() if call == "close" else manager.wait()
    assert pending.result().step == 2
    assert isinstance(handled[0].exception(), SaveFailedError)
    manager.close()
    assert committed(tmp_path) == ["000000000001-i0001", "000000000002-i0001"]


def test_a_call_inside_of_another_is_refused(tmp_path: Path) -> None:
    """What is half captured, or half restored, must not be saved; and the call that was disturbed goes on."""
    refused: list[UsageError] = []

    class Calls:
        def get_state(self) -> Any:
            self.call()
            return 1

        def set_state(self, state: Any) -> None:
            self.call()

        def call(self) -> None:
            for inner in (lambda: manager.save(9), manager.wait, manager.restore_latest, manager.close):
                with pytest.raises(UsageError, match="inside of another") as raised:
                    inner()
                refused.append(raised.value)

    manager = CheckpointManager(tmp_path, {"w": Weights(), "c": Calls()})
    manager.save(1)
    manager.close()
    manager = CheckpointManager(tmp_path, {"w": Weights(), "c": Calls()})
    manager.restore_latest()
    manager.close()
    assert len(refused) >= 8
    assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(tmp_path)] == [1]


# It stays until it has been raised


@pytest.mark.parametrize("how", ["save", "wait", "close"])
def test_a_restore_forgets_no_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    manager, _ = failed_manager(tmp_path, monkeypatch)
    assert getattr(manager.restore_latest(), "step", None) == 1
    with pytest.raises(SaveFailedError, match="503 from the test"):
        manager.save(2) if how == "save" else getattr(manager, how)()
    manager.close()


def test_nor_does_one_that_saves_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, store = failed_manager(tmp_path, monkeypatch)
    manager.rollback(1)  # the newest: nothing is saved again
    with pytest.raises(SaveFailedError):
        manager.wait()
    manager.save(2).result()
    store.fail("put", StorageUnavailableError("503 of step 3"), key="shard")
    manager.save(3).wait()
    manager.rollback(1)  # of an older one, which saves it again: of that it does not fail
    with pytest.raises(SaveFailedError, match="503 of step 3"):
        manager.close()
    assert {checkpoint.step for checkpoint in ckptflow.list_checkpoints(tmp_path)} == {1}


# What others get


def test_what_hooks_policies_and_programs_change_is_theirs(tmp_path: Path) -> None:
    def spoil(value: Any) -> None:
        value.metrics["loss"] = -1e9
        value.metrics.clear()

    def policy(checkpoints: Any) -> list[None]:
        for each in checkpoints:
            spoil(each)
            each.metadata["tags"].append("spoilt")
        return [None] * len(checkpoints)

    seen = list[Any]()
    hooks = [lambda event: spoil(event) if event.name == "committed" else None, seen.append]
    keep: Any = [policy, KeepBest("loss", n=1)]
    with CheckpointManager(tmp_path, {"w": Weights()}, keep=keep, on_event=hooks) as manager:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0)):
            spoil(manager.save(step, metrics={"loss": loss}, metadata={"tags": ["a"]}).result())
        manager.wait()  # for its prune as well
        spoil(manager.latest())
        assert [(c.step, dict(c.metrics), c.metadata) for c in manager.checkpoints()] == [
            (2, {"loss": 1.0}, {"tags": ["a"]}),
            (4, {"loss": 4.0}, {"tags": ["a"]}),
        ]
    assert [event.metrics["loss"] for event in seen if event.name == "committed"] == [3.0, 1.0, 2.0, 4.0]


# What is left behind


def test_a_manager_that_nobody_closes_leaves_no_thread(tmp_path: Path) -> None:
    """Also where the hook knows the manager."""
    before, told = set(threading.enumerate()), list[str]()

    def use(url: Path) -> weakref.ref[CheckpointManager]:
        manager: CheckpointManager

        def hook(event: Event) -> None:
            told.append(f"{event.name} {manager.session._shard_bytes}")

        manager = CheckpointManager(url, tf.Variable([1.0]), on_event=hook)
        manager.save(1).result()
        return weakref.ref(manager)

    left = [use(tmp_path / str(number)) for number in range(3)]

    def is_gone() -> bool:
        gc.collect()
        return all(ref() is None for ref in left) and not (set(threading.enumerate()) - before)

    until(is_gone, HANG_S)
    assert sum(text.startswith("committed") for text in told) == 3


def test_a_log_that_raises_ends_no_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise SystemExit("planted")

    caplog.set_level(logging.INFO, "ckptflow.events")
    handler, told = Broken(), list[Event]()
    logging.getLogger("ckptflow.events").addHandler(handler)
    try:
        with CheckpointManager(tmp_path, {"w": Weights()}, on_event=told.append) as manager:
            manager.save(1)
    finally:
        logging.getLogger("ckptflow.events").removeHandler(handler)
    assert [event.name for event in told] == ["claimed", "save_began", "shards_written", "committed"]
