"""Ctrl-C at every line that a manager's calls run: none hangs, nothing acknowledged is lost, each failure is loud.

A slice of the lines in `make test`, another one each time; all of them in `make chaos`.
"""

from __future__ import annotations

import gc
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ckptflow
from ckptflow import CheckpointManager, SaveFailedError, UsageError
from ckptflow.errors import StorageUnavailableError
from ckptflow.testing import FaultyStore
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.packing import MIN_SHARD_BYTES
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.streams import Streams, Turns
from tests.chaos.conftest import Note
from tests.interrupts import Ended, interrupted
from tests.manager.states import Weights, wrap_store
from tests.waiting import until

SLICE = 6  # lines of each program, in `make test`
Case = Callable[[Path, pytest.MonkeyPatch, int | None], Ended]


def weights() -> Weights:
    return Weights(count=3, length=MIN_SHARD_BYTES // 4)


def manager_of(root: Path, state: Weights, **options: Any) -> CheckpointManager:
    """One with a single buffer: one that is lost is missed at once."""
    size_bytes = 2 * MIN_SHARD_BYTES
    told: list[object] = []
    return CheckpointManager(
        root, {"w": state}, shard_bytes=size_bytes, memory_budget_bytes=size_bytes, on_event=told.append, **options
    )


def check_root(root: Path, acknowledged: list[int]) -> None:
    """All that was acknowledged is there; the newest is, or something newer, and comes back as it was saved."""
    steps = {checkpoint.step for checkpoint in ckptflow.list_checkpoints(root)}
    assert steps >= set(acknowledged)
    state = weights()
    with manager_of(root, state) as manager:
        found = manager.restore_latest()
    assert found is not None
    assert found.step >= max(acknowledged)
    assert state.value() == found.step


def check_threads(before: set[threading.Thread]) -> None:
    """None of ours is left, at the latest when the manager is collected whose `close` was interrupted."""

    def is_over() -> bool:
        left = [each for each in set(threading.enumerate()) - before if each.name.startswith("ckptflow")]
        if left:
            gc.collect()
        return not left

    until(is_over, 60)


def a_block_with_saves(root: Path, patch: pytest.MonkeyPatch, at: int | None) -> Ended:
    """A program that saves in the manager's block, and is left by the interrupt."""
    state, acknowledged = weights(), [1]
    manager = manager_of(root, state)
    state.fill(1)
    manager.save(1).result()

    def program() -> None:
        with manager:
            state.fill(2)
            acknowledged.append(manager.save(2, metrics={"loss": 0.5}, metadata={"a": [1]}).result().step)
            state.fill(3)
            manager.save(3)
            manager.wait()
            acknowledged.append(3)
            manager.save(3)

    ended = interrupted(program, at)
    if not manager.session.calls.is_closed:  # it came while it was being left
        manager.close()
    check_root(root, acknowledged)
    return ended


def a_failed_save(root: Path, patch: pytest.MonkeyPatch, at: int | None, call: str) -> Ended:
    """It is raised by the call that is interrupted, or by the next one."""
    stores = wrap_store(patch, FaultyStore)
    state = weights()
    manager = manager_of(root, state)
    state.fill(1)
    manager.save(1).result()
    stores[0].fail("put", StorageUnavailableError("503 from the test"), key="shard")
    manager.save(2).wait()
    ended = interrupted(lambda: manager.save(3) if call == "save" else getattr(manager, call)(), at)
    if manager.session.calls.is_closed:
        assert "503 from the test" in ended.text
    elif not isinstance(ended.error, SaveFailedError):
        assert isinstance(ended.error, KeyboardInterrupt)
        with pytest.raises(SaveFailedError, match="503 from the test"):
            manager.close()
    manager.close()
    check_root(root, [1])
    return ended


def a_restore(root: Path, patch: pytest.MonkeyPatch, at: int | None) -> Ended:
    """The same manager restores again, and saves."""
    state = weights()
    with manager_of(root, state) as manager:
        for step in (1, 2):
            state.fill(step)
            manager.save(step)
    state = weights()
    manager = manager_of(root, state)
    ended = interrupted(manager.restore_latest, at)
    assert ended.error is None or isinstance(ended.error, KeyboardInterrupt)
    assert getattr(manager.restore_latest(), "step", None) == 2
    assert state.value() == 2
    state.fill(3)
    manager.save(3)
    manager.close()
    check_root(root, [1, 2, 3])
    return ended


def a_rollback(root: Path, patch: pytest.MonkeyPatch, at: int | None) -> Ended:
    state = weights()
    manager = manager_of(root, state)
    for step in (1, 2):
        state.fill(step)
        manager.save(step)
    ended = interrupted(lambda: manager.rollback(1), at)
    assert ended.error is None or isinstance(ended.error, KeyboardInterrupt)
    assert getattr(manager.rollback(1), "step", None) == 1
    assert state.value() == 1
    manager.close()
    check_root(root, [1])
    return ended


def a_look_back(root: Path, patch: pytest.MonkeyPatch, at: int | None) -> Ended:
    """A step is looked at, and gone on from; then there is a rollback, which alone cuts off what was acknowledged."""
    state = weights()
    manager = manager_of(root, state)
    for step in (1, 2):
        state.fill(step)
        manager.save(step)
    manager.wait()
    may_come = {2}  # with the next start

    def program() -> None:
        manager.restore(1)
        state.fill(5)
        may_come.add(5)
        manager.save(5).result()
        may_come.discard(2)
        may_come.add(1)
        manager.rollback(1)
        may_come.discard(5)
        manager.close()

    ended = interrupted(program, at)
    assert ended.error is None or isinstance(ended.error, KeyboardInterrupt)
    if not manager.session.calls.is_closed:
        state.fill(6)
        try:
            manager.save(6).result()
        except UsageError:  # of the first look, or of a rollback, it is unknown what it has brought: it is to restore
            pass
        else:
            steps = [checkpoint.step for checkpoint in manager.checkpoints()]
            assert steps in ([1, 2, 6], [1, 5, 6], [1, 6])
            may_come = {6}
    manager.close()
    state = weights()
    with manager_of(root, state) as manager:
        found = manager.restore_latest()
    assert found is not None
    assert found.step in may_come
    assert state.value() == found.step
    return ended


CASES: dict[str, Case] = {
    "saves": a_block_with_saves,
    "failed-then-save": lambda root, patch, at: a_failed_save(root, patch, at, "save"),
    "failed-then-wait": lambda root, patch, at: a_failed_save(root, patch, at, "wait"),
    "failed-then-close": lambda root, patch, at: a_failed_save(root, patch, at, "close"),
    "restore": a_restore,
    "rollback": a_rollback,
    "look-back": a_look_back,
}


def strike(case: Case, root: Path, lines: Callable[[int], list[int]]) -> tuple[int, int]:
    """The case without an interrupt, and then with one at each of these of its lines: how many it has, and were hit."""

    def once(at: int | None) -> Ended:
        before = set(threading.enumerate())
        with pytest.MonkeyPatch.context() as patch:
            try:
                ended = replace(case(root / "run", patch, at), error=None)  # its frames hold the manager
            except BaseException as error:
                error.add_note(f"interrupted at line {at}")
                raise
        check_threads(before)
        shutil.rmtree(root / "run")
        return ended

    count = once(None).line_count
    assert count > SLICE
    struck = [once(at).struck for at in lines(count)]
    return count, sum(place is not None for place in struck)


@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_at_some_lines(tmp_path: Path, name: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    rng = random.Random(seed)
    print(strike(CASES[name], tmp_path, lambda count: sorted(rng.sample(range(count), SLICE))))


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_at_every_line(tmp_path: Path, name: str, note: Note) -> None:
    count, struck = strike(CASES[name], tmp_path, lambda count: list(range(count)))
    note(f"Ctrl-C at every line, {name}", struck, f"of {count:,} lines; 0 hangs, 0 lost, each failure loud")


def test_ctrl_c_at_every_line_of_the_pipeline() -> None:
    """Nothing hangs, no buffer is lost or given twice, and no thread is left."""
    before = set(threading.enumerate())

    def once(at: int | None) -> Ended:
        pool = BufferPool(2 * 2**12, 2**12)
        consumed: list[int] = []

        def work(number: int, buffer: Buffer) -> None:
            buffer.array[:] = number

        def consume(number: int, buffer: Buffer, result: None) -> None:
            assert set(buffer.array) == {number}
            consumed.append(number)

        ended = interrupted(lambda: run(pool, 12, work, consume, turns=Turns(Streams(3, fixed=3)), threads=3), at)
        assert ended.error is None or isinstance(ended.error, KeyboardInterrupt)
        check_threads(before)
        taken = {pool.acquire() for _ in range(pool.count)}  # waits for ever where one is lost
        assert len(taken) == pool.count
        assert len(set(consumed)) == len(consumed)
        return ended

    count = once(None).line_count
    struck = {once(at).struck for at in range(count + 20)}
    assert len(struck) > 15
