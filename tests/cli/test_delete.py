"""`ckptflow delete`: what was asked for and nothing else, all or none, and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.deletion import deletion_of
from ckptflow.commit.prune import prune_by_hand
from ckptflow.errors import CheckpointNotFoundError, UsageError
from ckptflow.format.layout import Folder, pin_key
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore
from tests.cli.runner import Runner
from tests.commit.roots import damage, folders, job
from tests.roots import Life


def there(root: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file())


def test_it_shows_a_plan_and_deletes_nothing(runner: Runner, root: str) -> None:
    before = there(root)
    ran = runner("delete", root, "--step", "100")
    assert (ran.code, ran.err) == (0, "")
    assert "1 of 1 would be deleted" in ran.out
    assert "Add --yes" in ran.out
    assert " 200 " not in ran.out
    assert there(root) == before


def test_with_yes_that_goes_and_nothing_else(runner: Runner, root: str) -> None:
    before = there(root)
    ran = runner("delete", root, "--step", "100", "--yes", "--json")
    assert (ran.code, ran.err) == (0, "")
    (folder,) = ran.json["folders"]
    assert (folder["step"], folder["keep"], folder["reason"]) == (100, False, "asked for")
    assert (ran.json["deleted"], ran.json["refused"]) == (True, None)
    assert there(root) == [name for name in before if not name.startswith("000000000100-")]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (("300",), "000000000300-i0001: the newest, from which a restart begins: save another one first"),
        (("100",), "000000000100-i0001: pinned: unpin step 100 first"),
        (("100", "200", "300"), "unpin step 100 first; 000000000300-i0001: the newest"),
    ],
)
def test_what_is_refused_is_named_and_all_stays(runner: Runner, root: str, steps: tuple[str, ...], said: str) -> None:
    runner("pin", root, "--step", "100")
    before = there(root)
    asked = [word for step in steps for word in ("--step", step)]
    ran = runner("delete", root, *asked)
    assert ran.code == 0
    assert f"Now it would be refused: {said}"[:60] in ran.out.replace("\n", " ") or said in ran.out
    assert said in runner("delete", root, *asked, "--json").json["refused"]
    ran = runner("delete", root, *asked, "--yes")
    assert (ran.code, ran.out) == (2, "")
    assert "nothing was deleted" in ran.err
    assert said in ran.err
    assert there(root) == before


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_a_step_that_is_not_there(runner: Runner, root: str, yes: tuple[str, ...]) -> None:
    before = there(root)
    ran = runner("delete", root, "--step", "100", "--step", "150", *yes)
    assert (ran.code, ran.out) == (1, "")
    assert "no checkpoint of step 150 is here; there are steps 100, 200, 300" in ran.err
    assert there(root) == before


def test_nothing_goes_while_a_start_is_under_way_or_the_newest_is_damaged(runner: Runner, root: str) -> None:
    shard = min(Path(root, "000000000300-i0001").glob("shard-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    ran = runner("delete", root, "--step", "100", "--yes")
    assert ran.code == 2
    assert "the newest checkpoint, is damaged" in ran.err
    shard.write_bytes(data)
    Life(open_store(root))
    ran = runner("delete", root, "--step", "100", "--yes")
    assert ran.code == 2
    assert "incarnation 2 has started" in ran.err
    assert len(runner("ls", root, "--json").json["checkpoints"]) == 3


@pytest.mark.parametrize("name", ["manifest", "shard"])
def test_what_is_damaged_may_go(name: str) -> None:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)
    damage(store, str(Folder(2, 1)), name)
    prune_by_hand(store, Summaries(store), deletion_of("x", [2]))
    assert folders(store) == [str(Folder(1, 1)), str(Folder(3, 1))]


def test_what_is_superseded_goes_if_nothing_current_has_its_step() -> None:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)
    rolled_back = job(store, step=1)  # saves 1 again: 2 and 3 are cut off, and what was saved first at 1 counts
    assert rolled_back.coordinator is not None
    rolled_back.coordinator.prune = lambda: None  # type: ignore[method-assign]
    rolled_back.save(2)
    old = [str(Folder(1, 1)), str(Folder(2, 1)), str(Folder(3, 1))]
    new = [str(Folder(1, 2)), str(Folder(2, 2))]
    assert folders(store) == sorted(old + new)
    prune_by_hand(store, Summaries(store), deletion_of("x", [3]))
    assert folders(store) == sorted([*old[:2], *new])
    with pytest.raises(UsageError, match="000000000002-i0002: the newest"):
        prune_by_hand(store, Summaries(store), deletion_of("x", [2]))
    prune_by_hand(store, Summaries(store), deletion_of("x", [1]))  # both count: the older would be step 1 otherwise
    assert folders(store) == [old[1], new[1]]


def test_what_was_never_committed() -> None:
    store = MemoryStore()
    job(store).save(1)
    job(store).save(3)
    for folder in (Folder(2, 1), Folder(4, 2)):
        store.objects[folder.key("shard-00000-of-00001-0000.safetensors")] = b"of a crash, or under way"
    with pytest.raises(UsageError, match="000000000004-i0002: not committed yet"):
        prune_by_hand(store, Summaries(store), deletion_of("x", [2, 4]))
    prune_by_hand(store, Summaries(store), deletion_of("x", [2]))
    assert not [key for key in store.objects if key.startswith("000000000002")]


def test_what_is_pinned_while_the_newest_is_read_stays() -> None:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)

    def pins(store: Store, folder: Folder) -> None:
        store.create(pin_key(Folder(2, 1)), memoryview(b"pinned\n"))

    with pytest.raises(UsageError, match="000000000002-i0001: pinned"):
        prune_by_hand(store, Summaries(store), deletion_of("x", [1, 2]), pins)
    assert len(folders(store)) == 3


def test_of_an_empty_root_nothing_can_be_deleted(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        prune_by_hand(MemoryStore(), Summaries(MemoryStore()), deletion_of("x", [1]))
    assert runner("delete", f"{tmp_path}/none", "--step", "1", "--yes").code == 1
    assert not os.path.exists(f"{tmp_path}/none")
