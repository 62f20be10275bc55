"""The loop of a `fit` that is about to run, of either Keras: where it stands, and how it is made to start elsewhere.

Neither Keras lets a callback say at which batch an epoch begins. But both take their batches from an object with two
generators, and those are replaced here, for this one fit: the new ones begin where the checkpoint was made. Everything
else stays Keras's own: callbacks see the batches' true numbers, the end of the data is found as ever.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ckptflow.callbacks.input import Bytes, Input
from ckptflow.errors import UsageError
from ckptflow.state.kinds import Kind, kind_of
from ckptflow.state.private import keras, tf_keras
from ckptflow.state.private.kerases import callback_lists, fit_above

Counters = Mapping[str, Any]


@dataclass(frozen=True)
class FitStart:
    """Where to begin: the epoch, the batches of it that are done, the loop's counters, the input's own position.

    `is_stopping`: a callback had ended the epoch after that batch.
    """

    epoch: int
    batch: int = 0
    counters: Counters | None = None
    position: Bytes | None = None
    is_stopping: bool = False


class _ReadOnce(int):
    """An epoch's number that is taken off the model once it is read: an exception may come before anything else does.

    Keras reads `self._initial_epoch or initial_epoch`, of whichever fit comes next.
    """

    fit: Any = None

    def __bool__(self) -> bool:
        self.fit.initial_epoch = None
        return int(self) != 0


class Loop(ABC):
    """One fit's loop. `epochs`, `initial_epoch`: its arguments. `is_echo`: the batch under way is one of before."""

    _replaced: tuple[str, str]  # generators of `data`, by their names there

    def __init__(self, model: Any, callbacks: Any, epochs: range, data: Any, source: Input) -> None:
        self.model = model
        self._data = data
        self.callbacks = callbacks
        self.initial_epoch, self.epochs = epochs.start, epochs.stop
        self.is_echo = False
        self._input = source
        self._start = FitStart(epochs.start)
        self._prepare: Callable[[], None] = lambda: None
        self._last_epoch_size: int | None = None
        self._everyone: list[Any] = []  # the callbacks, while there is an echo

    def start_at(self, start: FitStart, prepare: Callable[[], None]) -> None:
        """Called from `on_train_begin`. `prepare` is called before the first batch, where that is inside an epoch."""
        self._start, self._prepare = start, prepare
        self._last_epoch_size = (start.counters or {}).get("last_epoch_size")
        params = getattr(self.callbacks, "params", None)  # a list that the user has made may have none
        if params and params.get("steps") is None and self._last_epoch_size:  # what the progress bar had found out
            self.callbacks.set_params({**params, "steps": self._last_epoch_size})

    def close(self) -> None:
        """Called from `on_train_end`: gives Keras its generators back, and lets go of the input.

        Iterators must not wait for Python's garbage collector: ending one can take as long as it has lived.
        """
        for name in self._replaced:
            vars(self._data).pop(name, None)
        self._input.iterator = None

    @property
    @abstractmethod
    def size(self) -> int | None:
        """The batches in an epoch, where that is known."""

    @property
    @abstractmethod
    def execution(self) -> int:
        """Batches in the execution that has just ended."""

    @abstractmethod
    def trained(self) -> Any:
        """What grows by one with each batch that changes the model, as a tensor: nothing waits for its value."""

    @abstractmethod
    def counters(self, *, between_epochs: bool, ahead: int = 0) -> dict[str, Any]:
        """What `FitStart` needs, as of now; `ahead` batches have not come to their end."""

    @abstractmethod
    def build_metrics(self) -> None:
        """Makes the variables of the model's metrics, which else the first batch makes."""

    def advance(self, last: int) -> int:
        """One more execution ended. Returns how many batches of the epoch are done, `last` being Keras's number."""
        self._input.advance(self.execution)
        return last + 1 if self.size is None else min(last + 1, self.size)

    @property
    def has_run_out(self) -> bool:
        """Whether the input has ended this fit."""
        return False

    def end_epoch(self, batches: int) -> None:
        self._last_epoch_size = batches or self._last_epoch_size

    def position(self, counters: Counters, batch: int) -> Any:
        """The iterator's own position as bytes, none where it has none to give or nothing hangs on it."""
        return self._input.position() if batch or counters["carried"] else tf.zeros([0], tf.uint8)

    @staticmethod
    def _may_be_over(start: FitStart) -> bool:
        """Whether the epoch may have no batches left: only reading tells, whatever size the data are said to have."""
        return bool(start.batch or (start.counters is not None and start.counters["carried"]))

    def _announce_echo(self) -> None:
        """The next turn of the loop trains nothing: so Keras has logs of an epoch which has no batches left.

        Only the progress bar and ours, the last one, hear of it: the others have heard of that batch before.
        """
        everyone = self._everyone = self.callbacks.callbacks
        bars = [item for item in everyone[:-1] if type(item).__name__ == "ProgbarLogger"]
        self.callbacks.callbacks, self.is_echo = [*bars, everyone[-1]], True

    def begin_echo(self) -> None:
        """Called from `on_train_batch_begin` of an echo, right before Keras trains. Nothing is left on the model, even
        where the turn does not end.
        """
        train = self.model.train_function

        def train_nothing(_: Any) -> Any:
            self.model.train_function = train
            try:
                return self.model.get_metrics_result()
            except ValueError:  # of Keras 3, where metrics could not be built: the batches that follow build them
                return {}

        self.model.train_function = train_nothing

    def end_echo(self) -> None:
        """Called from its `on_train_batch_end`."""
        self.callbacks.callbacks, self.is_echo = self._everyone, False


