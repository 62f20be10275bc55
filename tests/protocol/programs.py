"""What the processes of a scenario do: lives of a job, one after another or beside another, and prunes by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from ckptflow.commit import prune as prune_module
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.deletion import deletion_of
from ckptflow.commit.retention import KeepBest, KeepLast
from ckptflow.errors import CheckpointNotFoundError, ObjectNotFoundError, StorageError
from ckptflow.format.layout import Folder
from ckptflow.storage.store import Entry, Store
from tests.protocol.lives import Incarnations
from tests.protocol.process import Process, YieldingStore

Program = Callable[[Process], None]


def life(*, saves: int = 1, may_roll_back_to: int | None = None, keep: int = 1, copies: str = "") -> Program:
    """Starts from the newest (or, where the budget lets it, rolls back), and saves."""

    def program(process: Process) -> None:
        incarnation = Incarnations(process, [KeepLast(keep)], copies=copies)
        rolls_back = may_roll_back_to is not None and process.call("choose", "rollbacks")
        process.show(goes_back=rolls_back)
        incarnation.begin(may_roll_back_to if rolls_back else None)
        process.show(goes_back=False)
        for _ in range(saves):
            incarnation.save()

    return program


def running(
    *,
    kept: int,
    saves: int = 1,
    restarts: int = 0,
    kept_after: int = 0,
    then_back_to: int | None = None,
    saves_after: int = 1,
    keep: int = 1,
    copies: str = "",
) -> Program:
    """One that has committed the steps up to `kept`, keeping all of them, then has started again so many times without
    a save, and then has committed `kept_after` more, when the search begins; see `after_setup`."""

    def policy(checkpoints: Any) -> list[bool | str | None]:
        last: list[bool | str | None] = list(KeepLast(keep)(checkpoints))
        return [True] * len(last) if checkpoints[-1].step <= kept + kept_after else last

    def program(process: Process) -> None:
        incarnation = Incarnations(process, [policy], copies=copies)
        incarnation.begin()
        for _ in range(kept):
            incarnation.save()
        for _ in range(restarts):
            incarnation.begin()
        for _ in range(kept_after + saves):
            incarnation.save()
        if then_back_to is not None:
            process.show(goes_back=True)
            incarnation.begin(then_back_to)
            process.show(goes_back=False)
            for _ in range(saves_after):
                incarnation.save()

    return program


def reads(step: int, *, kept: int = 0, saves: int = 1, keep: int = 1, copies: str = "") -> Program:
    """Restores a step without a claim, to evaluate it, perhaps, and then goes on from it and saves. With `kept`, a job
    that has committed so many steps, keeping all of them, when the search begins; else one that has not begun."""

    def program(process: Process) -> None:
        incarnation = Incarnations(process, [KeepLast(kept or keep)], copies=copies)
        if kept:
            incarnation.begin()
        for _ in range(kept):
            incarnation.save()
        process.show(goes_back=True)
        process.call("choose", "rollbacks")
        incarnation.read(step)
        for _ in range(saves):
            incarnation.save()

    return program


def reads_and_saves_twice(step: int, *, kept: int = 0, looks_again: bool) -> Program:
    """The same; where the first save after it fails, it saves once more, or restores the step once more before."""

    def program(process: Process) -> None:
        incarnation = Incarnations(process, [KeepLast(max(kept, 1))])
        if kept:
            incarnation.begin()
        for _ in range(kept):
            incarnation.save()
        process.show(goes_back=True)
        process.call("choose", "rollbacks")
        incarnation.read(step)
        try:
            incarnation.save()
        except StorageError:
            process.merge()
            if looks_again:
                incarnation.read(step)
        incarnation.save()

    return program


def beside_the_best(*lives: Sequence[float], best: int = 1) -> Program:
    """On a disk, with `KeepLast(1)` beside `KeepBest`: one life after another in one process, each by the metrics of
    its saves."""

    def program(process: Process) -> None:
        incarnation = Incarnations(process, [KeepLast(1), KeepBest("loss", best)], copies="disk")
        for losses in lives:
            incarnation.begin()
            for loss in losses:
                incarnation.save(loss)

    return program


class _ShortStore(YieldingStore):
    """Where the budget lets it, a listing of it lacks every manifest; those of a start do not (see `is_short`)."""

    is_short = False

    def list(self, prefix: str = "") -> list[Entry]:
        found = super().list(prefix)
        shown = [entry for entry in found if not entry.key.endswith("/manifest.json")]
        return shown if self.is_short and shown != found and self._process.call("choose", "lacks") else found


def on_a_full_storage(process: Process) -> None:
    """Starts from the newest, has no room for its save, sweeps what was never committed, and saves."""
    incarnation = Incarnations(process)
    store = incarnation.store = _ShortStore(process)
    incarnation.begin()
    store.is_short = True
    if incarnation.coordinator is not None:
        incarnation.coordinator.sweep_partials()
    store.is_short = False
    incarnation.save()


def prunes_by_hand(process: Process) -> None:
    """`ckptflow prune --yes` from outside: no claim."""
    store = YieldingStore(process)
    prune_module.prune_by_hand(store, Summaries(store), [KeepLast(1)])


def deletes_by_hand(process: Process) -> None:
    """`ckptflow delete --step 1 --yes` from outside; what is gone by then is nothing to delete."""
    store = YieldingStore(process)
    with contextlib.suppress(CheckpointNotFoundError):
        prune_module.prune_by_hand(store, Summaries(store), deletion_of(store.url, [1]))


def prunes_by_hand_at_length(process: Process) -> None:
    """The same, and its verification is one step, during which all may happen."""

    def verify(store: Store, folder: Folder) -> None:
        with contextlib.suppress(ObjectNotFoundError):
            store.get(folder.key("verified"), memoryview(bytearray(1)))

    store = YieldingStore(process)
    prune_module.prune_by_hand(store, Summaries(store), [KeepLast(1)], verify)
