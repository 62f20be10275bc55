"""A restore gives all values of one checkpoint, or says that the state holds a mixture, which is then not saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow import (
    CheckpointGoneError,
    CheckpointManager,
    CorruptCheckpointError,
    PendingCheckpoint,
    StateMismatchError,
    StorageAccessError,
    UsageError,
)
from ckptflow.storage.wrappers import StoreWrapper
from tests.interop.models import without_graph
from tests.manager.states import PlainState, committed, wrap_store
from tests.waiting import HANG_S, until

LENGTH = 60_000  # one such tensor fills most of a shard, so that reading can fail between two of them


class Net(tf.Module):  # type: ignore[misc]
    """Some vectors, each filled with one number."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, tf.Variable(tf.zeros([LENGTH])))

    def fill(self, value: float) -> None:
        for name in self.names:
            getattr(self, name).assign(tf.fill([LENGTH], float(value)))

    def waits_for(self, name: str, value: float) -> Callable[[], None]:
        return lambda: until(lambda: float(getattr(self, name)[0]) == value, HANG_S)

    def values(self) -> dict[str, set[float]]:
        return {name: set(getattr(self, name).numpy().tolist()) for name in self.names}


class Sum(keras.metrics.Metric):  # type: ignore[misc]
    """A metric whose variable is larger, and so read earlier, than all else, and adds a number at each batch."""

    def __init__(self, number: float) -> None:
        super().__init__(name="sum")
        self.number = number
        self.total = self.add_weight(name="total", shape=(LENGTH + 100,), initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(tf.fill([LENGTH + 100], self.number))

    def result(self) -> Any:
        return self.total[0]


def compiled(value: float, *, has_metric: bool = True) -> Any:
    """A compiled model with one vector, trained for one batch: vector and metric are filled with the value."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(LENGTH - 100, use_bias=False, name="body")])
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[Sum(value)] if has_metric else None)
    model.layers[0].kernel.assign(tf.fill([1, LENGTH - 100], value))
    without_graph(model).train_on_batch(np.zeros([1, 1]), np.zeros([1, LENGTH - 100]))
    return model


def of_compiled(model: Any) -> tuple[set[float], set[float]]:
    (metric,) = [metric for metric in model.metrics[1].metrics if isinstance(metric, Sum)]
    return set(model.layers[0].kernel.numpy()[0].tolist()), set(metric.total.numpy().tolist())


def manage(root: Path, state: dict[str, Any], **options: Any) -> CheckpointManager:
    return CheckpointManager(root, state, shard_bytes=2**18, memory_budget_bytes=2**19, **options)


def save(root: Path, step: int, state: dict[str, Any]) -> None:
    with manage(root, state) as manager:
        kept = [[variable.numpy() for variable in obj.variables] for obj in state.values()]
        manager.restore_latest(partial=True)
        for obj, values in zip(state.values(), kept, strict=True):
            for variable, value in zip(obj.variables, values, strict=True):
                variable.assign(value)
        for obj in state.values():
            if isinstance(obj, Net):
                obj.fill(step)
        manager.save(step)


def records(root: Path, step: int) -> Any:
    """What the manifest of the newest checkpoint of a step says of its tensors."""
    return json.loads((max(root.glob(f"{step:012d}-i*")) / "manifest.json").read_bytes())["tensors"]


def place(root: Path, step: int, name: str) -> tuple[Path, int]:
    """The shard, and the byte in it, where what a checkpoint of a step holds of a tensor ends."""
    record = next(record for record in records(root, step) if record["name"] == name)
    piece = record["slices"][-1]
    folder = max(root.glob(f"{step:012d}-i*"))
    shard = json.loads((folder / "manifest.json").read_bytes())["shards"][piece["shard"]]
    return folder / shard["name"], piece["offset"] + 4 * math.prod(piece["shape"]) - 1


def damage(root: Path, step: int, name: str) -> None:
    """Flips a bit of a tensor."""
    path, at = place(root, step, name)
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


class Gate(StoreWrapper):
    """Before the n-th read of a shard, calls `first`, once."""

    count = 0
    at = 1
    path = Path()
    first: Callable[[], object] = staticmethod(lambda: None)

    def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
        if verb == "get" and Path(key).parts[-2:] == self.path.parts[-2:]:
            self.count += 1
            if self.count == self.at:
                self.first()
        return call()


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[Gate]:
    return wrap_store(monkeypatch, Gate)


def arm(gate: Gate, path: Path, first: Callable[[], object], at: int = 1) -> None:
    gate.path, gate.first, gate.at, gate.count = path, first, at, 0


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """Step 10 of a small model, and step 20 of one that has grown."""
    save(tmp_path, 10, {"m": Net("a", "z")})
    save(tmp_path, 20, {"m": Net("a", "new", "z")})
    return tmp_path


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
def test_a_warm_start_leaves_nothing_of_what_was_damaged(grown: Path, read_only: bool) -> None:
    damage(grown, 20, "m/z")
    net = Net("a", "new", "z")
    with manage(grown, {"m": net}, read_only=read_only) as manager:
        restored = manager.restore_latest(partial=True)
        assert restored is not None
        assert restored.step == 10
        assert net.values() == {"a": {10.0}, "new": {0.0}, "z": {10.0}}
        if not read_only:
            manager.save(11)


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
def test_a_mismatch_after_damage_says_that_values_were_changed(grown: Path, gates: list[Gate], read_only: bool) -> None:
    damage(grown, 20, "m/z")
    net = Net("a", "new", "z")
    before = committed(grown)
    with manage(grown, {"m": net}, read_only=read_only) as manager:
        arm(gates[-1], place(grown, 20, "m/z")[0], net.waits_for("a", 20))
        with pytest.raises(StateMismatchError) as caught:
            manager.restore_latest()
        assert "m/new: in the state, not in the checkpoint" in str(caught.value)
        assert "no value was changed" not in str(caught.value)
        assert "mixture" in str(caught.value)
        assert "000000000020-i0002" in str(caught.value)
        with pytest.raises(UsageError):
            manager.save(30)
    assert committed(grown) == before


@pytest.mark.parametrize("damaged", ["model/body/kernel", "model/compile_metrics/user_metrics/0/total"])
@pytest.mark.parametrize("had_metric", [False, True], ids=["without-metric", "with-metric"])
def test_metrics_of_what_was_damaged_are_not_kept(
    tmp_path: Path, gates: list[Gate], had_metric: bool, damaged: str
) -> None:
    """Step 10 may lack the metric. None of step 20 may stay if any of that is damaged."""
    save(tmp_path, 10, {"m": Net("a"), "model": compiled(10.0, has_metric=had_metric)})
    save(tmp_path, 20, {"m": Net("a"), "model": compiled(20.0)})
    damage(tmp_path, 20, damaged)
    net, model = Net("a"), compiled(5.0)
    with manage(tmp_path, {"m": net, "model": model}) as manager:
        if damaged.endswith("kernel"):
            arm(gates[-1], place(tmp_path, 20, damaged)[0], net.waits_for("a", 20))
        restored = manager.restore_latest()
    assert restored is not None
    assert restored.step == 10
    assert net.values() == {"a": {10.0}}
    assert of_compiled(model) == ({10.0}, {10.0 if had_metric else 5.0})


def raises(error: BaseException, after: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        after()
        raise error

    return run


def text_of(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("error", [StorageAccessError("no"), RuntimeError("no"), MemoryError("no")], ids=repr)
def test_no_save_after_a_restore_that_failed_in_the_middle(
    tmp_path: Path, gates: list[Gate], error: Exception, partial: bool
) -> None:
    for step in (10, 20):
        save(tmp_path, step, {"m": Net("a", "z")})
    before = committed(tmp_path)
    net = Net("a", "z")
    with manage(tmp_path, {"m": net}) as manager:
        first = raises(error, net.waits_for("a", 20))
        arm(gates[-1], place(tmp_path, 20, "m/z")[0], first, at=1 + partial)  # a warm start reads twice
        with pytest.raises(type(error)) as caught:
            manager.restore(20, partial=partial)
        assert "mixture" in text_of(caught.value)
        assert net.values() == {"a": {20.0}, "z": {0.0}}
        for _ in range(2):
            with pytest.raises(UsageError, match="mixture") as refused:
                manager.save(30)
        assert "000000000020-i" in str(refused.value)
        assert committed(tmp_path) == before
        manager.restore(20)
        assert net.values() == {"a": {20.0}, "z": {20.0}}
        manager.save(30)
    assert any(name.startswith("000000000030") for name in committed(tmp_path))


def test_an_older_one_that_lacks_what_was_assigned_is_not_taken(grown: Path, gates: list[Gate]) -> None:
    """All bytes of step 20 were verified, and are damaged when they are read again to be assigned."""
    net = Net("a", "new", "z")
    with manage(grown, {"m": net}) as manager:
        path, _ = place(grown, 20, "m/z")
        arm(gates[-1], path, raises(CorruptCheckpointError("worn out"), net.waits_for("new", 20)), at=2)
        with pytest.raises(StateMismatchError, match=r"m/new: has its value of .*/000000000020-i.* already") as caught:
            manager.restore_latest(partial=True)
        assert "mixture" in str(caught.value)
        with pytest.raises(UsageError, match="mixture"):
            manager.save(30)
        assert manager.restore(20, partial=True).step == 20
        assert net.values() == {"a": {20.0}, "new": {20.0}, "z": {20.0}}


def test_what_went_while_it_was_restored_is_no_empty_root(tmp_path: Path, gates: list[Gate]) -> None:
    save(tmp_path, 20, {"m": Net("a", "z")})
    net = Net("a", "z")
    path, _ = place(tmp_path, 20, "m/z")

    def remove() -> None:
        net.waits_for("a", 20)()
        (path.parent / "manifest.json").unlink()
        path.unlink()

    with manage(tmp_path, {"m": net}) as manager:
        arm(gates[-1], path, remove)
        with pytest.raises(CheckpointGoneError, match="mixture"):
            manager.restore_latest()
        with pytest.raises(UsageError, match="mixture"):
            manager.save(1)


class Changed(PlainState):
    """Its state had another form when it was saved."""

    error: type[BaseException] | None = None

    def set_state(self, state: Any) -> None:
        self.seen = "half"
        if self.error is not None:
            raise self.error("not mine")
        super().set_state(state)


def test_python_state_that_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, net = Changed(), Net("a")
    plain.seen = 5
    with manage(tmp_path, {"m": net, "plain": plain}) as manager:
        manager.save(1)
    plain.seen, plain.error = 7, KeyError
    with manage(tmp_path, {"m": net, "plain": plain}) as manager:
        with pytest.raises(
            StateMismatchError, match=r"plain does not take its state of .*KeyError: 'not mine'"
        ) as caught:
            manager.restore_latest()
        assert "mixture" in str(caught.value)
        with pytest.raises(UsageError, match=r"mixture"):
            manager.save(2)
    plain.seen, plain.error = 7, KeyError
    with manage(tmp_path, {"m": net, "plain": plain}) as manager:

        def only_its_own(state: Any) -> None:
            if plain.seen == state["seen"]:
                return
            plain.seen = state["seen"]
            if state["seen"] == 5:
                raise KeyError("not mine")

        plain.set_state = only_its_own  # type: ignore[method-assign]
        assert manager.restore_latest(partial=True) is not None
        assert plain.seen == 7
        assert "plain does not take its state" in caplog.text
        assert isinstance(manager.save(2), PendingCheckpoint)


def test_an_interrupt_in_the_middle(tmp_path: Path) -> None:
    plain, net = Changed(), Net("a")
    with manage(tmp_path, {"m": net, "plain": plain}) as manager:
        manager.save(1)
    plain.error = KeyboardInterrupt
    with manage(tmp_path, {"m": net, "plain": plain}) as manager:
        with pytest.raises(KeyboardInterrupt) as caught:
            manager.restore_latest()
        assert "mixture" in text_of(caught.value)
        with pytest.raises(UsageError, match="mixture"):
            manager.save(2)


def test_a_refusal_before_any_value_changes_is_no_mixture(tmp_path: Path) -> None:
    save(tmp_path, 10, {"m": Net("a")})
    net = Net("a", "new")
    with manage(tmp_path, {"m": net}) as manager:
        with pytest.raises(StateMismatchError, match="no value was changed") as caught:
            manager.restore_latest()
        assert "mixture" not in str(caught.value)
        assert manager.restore_latest(partial=True) is not None
        manager.save(11)