class Keras3Loop(Loop):
    """`keras.Model.fit`: a `TFEpochIterator`, which makes an iterator per epoch, or one for all (`steps_per_epoch`)."""

    _replaced = keras.FitData.batches.name, keras.FitData.make_iterator.name

    def __init__(self, model: Any, callbacks: Any, epochs: range, data: Any) -> None:
        self._inner, self._fit = keras.FitData(data), keras.FitModel(model)
        self._enumerate, self._dataset = self._inner.batches, self._inner.make_iterator
        source = _first_dataset(self._inner.distributed, self._inner.dataset)
        super().__init__(model, callbacks, epochs, data, Input(source, lambda: iter(self._dataset())))
        self._ready: Any = None
        self._seen = 0
        self._inner.batches, self._inner.make_iterator = self._batches, self._next_dataset

    def start_at(self, start: FitStart, prepare: Callable[[], None]) -> None:
        super().start_at(start, prepare)
        self._fit.initial_epoch = epoch = _ReadOnce(start.epoch)  # `fit` reads it next
        epoch.fit = self._fit

    def close(self) -> None:
        super().close()
        self._ready = None

    @property
    def size(self) -> int | None:
        size = self._data.num_batches
        return None if size is None else int(size)

    @property
    def execution(self) -> int:
        return int(self._data.steps_per_execution)

    def trained(self) -> Any:
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        return tf.convert_to_tensor(getattr(optimizer, keras.ITERATIONS))  # the public one counts what is accumulated

    def counters(self, *, between_epochs: bool, ahead: int = 0) -> dict[str, Any]:
        data = self._inner
        carried = data.iterator if self._data.steps_per_epoch is not None else None
        if carried is not None:
            self._input.iterator = carried  # at an epoch's end it may be a new one
        return {
            **self._input.counters(ahead),
            "carried": carried is not None,
            "seen": data.steps_seen if between_epochs else self._seen,
            "last_epoch_size": self._last_epoch_size,
        }

    def build_metrics(self) -> None:
        iterator = self._input.iterator
        if kind_of(iterator) is Kind.ITERATOR:  # under a strategy, fit has done it
            self._fit.make_metrics(iterator.element_spec)

    def _next_dataset(self) -> Any:
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return ready  # an iterator is its own iterator
        self._input.was_made()
        return self._dataset()

    def _batches(self) -> Iterator[tuple[int, int, Any]]:
        start, self._start = self._start, FitStart(0)
        if start.counters is not None:
            self._go_to(start, start.counters)
        done, size, step = start.batch, self.size, self.execution
        self._seen = self._inner.steps_seen
        if self._may_be_over(start):
            self._announce_echo()
            yield done - 1, done - 1, self._input.iterator
        shift = done % step  # where steps_per_execution was another one then
        for begin, end, iterator in self._enumerate():
            if begin + shift >= done and not (shift and size is not None and begin + shift >= size):
                self._input.iterator = iterator
                yield begin + shift, end + shift, iterator

    def _go_to(self, start: FitStart, counters: Counters) -> None:
        data = self._inner
        if not start.batch and not counters["carried"]:
            self._input.draw(counters)
            return
        iterator = self._input.go_on(counters, start.position, is_carried=counters["carried"])
        if counters["carried"]:
            data.iterator, data.steps_seen = iterator, counters["seen"]
        else:
            self._ready = iterator
        if start.batch:
            self._prepare()
            return
        with contextlib.suppress(Exception):  # whatever a model raises that is traced; its first batch builds them
            self.build_metrics()  # an epoch without any batch has logs as well


