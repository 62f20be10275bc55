"""A callback that is given a URL: it makes its own manager, and keeps it for the model of its first fit."""

from __future__ import annotations

import copy
import gc
import json
import logging
import sys
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointCallback, CheckpointManager, StateMismatchError, UsageError
from ckptflow.storage.wrappers import StoreWrapper
from tests.callbacks.jobs import keras_of
from tests.callbacks.test_fit import Failing, Interrupt
from tests.manager.states import wrap_store
from tests.processes import run_python, run_workers
from tests.waiting import HANG_S, until

ROWS, BATCHES = np.arange(32, dtype=np.float32).reshape(8, 4), 4


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


def make_model(keras: Any, units: int = 1) -> Any:
    keras.utils.set_random_seed(11)
    model = keras.Sequential([keras.layers.Dense(units)])  # not built: fit builds it, or the checkpoint does
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), "mse")
    return model


def fit(keras: Any, model: Any, callback: Any, epochs: int = 1, *, fails_at: int = -1, **arguments: Any) -> int:
    """Trains, and returns how many batches it were."""
    seen = []

    def note(batch: int, logs: Any) -> None:
        seen.append(batch)
        if len(seen) == fails_at:
            raise Interrupt

    data = tf.data.Dataset.from_tensor_slices((ROWS, ROWS[:, :1])).batch(len(ROWS) // BATCHES)
    callbacks = [callback, keras.callbacks.LambdaCallback(on_train_batch_end=note)]
    model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, **arguments)
    return len(seen)


def each_epoch(root: Path, **arguments: Any) -> CheckpointCallback:
    return CheckpointCallback(root, every_epochs=1, **arguments)


def steps(root: Path) -> list[int]:
    return [found.step for found in ckptflow.list_checkpoints(root)]


def weights(model: Any) -> list[Any]:
    return [np.asarray(weight).tolist() for weight in model.get_weights()]


def run() -> None:
    """A script that closes nothing: KERAS ROOT EPOCHS…, a fit for each. Prints what was trained, and told."""
    family, root, *epochs = sys.argv[1:]
    keras, told = keras_of(family == "tf_keras"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: told.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.name == "ckptflow")  # not events, which have loggers of their own
    logging.getLogger("ckptflow").addHandler(handler)
    logging.getLogger("ckptflow").setLevel(logging.INFO)
    model, callback = make_model(keras), each_epoch(Path(root))
    batches = [fit(keras, model, callback, int(each)) for each in epochs]
    print(json.dumps([batches, told, int(model.optimizer.iterations)]))


def test_a_script_that_is_run_again_goes_on_and_says_from_where(keras: Any, tmp_path: Path) -> None:
    """Runs of two epochs, of three, of three again, and of two fits."""
    script = ["-c", "from tests.callbacks.test_url import run; run()", keras.__name__, str(tmp_path)]
    told = []
    for epochs, batches in (("2", [8]), ("3", [4]), ("3", [0]), ("3 1", [0, 4]), ("3 1", [0, 0])):
        done = run_python(*script, *epochs.split())
        assert done.returncode == 0, done.stderr
        trained, lines, steps_done = json.loads(done.stdout.splitlines()[-1])
        assert trained == batches
        told.append(lines)
    assert steps_done == 4 * BATCHES
    assert steps(tmp_path) == [4, 8, 12, 16]
    found = {each.step: f"step {each.step}, {each.url}" for each in ckptflow.list_checkpoints(tmp_path)}
    nothing = "nothing to do. Raise epochs= to go on"
    assert told == [
        [f"INFO {tmp_path}: no checkpoint is here, starting anew"],
        [f"INFO fit resumes in epoch 3 after batch 0 ({found[8]})"],
        [f"INFO fit: no epoch is left to train of epochs=3 ({found[12]}); {nothing}"],
        [f"INFO fit: no epoch is left to train of epochs=3 ({found[12]}); {nothing}"],
        [
            f"INFO fit 1 was trained before (fit 2: {found[16]}); nothing to do",
            f"INFO fit: no epoch is left to train of epochs=1 ({found[16]}); {nothing}",
        ],
    ]


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "dropped"])
def test_a_root_to_which_another_model_was_fitted_is_refused(keras: Any, tmp_path: Path, is_kept: bool) -> None:
    """Folds, or a search: the second model would silently get the first one's weights, and train nothing."""
    first = make_model(keras), each_epoch(tmp_path)
    fit(keras, *first)
    kept = first if is_kept else ()
    del first
    gc.collect()
    model = make_model(keras)
    model.build((None, 4))
    before, callback = weights(model), each_epoch(tmp_path)
    with pytest.raises(UsageError, match=r"fitted another model to this root.*a root of its own.*close\(\)"):
        fit(keras, model, callback)
    assert weights(model) == before
    assert callback.manager is None
    assert len(kept) == (2 if is_kept else 0)
    assert fit(keras, model, each_epoch(tmp_path / "other")) == BATCHES


