"""Workers go on with a fit at one place, or at none: whatever one of them finds, and the others do not."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ckptflow.callbacks.position import NAME, FitState
from ckptflow.errors import CheckpointGoneError
from ckptflow.format.layout import Folder
from ckptflow.peers.team import agree, agree_on
from tests.peers.members import WORKERS, Member, together

FOLDER = Folder(5, 1, 1)


class Session:
    """What of a session the state of a fit needs; `is_pruned`: on this worker the checkpoint is gone by now."""

    def __init__(self, member: Member, *, is_pruned: bool = False) -> None:
        self.incarnation = SimpleNamespace(start=SimpleNamespace(restored=SimpleNamespace(folder=FOLDER)))
        self.agree_on = partial(agree_on, member)
        self.agree = partial(agree, member)
        self.restored: list[Folder] = []
        self._is_pruned = is_pruned

    def open(self, folder: Folder) -> Any:
        if self._is_pruned:
            raise CheckpointGoneError(f"{folder} is gone")
        state = {"position": {"fit": 1, "epoch": 2, "batch": 3}, "counters": None, "callbacks": {}}
        arrays = {f"{NAME}/input": np.zeros(0, np.uint8), f"{NAME}/callbacks": np.zeros(0, np.uint8)}
        return SimpleNamespace(python_state={NAME: state}, read=lambda names: arrays)

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
