"""The other callbacks of a fit: what they know that a restart must not lose.

A callback with `get_state` and `set_state` of its own is asked. Of Keras's callbacks those attributes are kept that
`on_train_begin` sets back, and whether SwapEMAWeights has put averages in the place of the model's weights; learning
rates are the optimizer's, and the rest follows from the epoch's number.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.format.dtypes import Array, decode_strings, encode_strings
from ckptflow.state.kinds import Kind, carries_python_state, kind_of
from ckptflow.state.private.keras import SWAPPED
from ckptflow.state.private.kerases import RATE

logger = logging.getLogger("ckptflow")

_KEPT = {
    "EarlyStopping": ("wait", "stopped_epoch", "best", "best_epoch"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "ModelCheckpoint": ("best",),
    "History": ("epoch", "history"),
    "SwapEMAWeights": (SWAPPED,),
}
_WEIGHTS = "best_weights"  # EarlyStopping's: arrays, as many as the model has weights
_ALIGNMENT = 64  # TensorFlow takes no memory that begins elsewhere
_MAX_HISTORY = 100_000  # numbers; more would make every manifest long, so that a longer history begins anew


class Others:
    """The callbacks beside ours, each under a name that is the same in the next life: its class's, numbered."""

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self._callbacks: dict[str, Any] = {}
        for callback in callbacks:
            base = name = type(callback).__name__
            count = 0
            while name in self._callbacks:
                count += 1
                name = f"{base}_{count}"
            self._callbacks[name] = callback
        self._swapping = [callback for callback in self._callbacks.values() if _kept(callback) == (SWAPPED,)]
        self._lost_swap = False  # the averages were in the model when it was saved, by a callback that is not here
        self._packed_of: list[Any] = []
        self._packed = tf.zeros([0], tf.uint8)

    def states(self) -> dict[str, Any]:
        """What each knows, by its name; without arrays, whose places `pack` fills in this order."""
        found: dict[str, Any] = {}
        for name, callback in self._callbacks.items():
            if carries_python_state(callback):
                found[name] = {"state": callback.get_state()}
            elif (kept := _kept(callback)) and not _is_long_history(callback):
                attributes = {key: _plain(getattr(callback, key)) for key in kept if hasattr(callback, key)}
                weights = getattr(callback, _WEIGHTS, None)
                shapes = None if weights is None else [[_dtype_of(array), list(array.shape)] for array in weights]
                found[name] = {"attributes": attributes, _WEIGHTS: shapes}
        return found

    def pack(self) -> Any:
        """Every array's bytes, one after the other, as one tensor; made anew only when a callback has others.

        The callbacks' arrays become views of it, so that a model's best weights are held once.
        """
        lists = [
            weights
            for callback in self._callbacks.values()
            if _kept(callback) and not carries_python_state(callback)
            if (weights := getattr(callback, _WEIGHTS, None)) is not None
        ]
        if [id(weights) for weights in lists] != [id(weights) for weights in self._packed_of]:
            self._packed = _pack(lists)
            self._packed_of = lists  # held, so that no other list gets its identity
        return self._packed

    def restore(self, states: Mapping[str, Any], packed: Array) -> None:
        """Gives each callback back what it knew. One that was not there then starts anew; the log says which."""
        offset = 0
        for name, saved in states.items():
            weights = []
            for dtype_name, shape in saved.get(_WEIGHTS) or ():
                array, size_bytes = _unpack_first(packed[offset:], dtype_name, shape)
                weights.append(array)
                offset += size_bytes
            callback = self._callbacks.get(name)
            if callback is None:
                self._lost_swap |= bool(saved.get("attributes", {}).get(SWAPPED))
                logger.warning("the checkpoint has the state of a callback %s, which this fit has not", name)
            elif "state" in saved and carries_python_state(callback):
                callback.set_state(saved["state"])
            elif "attributes" in saved:
                for key, value in saved["attributes"].items():
                    setattr(callback, key, value)
                if saved[_WEIGHTS] is not None:
                    setattr(callback, _WEIGHTS, weights)
        stateful = [n for n, c in self._callbacks.items() if n not in states and (carries_python_state(c) or _kept(c))]
        if stateful and states:
            logger.warning("the checkpoint has no state of these callbacks, which start anew: %s", ", ".join(stateful))

    def were_restored(self) -> None:
        """All values are a checkpoint's now: no callback of before has put averages there. `restore` tells if one did
        when it was saved.
        """
        for callback in self._swapping:
            setattr(callback, SWAPPED, False)

    def take_no_swap(self) -> None:
        """Not all averages came: one that did not must not be put into the model."""
        swapped = [callback for callback in self._swapping if getattr(callback, SWAPPED, False)]
        if swapped or self._lost_swap:
            logger.warning("what was restored as weights are the averages of SwapEMAWeights: training begins with them")
        for callback in swapped:
            setattr(callback, SWAPPED, False)
        self._lost_swap = False

    def swap_back(self) -> None:
        """Puts the model's own weights back in their place: training must not go on from averages.

        A validation ends with that; it did not come to its end, and this life does none in its place.
        """
        for callback in self._swapping:
            if getattr(callback, SWAPPED, False) and not callback.swap_on_epoch:
                callback.on_test_end()

    def swap_back_lost(self, model: Any) -> None:
        """The same in the place of a callback that this fit has not, once the model has its values."""
        if self._lost_swap:
            import keras  # a job of tf_keras alone need not have it loaded

            self._lost_swap, swapping = False, keras.callbacks.SwapEMAWeights()
            setattr(swapping, SWAPPED, True)
            swapping.set_model(model)
            swapping.on_test_end()

    def change_weights_at_end(self) -> bool:
        """Whether a callback has an `on_train_end`, which may change the model after the last batch."""
        return any(_has_train_end(callback) for callback in self._callbacks.values())


