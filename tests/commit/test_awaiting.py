"""How a worker that is not the chief waits for a commit: storage is asked once somebody has said that it is there."""

from __future__ import annotations

import pytest

from ckptflow.commit.finding import await_checkpoint
from ckptflow.errors import CommitTimeoutError
from ckptflow.storage.wrappers import CountingStore
from ckptflow.testing import MemoryStore
from tests.commit.reports import FOLDER, claimed, coordinator, draft, receipt, report
from tests.waiting import HANG_S


@pytest.fixture
def store() -> MemoryStore:
    made = claimed()
    report(made, receipt(1), receipt(2))
    return made


@pytest.mark.parametrize("asked", [1, 2, 6])
def test_storage_is_looked_at_when_it_is_said_that_it_is_committed(store: MemoryStore, asked: int) -> None:
    """Once before, for a job whose chief could not say so."""
    counting, times = CountingStore(store), 0

    def ask() -> bool:
        nonlocal times
        times += 1
        if times == asked:
            coordinator(store).commit(draft(), receipt(0))
        return times >= asked

    assert await_checkpoint(counting, FOLDER, HANG_S, ask).step == FOLDER.step
    assert times == asked
    assert counting.counts["get"] == min(asked, 2)


def test_what_nobody_has_told_of_is_found_at_the_end(store: MemoryStore) -> None:
    def ask() -> bool:
        coordinator(store).commit(draft(), receipt(0))
        return False

    assert await_checkpoint(store, FOLDER, 0.0, ask).step == FOLDER.step


def test_the_time_is_over(store: MemoryStore) -> None:
    with pytest.raises(CommitTimeoutError, match=r"has no manifest after 0\.1 s"):
        await_checkpoint(store, FOLDER, 0.1, lambda: False)
