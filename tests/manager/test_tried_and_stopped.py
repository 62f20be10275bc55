"""What a restore does where the trial of a trackable or an iterator is stopped, or cannot be undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, StateMismatchError, UsageError
from tests.manager.refusing import Iterators, Kind, restored, saved
from tests.manager.states import Weights


class Told(tf.train.experimental.PythonState):  # type: ignore[misc]
    """A number. `fail` is called before the number is taken over, with which call of `deserialize` it is."""

    def __init__(self, number: int, fail: Callable[[int], object] = lambda call: None) -> None:
        self.number, self.fail, self.calls = number, fail, 0

    def serialize(self) -> str:
        return str(self.number)

    def deserialize(self, text: Any) -> None:
        self.calls += 1
        self.fail(self.calls)
        self.number = int(text)


def failing(**errors: BaseException) -> Callable[[int], object]:
    """What fails in some calls: `first`, `second`, `third`, or `later` in all after the first."""

    def fail(call: int) -> None:
        name = {1: "first", 2: "second", 3: "third"}.get(call, "later")
        error = errors.get(name) or (errors.get("later") if call > 1 else None)
        if error is not None:
            raise error

    return fail


STOPS: dict[str, BaseException] = {"Ctrl-C": KeyboardInterrupt("stop"), "exit": SystemExit(3)}
SCARCE: dict[str, Exception] = {
    "Python": MemoryError("scarce"),
    "TensorFlow": tf.errors.ResourceExhaustedError(None, None, "scarce"),
}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_while_it_is_put_back_leaves_a_mixture_that_is_not_saved(tmp_path: Path, stop: str, fits: bool) -> None:
    saved(tmp_path, Told(3))
    errors = {"second": STOPS[stop]} if fits else {"first": KeyError("no"), "second": STOPS[stop]}
    obj = Told(7, failing(**errors))
    with CheckpointManager(tmp_path, {"w": Weights(), "obj": obj}) as manager:
        with pytest.raises(type(STOPS[stop]), match=r"stop|3"):
            manager.restore_latest()
        with pytest.raises(UsageError, match="mixture"):
            manager.save(10)
        assert manager.restore_latest() is not None
        assert obj.number == 3
        manager.save(10).result()


def test_a_stop_while_an_iterator_is_put_back_leaves_a_mixture_that_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, iter(tf.data.Dataset.range(5)))
    iterator = Iterators(monkeypatch, lambda number: number == 1, KeyboardInterrupt()).iterator
    with CheckpointManager(tmp_path, {"w": Weights(), "obj": iterator}) as manager:
        with pytest.raises(KeyboardInterrupt):
            manager.restore_latest()
        with pytest.raises(UsageError, match="mixture"):
            manager.save(10)


def test_what_a_rehearsal_put_back_is_no_mixture_unless_it_was_one_before(tmp_path: Path) -> None:
    told, kind = Told(3), Kind("a", 1)
    with CheckpointManager(tmp_path, {"w": Weights(), "obj": told, "other": kind}) as manager:
        manager.save(1).result()
        told.number, kind.kind = 7, "b"
        with pytest.raises(StateMismatchError, match="no value was changed"):
            manager.restore(1)
        assert told.number == 7
        manager.save(2).result()
        told.calls, told.fail = 0, failing(second=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            manager.restore(1)
        with pytest.raises(StateMismatchError, match="other: ValueError: another kind"):
            manager.restore(1)
        with pytest.raises(UsageError, match="mixture"):
            manager.save(3)


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_stays_one_where_nothing_can_be_put_back(tmp_path: Path, stop: str) -> None:
    saved(tmp_path, Told(3))
    obj = Told(7, failing(first=STOPS[stop], second=KeyError("no state of mine")))
    with pytest.raises(type(STOPS[stop]), match=r"stop|3"):
        restored(tmp_path, obj)
    assert obj.calls == 2


def test_a_stop_of_an_iterator_stays_one_where_nothing_can_be_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, iter(tf.data.Dataset.range(5)))
    iterator = Iterators(monkeypatch, lambda number: number < 2, KeyboardInterrupt(), RuntimeError("no")).iterator
    with pytest.raises(KeyboardInterrupt):
        restored(tmp_path, iterator)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("kind", SCARCE)
def test_memory_that_does_not_suffice_is_no_misfit(tmp_path: Path, kind: str, partial: bool) -> None:
    saved(tmp_path, Told(3))
    obj = Told(7, failing(first=SCARCE[kind]))
    with pytest.raises(UsageError, match=r"obj takes .*not enough memory"):
        restored(tmp_path, obj, partial=partial)
    assert obj.number == 7


@pytest.mark.parametrize("kind", SCARCE)
def test_memory_that_does_not_suffice_for_an_iterator_is_no_misfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    saved(tmp_path, iter(tf.data.Dataset.range(5)))
    iterator = Iterators(monkeypatch, lambda number: number == 0, SCARCE[kind]).iterator
    next(iterator)
    with pytest.raises(UsageError, match=r"obj takes .*not enough memory"):
        restored(tmp_path, iterator)
    assert int(next(iterator)) == 1


@pytest.mark.parametrize("partial", [False, True])
def test_a_trackable_that_can_be_written_once_is_restored(tmp_path: Path, partial: bool) -> None:
    saved(tmp_path, Told(3))
    obj = Told(7, failing(later=RuntimeError("already opened")))
    assert restored(tmp_path, obj, partial=partial).value() == 1
    assert obj.number == 3


class Torn(Told):
    """Takes a part of what it then refuses: what is accepted has to be written once more."""

    def deserialize(self, text: Any) -> None:
        self.calls += 1
        self.number = int(text)
        self.fail(self.calls)


@pytest.mark.parametrize("partial", [False, True])
def test_a_trackable_that_was_half_put_back_is_restored(tmp_path: Path, partial: bool) -> None:
    saved(tmp_path, Torn(3))
    obj = Torn(7, failing(second=KeyError("no")))
    restored(tmp_path, obj, partial=partial)
    assert obj.number == 3


@pytest.mark.parametrize("partial", [False, True])
def test_a_trackable_that_has_no_state_to_go_back_to_is_not_said_to_be_left(
    tmp_path: Path, partial: bool, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, Torn(3))
    obj = Torn(7, failing(second=KeyError("no"), third=KeyError("not again")))
    with CheckpointManager(tmp_path, {"w": Weights(), "obj": obj}) as manager:
        with pytest.raises(StateMismatchError, match=r"over a second time \(its previous state cannot .*again"):
            manager.restore_latest(partial=partial)
        with pytest.raises(UsageError, match="mixture"):
            manager.save(10)
    assert "left as it was" not in caplog.text
