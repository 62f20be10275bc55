"""On a disk copies share files: whatever a job has been through, what it falls back to is in files of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptflow
from ckptflow import CheckpointManager
from ckptflow.cli.prune import find_damage
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.pins import pin_checkpoint, unpin_checkpoint
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepBest, KeepEvery, KeepLast, Policy
from ckptflow.errors import UsageError
from ckptflow.storage.opening import open_store

SIDE = 550  # of a frozen kernel of more than 1 MiB: less of it is not put into shards of its own
POLICIES: Sequence[Sequence[Policy]] = [
    [KeepLast(1)],
    [KeepLast(2)],
    [KeepLast(3)],
    [KeepLast(1), KeepBest("loss")],
    [KeepBest("loss", 2)],
    [KeepEvery(steps=3), KeepLast(1)],
]


class Walk:
    """A job on a real folder whose backbone is frozen, and what its checkpoints must hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.step = 0
        self.saved: dict[str, float] = {}  # by folder, what all of the backbone was
        self.damaged: set[int] = set()  # inodes
        self.open_files = ExitStack()
        self.knows_prunes = True  # the job, of one by hand: it looks at what is there after its next save
        self.is_pruned = False  # by the job itself, and not by hand since
        self.start(0)

    def end(self) -> None:
        self.manager.close()
        self.open_files.close()

    def start(self, policies: int, step: int | None = None) -> None:
        self.backbone = keras.layers.Dense(SIDE, kernel_initializer="zeros", trainable=False)
        self.backbone.build((SIDE,))
        state = {"backbone": self.backbone, "head": keras.Variable(0.0)}
        self.manager = CheckpointManager(self.root, state, keep=POLICIES[policies])
        self.policies = policies
        self.restore(step)

    def restore(self, step: int | None = None, *, reads: bool = False) -> None:
        """Brings back what was saved: the newest that is sound, wherever there is one. `reads`: for a look, until the
        next save."""
        sound = [name for name, files in self.there().items() if not files & self.damaged]
        back = self.manager.restore if reads else self.manager.rollback
        found = self.manager.restore_latest() if step is None else back(step)
        assert (found is not None) == bool(sound)
        self.step = found.step if found else 0
        for folder in self.there():  # what was restored may have been saved again
            self.saved.setdefault(folder, self.value() if found else 0.0)
        if found is not None:
            assert self.value() == self.saved[Path(found.url).name]

    def value(self) -> float:
        kernel = self.backbone.kernel.numpy()
        assert (kernel == kernel[0, 0]).all()
        return float(kernel[0, 0])

    def there(self) -> dict[str, set[int]]:
        """The files of the checkpoints that count, in the order of their steps."""
        names = [Path(each.url).name for each in ckptflow.list_checkpoints(self.root)]
        return {
            name: {entry.inode() for entry in os.scandir(self.root / name) if entry.name.startswith("shard-")}
            for name in names
        }

    def save(self, by: int, loss: float | None) -> None:
        self.step += by
        found = self.manager.save(self.step, metrics={} if loss is None else {"loss": loss}).result()
        self.manager.wait()  # it has pruned
        self.saved[Path(found.url).name] = self.value()
        *others, newest = self.there().values()
        assert not newest & self.damaged
        sound = [files for files in others if not files & self.damaged]
        is_promised, self.knows_prunes = self.knows_prunes, True
        is_other = any(not files & newest for files in sound)
        assert not is_promised or not sound or is_other, "all that stays shares a file with the newest"
        self.is_pruned = is_promised

    def thaw(self) -> None:
        self.backbone.kernel.assign_add(np.ones((SIDE, SIDE), np.float32))

    def prune(self, last: int) -> None:
        with closing(open_store(str(self.root))) as store, suppress(UsageError):  # refused before the first save
            prune_by_hand(store, Summaries(store), [KeepLast(last)], find_damage)
        self.is_pruned = self.knows_prunes = False

    def damage(self) -> bool:
        """Each file of the newest goes wrong, under all of its names; the job starts again, if anything is left."""
        there = self.there()
        self.manager.close()
        newest = list(there)[-1]
        for path in (self.root / newest).glob("shard-*"):
            data = bytearray(path.read_bytes())
            data[-1] ^= 0x10
            file = self.open_files.enter_context(path.open("r+b", buffering=0))  # else its inode is soon another's
            file.write(data)  # in place
        before, self.damaged = self.damaged, self.damaged | there[newest]
        if is_left := any(not files & self.damaged for files in there.values()):
            self.start(self.policies)
        else:
            assert len(there) == 1 or not self.is_pruned or before
        return is_left


@pytest.mark.parametrize("saves", [3, 4])
def test_a_flip_in_each_family(tmp_path: Path, saves: int) -> None:
    """Two of the checkpoints are damaged by it, and the newest of the others is restored."""
    walk = Walk(tmp_path)
    walk.manager.close()
    walk.start(2)
    for _ in range(saves):
        walk.save(1, None)
    there = list(walk.there().values())
    assert there[-1] & there[-3]
    assert walk.damage()
    assert walk.step == saves - 1
    for _ in range(3):
        walk.save(1, None)
    walk.end()


losses = st.sampled_from([None, 0.1, 0.2, 0.3])
acts = st.one_of(
    st.tuples(st.just("save"), st.sampled_from([0, 1, 1, 1, 2]), losses),
    st.tuples(st.just("save"), st.sampled_from([0, 1, 1, 1, 2]), losses),
    st.tuples(st.just("restart"), st.integers(0, len(POLICIES) - 1), st.none()),
    st.tuples(st.sampled_from(["go back", "look back", "pin", "unpin"]), st.integers(0, 9), st.none()),
    st.tuples(st.sampled_from(["thaw", "damage"]), st.just(0), st.none()),
    st.tuples(st.just("prune"), st.integers(1, 2), st.none()),
)


@given(history=st.lists(acts, min_size=4, max_size=20))
@settings(max_examples=12)
def test_what_a_restore_falls_back_to_is_in_other_files(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, float | None]]
) -> None:
    """Random saves, policies, restarts, rollbacks, pins, prunes by hand, changes and damages, on a real folder."""
    walk = Walk(tmp_path_factory.mktemp("run"))
    for what, number, loss in [("save", 1, None), *history, ("save", 1, None), ("damage", 0, None)]:
        steps = sorted({int(name.split("-")[0]) for name, files in walk.there().items() if not files & walk.damaged})
        match what:
            case "save":
                walk.save(number, loss)
            case "restart":
                walk.manager.close()
                walk.start(number)
            case "go back" | "look back":
                walk.restore(steps[number % len(steps)], reads=what == "look back")
            case "pin" | "unpin":
                with closing(open_store(str(walk.root))) as store:
                    step = steps[number % len(steps)]
                    pin_checkpoint(store, Summaries(store), step) if what == "pin" else unpin_checkpoint(store, step)
            case "thaw":
                walk.thaw()
            case "damage" if not walk.damage():
                break
            case "prune":
                walk.prune(number)
    walk.end()
