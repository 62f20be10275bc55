"""A root with 2,000 checkpoints: beside the listing, as many requests as in a root with ten."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptflow.job.session
import ckptflow.reading
from ckptflow import CheckpointManager, KeepEvery, KeepLast, open_checkpoint
from ckptflow.commit.retention import Policy
from ckptflow.events import Tell, tell_nobody
from ckptflow.format.layout import Folder
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore
from tests.speed.roots import multiply_folders, multiply_objects
from tests.speed.stores import MeasuredStore

FEW, MANY = 10, 2_000
Asked = dict[str, Counter[str]]


class Root:
    """A root that holds checkpoints of the steps 1 … `count`, and what its storage is asked for."""

    def __init__(self, count: int, folder: Path, patch: pytest.MonkeyPatch, *, on_disk: bool) -> None:
        self.count = count
        self.url = str(folder / f"root-{count}")
        self.store: MeasuredStore | None = None  # the newest that was opened
        self.objects: dict[str, bytes] | None = None if on_disk else {}
        for module in (ckptflow.job.session, ckptflow.reading):
            patch.setattr(module, "open_store", self._open)
        with self.manager() as manager:
            self.first = Path(manager.save(1).result().url).name
        if self.objects is None:
            multiply_folders(Path(self.url), self.first, range(2, count + 1))
        else:
            multiply_objects(self.objects, self.first, range(2, count + 1))

    def manager(self, keep: Policy | None = None) -> CheckpointManager:
        """A manager of another life."""
        self.variable = tf.Variable(tf.range(100, dtype=tf.float32))
        return CheckpointManager(self.url, {"v": self.variable}, keep=keep or KeepEvery(steps=1))

    def asked(self, do: Callable[[], object]) -> Asked:
        """What is asked for while `do` runs, by verb."""
        if self.store is not None:
            self.store.forget()
        do()
        assert self.store is not None
        return {verb: self.store.kinds(verb) for verb in self.store.counts}

    def _open(self, url: str, storage_options: dict[str, object] | None = None, tell: Tell = tell_nobody) -> Store:
        objects = self.objects
        self.store = MeasuredStore(open_store(url) if objects is None else MemoryStore(objects))
        return self.store


@pytest.fixture(params=["disk", "objects"])
def make_root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Root]:
    return lambda count: Root(count, tmp_path, monkeypatch, on_disk=request.param == "disk")


@pytest.mark.parametrize("many_count", [MANY, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_the_newest_is_found_by_the_listing_and_a_few_requests(
    make_root: Callable[[int], Root], many_count: int
) -> None:
    def look(count: int) -> list[Asked]:
        root = make_root(count)

        def open_newest() -> None:
            with open_checkpoint(root.url) as checkpoint:
                assert checkpoint.checkpoint.step == count
                np.testing.assert_array_equal(checkpoint["v"], np.arange(100, dtype=np.float32))

        found = [root.asked(open_newest)]
        with root.manager() as manager:
            found.append(root.asked(manager.latest))
            root.variable.assign(tf.zeros([100]))
            found.append(root.asked(manager.restore_latest))
            np.testing.assert_array_equal(root.variable.numpy(), np.arange(100, dtype=np.float32))
            latest = manager.latest()
            assert latest is not None
            assert latest.step == count
        return found

    few, many = look(FEW), look(many_count)
    assert many == few
    opening, latest, restoring = many
    assert (opening["list"], opening["get"]["manifest"]) == ({"": 1, "folder": 1}, 2)
    assert (latest["list"], latest["get"]["manifest"]) == ({"": 1}, 1)
    assert restoring["list"] == {"": 3, "lineage/": 1}
    assert restoring["get"]["manifest"] <= 3


@pytest.mark.parametrize(
    ("keep", "lists"),
    [(KeepEvery(steps=1), {"lineage/": 1}), (KeepLast, {"": 1, "lineage/": 1, "pins/": 1})],
    ids=["all stay", "one goes with each"],
)
def test_a_save_asks_for_no_more_the_more_are_kept(
    make_root: Callable[[int], Root], keep: Policy | type[KeepLast], lists: dict[str, int]
) -> None:
    """The first save of a life reads each manifest once, where policies need them; later ones their own alone."""

    def save(count: int) -> tuple[Asked, list[Asked]]:
        root = make_root(count)
        with root.manager(keep(count) if isinstance(keep, type) else keep) as manager:
            manager.restore_latest()

            def save_next(step: int) -> None:
                manager.save(step)
                manager.wait()

            saves = [root.asked(functools.partial(save_next, count + number)) for number in (1, 2, 3)]
        return saves[0], saves[1:]

    few_first, few = save(FEW)
    many_first, many = save(MANY)
    for each in (*few, *many):
        gets = each.pop("get")
        assert set(gets) <= {"claim", "manifest"}
        # Is it still ours: before the manifest, before it is acknowledged, before deleting.
        assert gets["claim"] == (3 if "" in lists else 2)
        assert gets["manifest"] <= 2  # its own, before deleting; a long one is read in two steps
    assert many == few
    assert many[0] == many[1]
    assert many[0]["put"] == {"shard": 1, "receipt": 1}
    assert (many[0]["create"], many[0]["list"]) == ({"manifest": 1}, lists)
    assert many_first["get"]["manifest"] <= MANY + 2
    assert {verb: kinds for verb, kinds in many_first.items() if verb != "get"} == {
        verb: kinds for verb, kinds in few_first.items() if verb != "get"
    }


def test_a_first_save_is_acknowledged_before_policies_read_what_is_kept(make_root: Callable[[int], Root]) -> None:
    root = make_root(FEW)
    with root.manager() as manager:
        manager.restore_latest()
        root.asked(lambda: manager.save(FEW + 1).wait())
        assert root.store is not None
        calls = list(root.store.calls)
    before = calls[: calls.index(("list", "lineage/"))]  # the last before it is
    read = [key for verb, key in before if verb == "get" and not key.startswith("lineage/")]
    assert len(read) <= (0 if root.store.is_object_store else 8)  # on a disk the newest few, to choose what to copy


def test_what_is_remembered_of_a_life_does_not_grow_with_its_lineage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten lives of twenty checkpoints each, all kept: a name or two for each of them, not one for each pair."""
    root = Root(1, tmp_path, monkeypatch, on_disk=False)
    assert root.objects is not None
    lineage = [root.first]
    for life in range(2, 12):
        begin = 2 + 20 * (life - 2)
        steps = range(begin, begin + 20)
        multiply_objects(root.objects, root.first, steps, incarnation=life, lineage=lineage)
        lineage += [str(Folder(step, life)) for step in steps]

    def folders_in_memory() -> int:
        gc.collect()
        return sum(isinstance(each, Folder) for each in gc.get_objects())

    before = folders_in_memory()
    with root.manager() as manager:
        manager.restore_latest()
        manager.save(1_000)
        manager.wait()
        held = folders_in_memory() - before
    assert len(lineage) == 201
    assert held < 10 * len(lineage)
