"""Workers go on with a fit at one place, or at none: whatever one of them finds, and the others do not."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ckptflow.callbacks.position import FitState
from ckptflow.errors import CheckpointGoneError, CorruptCheckpointError
from ckptflow.format.layout import Folder
from ckptflow.peers.team import agree, agree_on
from tests.peers.members import WORKERS, Member, together

FOLDER, OLDER = Folder(5, 1, 1), Folder(4, 1, 1)


class Session:
    """What of a session the state of a fit needs; on this worker the checkpoint is gone by now, or damaged.

    `can_choose`: there is another one that is not.
    """

    def __init__(
        self, member: Member, *, is_pruned: bool = False, is_damaged: bool = False, can_choose: bool = False
    ) -> None:
        self.restores = 0
        self._begin(FOLDER)
        self.rereading = self
        self.agree_on = partial(agree_on, member)
        self.agree = partial(agree, member)
        self.restored: list[Folder] = []
        self._is_pruned, self._is_damaged, self._can_choose = is_pruned, is_damaged, can_choose

    def _begin(self, folder: Folder) -> None:
        self.start = SimpleNamespace(restored=SimpleNamespace(folder=folder))
        self.restores += 1

    def restore_with_attached(self) -> bool:
        if self._can_choose:
            self._begin(OLDER)
        return self._can_choose

    def read_attached(self, name: str, folder: Folder) -> Any:
        if self._is_pruned:
            raise CheckpointGoneError(f"{folder} is gone")
        if self._is_damaged and folder == FOLDER:
            raise CorruptCheckpointError(f"{folder} is damaged")
        state = {"position": {"fit": 1, "epoch": 2, "batch": folder.step}, "counters": None, "callbacks": {}}
        return state, {"input": np.zeros(0, np.uint8), "callbacks": np.zeros(0, np.uint8)}

    def restore_metrics(self, folder: Folder) -> None:
        self.restored.append(folder)


@pytest.mark.parametrize("pruned", [None, *range(WORKERS)])
def test_where_a_fit_goes_on_is_the_same_on_all(pruned: int | None) -> None:
    def load(member: Member) -> object:
        state = FitState()
        state.load(Session(member, is_pruned=member.worker == pruned))  # type: ignore[arg-type]
        return state.position

    positions = together(load)
    assert len(set(positions)) == 1
    assert (positions[0] is None) == (pruned is not None)


@pytest.mark.parametrize("damaged", range(WORKERS))
def test_damage_that_one_worker_reads_is_met_by_all(damaged: int) -> None:
    def load(member: Member, *, can_choose: bool) -> object:
        state = FitState()
        session = Session(member, is_damaged=member.worker == damaged, can_choose=can_choose)
        try:
            state.load(session)  # type: ignore[arg-type]
        except CorruptCheckpointError as error:
            return str(error)
        return state.position and state.position.batch

    assert together(partial(load, can_choose=True)) == [OLDER.step] * WORKERS
    assert together(partial(load, can_choose=False)) == [f"{FOLDER} is damaged"] * WORKERS


@pytest.mark.parametrize("broken", [None, *range(WORKERS)])
def test_metrics_that_one_worker_cannot_build_are_restored_on_none(broken: int | None) -> None:
    def bring_back(member: Member) -> object:
        state, session = FitState(), Session(member)
        state.load(session)  # type: ignore[arg-type]

        def build() -> None:
            if member.worker == broken:
                raise ValueError("a metric of another shape")

        state.restore_metrics(session, build)  # type: ignore[arg-type]
        return session.restored

    assert together(bring_back) == [[] if broken is not None else [FOLDER]] * WORKERS