class TfKerasLoop(Loop):
    """`tf_keras.Model.fit`: a `DataHandler`, which makes one iterator, and another per epoch unless that goes on."""

    _replaced = "enumerate_epochs", "steps"

    def __init__(self, model: Any, callbacks: Any, epochs: range, data: Any) -> None:
        self._enumerate, self._enumerate_steps = data.enumerate_epochs, data.steps
        self._inner, self._fit = tf_keras.FitData(data), tf_keras.FitModel(model)
        self._is_carried = not self._inner.adapter.should_recreate_iterator()
        self._ends_at = epochs.stop  # where what is read ends, of arrays
        source = _first_dataset(self._inner.distributed, self._inner.dataset)
        super().__init__(model, callbacks, epochs, data, Input(source, lambda: iter(self._inner.distributed)))
        data.enumerate_epochs, data.steps = self._epochs, self._steps

    @property
    def size(self) -> int | None:
        size = self._data.inferred_steps
        return None if size is None else int(size)

    @property
    def execution(self) -> int:
        return int(self._data.step_increment) + 1

    def trained(self) -> Any:  # the optimizer counts one more where its data end
        return tf.convert_to_tensor(self._fit.batch)

    def counters(self, *, between_epochs: bool, ahead: int = 0) -> dict[str, Any]:
        own = {"carried": self._is_carried, "last_epoch_size": self._last_epoch_size}
        return {**self._input.counters(ahead), **own, "begins_at": self.initial_epoch, "ends_at": self._ends_at}

    @property
    def has_run_out(self) -> bool:
        return bool(self._inner.has_run_out)

    def end_epoch(self, batches: int) -> None:
        super().end_epoch(batches)
        if self.size == 0:  # found out in this epoch, which has gone on: to Keras it is the first one, and no end
            self._inner.has_run_out = True

    def build_metrics(self) -> None:
        train = self.model.train_function
        if not hasattr(train, "get_concrete_function"):  # of a model that runs eagerly
            train = tf.function(train)
        train.get_concrete_function(self._input.iterator)  # traced, not run

    def _epochs(self) -> Iterator[tuple[int, Any]]:
        start, data, counters = self._start, self._inner, self._start.counters
        data.initial_epoch, data.initial_step = start.epoch, 0
        if counters is not None and data.is_of_arrays:
            counters, self._ends_at = self._of_arrays(start, counters)
        is_over = start.epoch >= self._ends_at
        inside = counters is not None and bool(start.batch or (counters["carried"] and not is_over))
        if counters is not None:
            # Keras makes the last ones: one before all epochs, one for each epoch unless the first serves them all.
            by_keras = 1 if self._is_carried or not inside else 2
            self._input.draw(
                {**counters, "made": counters["made"] - by_keras, "used": 0 if inside else counters["used"]}
            )
        if is_over:
            self._ends_at = self.epochs
        self._input.was_made()
        later = None
        for epoch, iterator in self._enumerate():
            if not self._is_carried:
                self._input.was_made()
            if later is not None:
                iterator = later
            self._input.iterator = iterator
            if inside and counters is not None:
                self._input.bring(iterator, counters, start.position, is_carried=self._is_carried)
                inside = False
            yield epoch, iterator
            if epoch + 1 == self._ends_at < self.epochs:
                self._input.was_made()
                later, self._ends_at = iter(data.distributed), self.epochs

    def _of_arrays(self, start: FitStart, counters: Counters) -> tuple[Counters, int]:
        """The counters for what Keras has made of arrays now, and the epoch at which what they are of ends.

        It makes one dataset of as many epochs as a fit has. A longer fit needs another one after those; one that begins
        elsewhere has another dataset, of which the old position is good for the epoch under way alone.
        """
        if counters["begins_at"] != self.initial_epoch:
            return {**counters, "pulled": start.batch}, start.epoch + bool(start.batch)
        return counters, counters["ends_at"]

    def _steps(self) -> Iterator[int]:
        start, self._start = self._start, FitStart(0)
        data, done = self._inner, start.batch
        if done:
            self._prepare()
            self._fit.batch.assign(done)
            data.initial_step = done
        if self._may_be_over(start):
            data.step_increment = 0
            self._announce_echo()
            yield done - 1
        yield from self._enumerate_steps()


def find_callback_list(callback: Any) -> Any:
    """The Keras `CallbackList` that is calling this callback's hook, or None."""
    return next((found for found, _ in callback_lists(callback)), None)


def find_loop(callback: Any, is_rival: Callable[[Any], bool]) -> Loop:
    """The loop of the fit that is calling this callback's `on_train_begin`.

    Raises `UsageError` where no fit is calling, and where one of an outer fit's callbacks `is_rival`.
    """
    found: Loop | None = None
    for callbacks, hook in callback_lists():
        if found is not None:
            if any(map(is_rival, callbacks.callbacks)):
                raise UsageError("a fit inside a fit cannot use the same manager: give the inner one no callback")
            continue
        if not any(item is callback for item in callbacks.callbacks):
            continue
        fit = fit_above(hook.f_back)
        if fit is not None:
            framework, model, epochs, data = fit
            found = (Keras3Loop if framework == "keras" else TfKerasLoop)(model, callbacks, epochs, data)
    if found is None:
        raise UsageError(
            "CheckpointCallback works inside of model.fit, of Keras 3 or tf_keras. In a training loop of your own call "
            "manager.restore_latest() before it and manager.save(step) in it"
        )
    return found


def _first_dataset(*candidates: Any) -> Any:
    """The first that is a dataset, not what a strategy has made of one; or None."""
    return next((found for found in candidates if isinstance(found, tf.data.Dataset)), None)