def test_a_closed_callbacks_run_goes_on_with_a_model_built_anew(
    keras: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of which a warning tells, also where nothing is left to train."""
    first = each_epoch(tmp_path)
    fit(keras, make_model(keras), first)
    first.close()
    assert "another model" not in caplog.text
    assert fit(keras, make_model(keras), each_epoch(tmp_path)) == 0
    (told,) = (each for each in caplog.records if "another model" in each.message)
    assert told.levelname == "WARNING"
    assert told.message.endswith(
        "this process has fitted another model to this root, and this model goes on from its step 4"
    )


@pytest.mark.parametrize("typed", ["{}/", "file://{}", "{}/../run", "{}-link", "file://{}-link/"])
def test_a_root_is_the_same_however_its_url_is_typed(keras: Any, tmp_path: Path, typed: str) -> None:
    model, root = make_model(keras), tmp_path / "run"
    fit(keras, model, each_epoch(root))
    root.with_name("run-link").symlink_to(root)
    for fitted, why in ((model, "make one callback, and give it to each fit"), (make_model(keras), "another model")):
        with pytest.raises(UsageError, match=why):
            fit(keras, fitted, CheckpointCallback(typed.format(root), every_epochs=1))


@pytest.mark.parametrize("typed", ["{}/", "{}-link"])
def test_a_fit_inside_a_fit_cannot_use_the_same_root(keras: Any, tmp_path: Path, typed: str) -> None:
    tmp_path.with_name(f"{tmp_path.name}-link").symlink_to(tmp_path)
    inner = CheckpointCallback(typed.format(tmp_path), every_epochs=1)
    nested = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: fit(keras, make_model(keras), inner))
    model = make_model(keras)
    with pytest.raises(UsageError, match="a fit inside a fit cannot use the same"):
        model.fit(ROWS, ROWS[:, :1], verbose=0, callbacks=[each_epoch(tmp_path), nested])


def test_a_second_fit_goes_on_with_what_the_script_has_set(keras: Any, tmp_path: Path) -> None:
    """As with a manager of one's own: nothing is restored between two fits of one model."""
    found = []
    for name in ("manager", "url"):
        model = make_model(keras)
        given = CheckpointManager(tmp_path / name, {"model": model}) if name == "manager" else tmp_path / name
        callback = CheckpointCallback(given, every_epochs=1)
        assert fit(keras, model, callback, 2) == 2 * BATCHES
        model.set_weights([np.ones_like(weight) for weight in model.get_weights()])
        model.optimizer.learning_rate = 1e-5
        manager = callback.manager
        assert fit(keras, model, callback, 2) == 2 * BATCHES
        assert callback.manager is manager
        assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(1e-5)
        found.append(weights(model))
        assert manager is not None
        manager.close()
    assert found[0] == found[1]
    assert steps(tmp_path / "manager") == steps(tmp_path / "url") == [4, 8, 12, 16]


def test_fits_are_counted_and_a_restart_goes_on_in_the_one_under_way(keras: Any, tmp_path: Path) -> None:
    model, callback = make_model(keras), each_epoch(tmp_path)
    assert fit(keras, model, callback, 1) == BATCHES
    with pytest.raises(Interrupt):
        fit(keras, model, callback, 2, fails_at=BATCHES + 1)
    callback.close()  # the save under way is committed, as at the end of a process
    model, callback = make_model(keras), each_epoch(tmp_path)
    assert [fit(keras, model, callback, epochs) for epochs in (1, 2)] == [0, BATCHES]
    assert fit(keras, model, callback, 1) == BATCHES  # a third one
    assert steps(tmp_path) == [4, 8, 12, 16]


def test_after_an_exception_the_same_fit_goes_on(keras: Any, tmp_path: Path) -> None:
    """With the same callback, and with a new one, as a cell of a notebook makes when it is run again."""
    for name, is_same in (("same", True), ("new", False)):
        model = make_model(keras)
        callback = CheckpointCallback(tmp_path / name, every_steps=2)
        with pytest.raises(Interrupt):
            fit(keras, model, callback, 2, fails_at=5)
        manager = callback.manager
        again = callback if is_same else CheckpointCallback(tmp_path / name, every_steps=2)
        assert fit(keras, model, again, 2) == 4  # from step 4 on
        assert (again.manager is manager) == is_same
        assert int(model.optimizer.iterations) == 2 * BATCHES


class Held(StoreWrapper):
    """Writes no shard of step 4 until it is told to."""

    go = threading.Event()

    def put(self, key: str, data: Any) -> str | None:
        if key.startswith("000000000004") and "shard" in key:
            assert self.go.wait(HANG_S)
        return super().put(key, data)


def test_a_new_callback_waits_for_the_save_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The save is let go once this thread waits for it: else it would be fenced, and the fit go on from step 2."""
    keras, main = keras_of(False), threading.get_ident()
    stores = wrap_store(monkeypatch, Held)
    Held.go.clear()

    def waits() -> bool:
        frame = sys._current_frames().get(main)
        return any(each.f_code.co_name == "settle" for each, _ in traceback.walk_stack(frame))

    def let_go() -> None:
        until(waits, HANG_S)
        Held.go.set()

    model, callback = make_model(keras), CheckpointCallback(tmp_path, every_steps=2)
    with pytest.raises(Interrupt):
        fit(keras, model, callback, 2, fails_at=5)
    thread = threading.Thread(target=let_go)
    thread.start()
    assert fit(keras, model, CheckpointCallback(tmp_path, every_steps=2), 2) == 4
    thread.join()
    assert len(stores) == 2
    assert "another copy" not in caplog.text


def test_a_model_compiled_again_is_told_to_take_another_root(keras: Any, tmp_path: Path) -> None:
    model, callback = make_model(keras), each_epoch(tmp_path)
    fit(keras, model, callback)
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    with pytest.raises(UsageError, match=r"is at step 0, the manager at step 4.*a root each"):
        fit(keras, model, callback)
    assert steps(tmp_path) == [4]


def test_another_model_is_refused_and_stays_as_it_is(keras: Any, tmp_path: Path) -> None:
    model, callback = make_model(keras), each_epoch(tmp_path)
    fit(keras, model, callback)
    another = keras.models.clone_model(model)
    another.build((None, 4))
    another.compile("sgd", "mse")
    before = weights(another)
    with pytest.raises(UsageError, match="another model: make a callback for each"):
        fit(keras, another, callback)
    assert weights(another) == before
    assert fit(keras, model, callback) == BATCHES


def test_a_new_callback_on_a_fitted_models_root_is_refused(keras: Any, tmp_path: Path) -> None:
    """It would restore over what was set since, and its fit would count as the first, which is complete."""
    model = make_model(keras)
    fit(keras, model, each_epoch(tmp_path))
    changed = [np.ones_like(weight) for weight in model.get_weights()]
    model.set_weights(changed)
    callback = each_epoch(tmp_path)
    with pytest.raises(UsageError, match="make one callback, and give it to each fit"):
        fit(keras, model, callback)
    assert callback.manager is None
    assert weights(model) == [weight.tolist() for weight in changed]
    assert fit(keras, model, each_epoch(tmp_path / "other")) == BATCHES


def test_evaluate_and_predict_do_nothing(keras: Any, tmp_path: Path) -> None:
    model, callback = make_model(keras), each_epoch(tmp_path)
    for _ in range(2):
        model.evaluate(ROWS, ROWS[:, :1], verbose=0, callbacks=[callback])
        model.predict(ROWS, verbose=0, callbacks=[callback])
        if callback.manager is None:
            assert list(tmp_path.iterdir()) == []
            fit(keras, model, callback, validation_data=(ROWS, ROWS[:, :1]))
    other = make_model(keras, units=2)
    other.predict(ROWS, verbose=0, callbacks=[callback])
    assert fit(keras, model, callback) == BATCHES
    assert steps(tmp_path) == [4, 8]


def test_a_fit_that_cannot_begin_leaves_nothing_open(keras: Any, tmp_path: Path) -> None:
    first = each_epoch(tmp_path)
    fit(keras, make_model(keras, units=1), first)
    first.close()
    callback, other = each_epoch(tmp_path), make_model(keras, units=3)
    other.build((None, 4))
    with pytest.raises(StateMismatchError) as caught:
        fit(keras, other, callback, 2)
    assert callback.manager is None
    assert fit(keras, make_model(keras), callback, 2) == BATCHES
    assert "make a CheckpointManager, call its restore_latest(partial=True)" in caught.value.__notes__[0]


def test_a_failed_save_is_raised_and_the_fit_is_begun_again(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = wrap_store(monkeypatch, Failing)
    model, callback = make_model(keras), each_epoch(tmp_path)
    fit(keras, model, callback)
    stores[0].fails = True
    with pytest.raises(ckptflow.SaveFailedError, match="503 from the test"):
        fit(keras, model, callback)
    stores[0].fails = False
    assert fit(keras, model, callback) == BATCHES
    stores[0].fails = True
    with pytest.raises(Interrupt):
        fit(keras, model, callback, 2, fails_at=BATCHES + 1)
    with pytest.raises(ckptflow.SaveFailedError, match="503 from the test"):
        callback.close()
    with pytest.raises(UsageError, match="was closed; make another"):
        fit(keras, model, callback)


def test_the_strategy_is_the_models_and_what_is_given_is_the_managers(keras: Any, tmp_path: Path) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = make_model(keras)
    callback = each_epoch(tmp_path, keep=2, storage_options={"stall_timeout_s": 7})
    assert fit(keras, model, callback, 4) == 4 * BATCHES
    assert callback.manager is not None
    assert callback.manager.session.cluster.strategy is strategy
    assert steps(tmp_path) == [12, 16]


def test_a_callback_that_is_dropped_keeps_no_model(keras: Any, tmp_path: Path) -> None:
    def fit_and_drop() -> weakref.ref[Any]:
        model, callback = make_model(keras), each_epoch(tmp_path)
        fit(keras, model, callback)
        return weakref.ref(callback.manager)

    manager = fit_and_drop()
    gc.collect()
    assert manager() is None


def test_what_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}) as manager:
        folder = manager.save(1).result().url
        with ckptflow.PreemptionWatcher(manager) as watcher, pytest.raises(ValueError, match="with that manager"):
            CheckpointCallback(tmp_path, every_steps=1, watcher=watcher)
        with pytest.raises(ValueError, match="give them to the manager"):
            CheckpointCallback(manager, every_steps=1, keep=3)
        callback = CheckpointCallback(manager, every_steps=1)
        callback.close()
        assert callback.manager is manager
        assert not manager.session.calls.is_closed
    with pytest.raises(UsageError, match="one checkpoint's folder"):
        CheckpointCallback(folder, every_steps=1)
    with pytest.raises(ValueError, match="keep: 'all'"):
        CheckpointCallback(tmp_path, every_steps=1, keep=["all"])  # type: ignore[list-item]
    callback = CheckpointCallback("s3://key:secret@bucket/run", every_steps=5)
    assert "secret" not in repr(callback)
    assert repr(callback).endswith(", every_steps=5)")
    with pytest.raises(UsageError, match="no fit has begun"):
        callback.on_epoch_end(0)
    with pytest.raises(UsageError, match="cannot be copied"):
        copy.deepcopy(callback)


def test_a_callback_that_was_closed_before_its_first_fit_stays_closed(keras: Any, tmp_path: Path) -> None:
    callback = each_epoch(tmp_path)
    callback.close()
    with pytest.raises(UsageError, match="was closed; make another one"):
        fit(keras, make_model(keras), callback)
    assert list(tmp_path.iterdir()) == []


ENDS = """
import sys
import numpy as np, keras, ckptflow
class Raise(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise {error}
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
callbacks = [ckptflow.CheckpointCallback(sys.argv[1], every_steps=2), Raise()]
model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=2, verbose=0, callbacks=callbacks)
"""


@pytest.mark.parametrize(
    ("error", "code"), [("ValueError('mine')", 1), ("KeyboardInterrupt", -2), ("SystemExit(3)", 3)]
)
def test_a_process_that_ends_by_an_exception_ends_and_has_saved(tmp_path: Path, error: str, code: int) -> None:
    done = run_python("-c", ENDS.format(error=error), str(tmp_path))
    assert done.returncode == code, done.stderr
    assert steps(tmp_path) == [2]


def test_workers_that_close_nothing(tmp_path: Path) -> None:
    """Two fits, a change between them on all, and the end of each process as soon as it can: no worker hears of it."""
    run_workers("tests.callbacks.url_workers:main", 2, env={"ROOT": str(tmp_path)})
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text() == "4 4"
    assert steps(tmp_path / "run") == [4, 8]
