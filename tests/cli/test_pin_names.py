"""Names of pins: shown, moved and removed; no rule of retention goes by them."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptflow
from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.listing import list_pins
from ckptflow.commit.pins import pin_checkpoint, unpin_checkpoint, unpin_name
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import CheckpointNotFoundError, StorageAccessError
from ckptflow.format.layout import Folder, check_pin_name, parse_pin_name_key, pin_key, pin_name_key
from ckptflow.testing import MemoryStore
from tests.cli.runner import Runner
from tests.commit.roots import folders, job

FIRST, SECOND = Folder(1, 1), Folder(2, 1)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)
    return store


def names(store: MemoryStore) -> dict[int, tuple[str, ...]]:
    return {folder.step: names for folder, names in list_root(store).pin_names.items()}


def test_the_command(runner: Runner, root: str) -> None:
    ran = runner("pin", root, "--step", "100", "--name", "release")
    assert (ran.code, ran.out) == (0, f"{root}: pinned step 100 as release\n")
    runner("pin", root, "--step", "100", "--name", "paper-v1.0")
    rows = runner("ls", root, "--json").json["checkpoints"]
    assert [(row["pinned"], row["pin_names"]) for row in rows] == [
        (True, ["paper-v1.0", "release"]),
        (False, []),
        (False, []),
    ]
    assert "current, pinned as paper-v1.0, release" in runner("ls", root).out
    shown = runner("show", root, "--step", "100", "--json").json
    assert (shown["pinned"], shown["pin_names"]) == (True, ["paper-v1.0", "release"])
    assert "pinned as paper-v1.0, release" in runner("show", root, "--step", "100").out
    shown = runner("show", root, "--json").json
    assert (shown["pinned"], shown["pin_names"]) == (False, [])
    assert "pinned" not in runner("show", root).out

    told = runner("pin", root, "--step", "200", "--name", "release", "--json").json
    assert told == {"url": root, "step": 200, "pinned": True, "name": "release", "moved_from": [100]}
    ran = runner("pin", root, "--step", "100", "--name", "release")
    assert "release was the name of step 200, which is still pinned: unpin --step 200 to change that" in ran.out

    told = runner("unpin", root, "--name", "release", "--json").json
    assert told == {"url": root, "steps": [100], "pinned": True, "name": "release"}
    told = runner("unpin", root, "--name", "paper-v1.0").out
    assert told == f"{root}: removed the name paper-v1.0\nstep 100 is still pinned; unpin --step 100 to change that\n"
    ran = runner("unpin", root, "--name", "release")
    assert (ran.code, ran.out) == (1, "")
    assert "no pin has the name 'release'; no pin here has a name" in ran.err
    assert [row["pinned"] for row in runner("ls", root, "--json").json["checkpoints"]] == [True, True, False]
    assert runner("unpin", root, "--step", "100").out == f"{root}: unpinned step 100\n"


def test_show_where_pins_cannot_be_listed(runner: Runner, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageAccessError("no listing for you")

    monkeypatch.setattr("ckptflow.reading.list_pin_names", refuse)
    ran = runner("show", f"{root}/000000000100-i0001", "--json")
    assert (ran.code, ran.json["pinned"], ran.json["pin_names"]) == (0, None, [])


@pytest.mark.parametrize("args", [(), ("--step", "100", "--name", "x")])
def test_unpin_wants_one_of_both(runner: Runner, root: str, args: tuple[str, ...]) -> None:
    ran = runner("unpin", root, *args)
    assert ran.code == 2
    assert "one of the two" in ran.err


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\nb", "\x1b[2J", "ä", "-x", ".x", "a=b", "x" * 101])
def test_what_can_be_no_name_is_refused(runner: Runner, root: str, name: str) -> None:
    with pytest.raises(ValueError, match="the name of a pin has"):
        check_pin_name(name)
    ran = runner("pin", root, "--step", "100", f"--name={name}")
    assert (ran.code, ran.out) == (2, "")
    assert "the name of a pin has 1 to 100" in ran.err
    assert not list(Path(root).glob("pins/*"))
    assert parse_pin_name_key(f"pins/{FIRST}={name}") is None


def test_keys() -> None:
    assert pin_name_key(FIRST, "a.b") == f"pins/{FIRST}=a.b"
    assert parse_pin_name_key(f"pins/{FIRST}=a.b") == (FIRST, "a.b")
    for key in (f"pins/{FIRST}", f"pins/{FIRST}=", "pins/x=a", f"{FIRST}=a", f"pins/{FIRST}=a=b", "pins/1-i1=a"):
        assert parse_pin_name_key(key) is None


def test_unpin_takes_the_names_with_the_pin(store: MemoryStore) -> None:
    for name in ("b", "a"):
        pin_checkpoint(store, Summaries(store), 1, name)
    assert names(store) == {1: ("a", "b")}
    unpin_checkpoint(store, 1)
    assert not [key for key in store.objects if key.startswith("pins/")]


def test_a_name_alone_keeps_nothing(store: MemoryStore) -> None:
    """As an older ckptflow leaves it, which unpins and knows no names."""
    pin_checkpoint(store, Summaries(store), 1, "release")
    pin_checkpoint(store, Summaries(store), 2, "best")
    del store.objects[pin_key(FIRST)]
    assert list_pins(store) == {SECOND}
    assert names(store) == {2: ("best",)}
    with pytest.raises(CheckpointNotFoundError, match="no pin has the name 'release'; the names here are best"):
        unpin_name(store, "release")
    prune_by_hand(store, Summaries(store), [KeepLast(1)])
    assert folders(store) == [str(SECOND), str(Folder(3, 1))]


def left_behind(store: MemoryStore) -> None:
    """The name "release" of step 1 without its pin."""
    pin_checkpoint(store, Summaries(store), 1, "release")
    del store.objects[pin_key(FIRST)]


def test_a_name_without_its_pin_does_not_come_back(store: MemoryStore) -> None:
    left_behind(store)
    pin_checkpoint(store, Summaries(store), 1)
    assert names(store) == {1: ()}


def test_a_name_is_taken_from_what_is_not_pinned_any_more(store: MemoryStore) -> None:
    left_behind(store)
    assert pin_checkpoint(store, Summaries(store), 2, "release") == []
    assert pin_name_key(FIRST, "release") not in store.objects
    store.objects[pin_key(FIRST)] = b""  # by an older ckptflow
    assert names(store) == {1: (), 2: ("release",)}


@pytest.mark.parametrize("removed", ["by step", "by name"])
def test_what_is_removed_leaves_no_name_behind(store: MemoryStore, removed: str) -> None:
    left_behind(store)
    if removed == "by step":
        unpin_checkpoint(store, 1)
    else:
        pin_checkpoint(store, Summaries(store), 2)
        with pytest.raises(CheckpointNotFoundError):
            unpin_name(store, "release")
    assert pin_name_key(FIRST, "release") not in store.objects


def test_removing_a_name_removes_no_pin(store: MemoryStore) -> None:
    pin_checkpoint(store, Summaries(store), 1)
    pin_checkpoint(store, Summaries(store), 1, "release")
    assert unpin_name(store, "release") == [1]
    assert names(store) == {1: ()}


def test_of_two_who_give_one_name_at_once_none_loses_it(store: MemoryStore) -> None:
    pin_checkpoint(store, Summaries(store), 2)
    objects = store.objects

    def another(verb: str, key: str) -> None:
        if (verb, key) == ("create", pin_name_key(FIRST, "x")):
            objects[pin_name_key(SECOND, "x")] = b""

    racing = MemoryStore(objects, hook=another)
    assert pin_checkpoint(racing, Summaries(racing), 1, "x") == []
    assert names(store) == {1: ("x",), 2: ("x",)}
    assert unpin_name(store, "x") == [1, 2]
    assert names(store) == {1: (), 2: ()}


def test_the_manager_gives_names(tmp_path: Path) -> None:
    import tensorflow as tf

    with ckptflow.CheckpointManager(tmp_path / "run", {"x": tf.Variable(1.0)}) as manager:
        manager.save(1)
        manager.save(2)
        with pytest.raises(ValueError, match="the name of a pin has"):
            manager.pin(1, "a/b")
        manager.pin(1, "release")
        manager.pin(2, name="release")
    with ckptflow.open_checkpoint(tmp_path / "run", 1) as opened:
        assert opened.pin_names() == ()
    with ckptflow.open_checkpoint(tmp_path / "run", 2) as opened:
        assert opened.pin_names() == ("release",)