def _keras_classes(callback: Any) -> list[type]:
    return [cls for cls in type(callback).__mro__ if cls.__module__.partition(".")[0] in ("keras", "tf_keras")]


def _kept(callback: Any) -> Sequence[str]:
    return next((_KEPT[cls.__name__] for cls in _keras_classes(callback) if cls.__name__ in _KEPT), ())


def _is_long_history(callback: Any) -> bool:
    history = getattr(callback, "history", None)
    return isinstance(history, dict) and sum(map(len, history.values())) > _MAX_HISTORY


def _has_train_end(callback: Any) -> bool:
    owner = next(cls for cls in type(callback).__mro__ if "on_train_end" in vars(cls))
    is_default = owner.__name__ == "Callback" and owner in _keras_classes(callback)
    return not is_default or "on_train_end" in vars(callback)


def learning_rate(optimizer: Any) -> Any:
    """The variable of the learning rate, of an optimizer of either Keras; None where a schedule gives it."""
    rate = getattr(getattr(optimizer, "inner_optimizer", optimizer), RATE, None)
    return rate if kind_of(rate) is Kind.VARIABLE else None


def averages_weights(optimizer: Any) -> bool:
    """Whether an optimizer, or one inside of it, gives the model its averaged weights at the end."""
    several = getattr(optimizer, "optimizers", ())  # a MultiOptimizer's; the other is of one that scales losses
    inside = [getattr(optimizer, "inner_optimizer", None), *(several if isinstance(several, (list, tuple)) else ())]
    return bool(getattr(optimizer, "use_ema", False)) or any(averages_weights(each) for each in inside if each)


def _plain(value: Any) -> Any:
    """Numbers as Python's, through lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if tf.is_tensor(value):
        value = value.numpy()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _dtype_of(array: Any) -> str:
    return "string" if array.dtype == object else str(array.dtype)


def _bytes_of(array: Any) -> Array:
    if array.dtype == object:  # a vocabulary's, among the weights of a tf_keras model
        return encode_strings(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _pack(lists: Sequence[Any]) -> Any:
    """A tensor over one stretch of memory, which takes array after array, so that two copies of none are needed."""
    todo = deque((weights, index, _bytes_of(array)) for weights in lists for index, array in enumerate(weights))
    size_bytes = sum(data.size for *_, data in todo)
    if not size_bytes:
        return tf.zeros([0], tf.uint8)
    memory = np.empty(size_bytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    packed, offset = memory[begin : begin + size_bytes], 0
    while todo:
        weights, index, data = todo.popleft()
        place = packed[offset : offset + data.size]
        place[:] = data
        offset += data.size
        array = weights[index]
        if array.dtype != object and isinstance(weights, list):
            weights[index] = place.view(array.dtype).reshape(array.shape)
            weights[index].flags.writeable = False
    return tf.experimental.dlpack.from_dlpack(packed.__dlpack__())


def _unpack_first(packed: Array, dtype_name: str, shape: Sequence[int]) -> tuple[Array, int]:
    """The first array in `packed`, and how many bytes of it that was."""
    count = math.prod(shape)
    if dtype_name == "string":
        size_bytes = 8 * (1 + count) + int(packed[8 : 8 * (1 + count)].view(np.int64).sum())
        return decode_strings(packed[:size_bytes], shape), size_bytes
    dtype = np.dtype(tf.as_dtype(dtype_name).as_numpy_dtype)
    size_bytes = count * dtype.itemsize
    return packed[:size_bytes].copy().view(dtype).reshape(shape), size_bytes


def finite_metrics(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The finite numbers of a fit's logs; whatever else is in them is left out."""
    found: dict[str, float] = {}
    for name, value in (logs or {}).items():
        try:
            number = float(value.numpy() if tf.is_tensor(value) else value)
        except (TypeError, ValueError, AttributeError):
            continue
        if isinstance(name, str) and abs(number) <= sys.float_info.max:
            found[name] = number
    return found
