"""The private names that both Kerases have, and which of them has the others."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ckptflow.state.private import keras, tf_keras

# Attributes

LOOKUP = "_lookup_layer"  # the layer with the vocabulary in a TextVectorization
INNER_OPTIMIZERS = ("inner_optimizer", "_optimizer")  # where one around another keeps that: of tf_keras the second
COMPILE_CONFIG = "_compile_config"  # what compile() was called with, before it is serialized
# Of those attributes that every layer has, what a user may change and a config has.
SETTINGS = frozenset(
    {
        *("_trainable", "trainable", "_dtype_policy", "dtype_policy", COMPILE_CONFIG),
        *("activity_regularizer", "_activity_regularizer"),
    }
)
FROZEN_SIZE = "_frozen_vocab_size"  # what a lookup layer was built for, if it was
RATE = "_learning_rate"  # the variable, or the schedule: the public one is its value


def of(framework: str) -> Any:
    """The private names of "keras" or "tf_keras"; those that have the same name do the same."""
    return keras if framework == "keras" else tf_keras


def layers_in(layer: Any) -> list[Any]:
    """A layer and all inside of it, or nothing where it is none: `layers` are only those of a model, and the first."""
    return list(layer._flatten_layers()) if hasattr(layer, "_flatten_layers") else []


def own_variables(layer: Any, which: str) -> list[Any]:
    """A layer's "trainable" or "non_trainable" variables without those of the layers in it."""
    found = vars(layer)
    return list(found.get(f"_{which}_variables", found.get(f"_{which}_weights", ())))


# As the two call these lists.
OWN_VARIABLES = ("_trainable_variables", "_non_trainable_variables", *tf_keras.WEIGHTS)


@contextlib.contextmanager
def serializing_by(framework: str, make: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]) -> Iterator[None]:
    """While a config is made, Keras serializes each object and value by what `make` makes of its function for one.

    Over a global, in all modules that have it: that function calls itself through its module, and `get_config` of a
    class, which is what it asks, is the user's own.
    """
    original = of(framework).serialization().serialize_keras_object
    replaced = make(original)
    for module in _holders(framework):
        module.serialize_keras_object = replaced
    try:
        yield
    finally:
        for module in _holders(framework):
            module.serialize_keras_object = original


@functools.cache
def _holders(framework: str) -> tuple[Any, ...]:
    """The modules that have the function under its name: also public ones, and some more of tf_keras."""
    function = of(framework).serialization().serialize_keras_object
    return tuple(
        module
        for name, module in list(sys.modules.items())
        if name.startswith(f"{framework}.") and vars(module).get("serialize_keras_object") is function
    )


_loading = threading.RLock()


@contextlib.contextmanager
def loading_without(framework: str, is_left: Callable[[Any, str], bool]) -> Iterator[None]:
    """While this thread loads a file, what is left by itself or its place stays as it was made, with all inside of it.

    Over a global: the objects are made on the way, and `load_model` has no word in what they are given. Other threads
    that load through here wait; what others load is as ever.
    """
    module: Any = importlib.import_module(f"{framework}.src.saving.saving_lib")
    thread = threading.get_ident()
    with _loading:
        original = module._load_state

        def load_state(obj: Any, *args: Any, inner_path: str, **how: Any) -> None:
            if threading.get_ident() != thread or not is_left(obj, inner_path):
                original(obj, *args, inner_path=inner_path, **how)

        module._load_state = load_state
        try:
            yield
        finally:
            module._load_state = original


# Who calls a callback. Neither Keras hands it more than its model and numbers (`set_model`, `set_params`), and no model
# keeps its callbacks or what its batches come from: both are local variables of the callers. The one public hook in the
# loop, `make_train_function`, is handed an iterator, and has no say in which batch an epoch begins with.


def callback_lists(callback: Any = None) -> Iterator[tuple[Any, FrameType]]:
    """The callback lists that are running a hook, innermost first; with a callback, those that hold it."""
    previous: Any = None
    frame = inspect.currentframe()
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if owner is not previous and any(cls.__name__ == "CallbackList" for cls in type(owner).__mro__):
            previous = owner
            if callback is None or any(item is callback for item in owner.callbacks):
                yield owner, frame
        frame = frame.f_back


def fit_above(frame: FrameType | None) -> tuple[str, Any, range, Any] | None:
    """The innermost fit above a frame: the framework, the model, the epochs, what its batches come from."""
    kinds = {name: kind for name in ("keras", "tf_keras") if (kind := of(name).fit_data_class()) is not None}
    while frame is not None:
        found = frame.f_locals
        if {"initial_epoch", "epochs", "self"} <= found.keys():
            for value in found.values():
                for name, kind in kinds.items():
                    if isinstance(value, kind):
                        return name, found["self"], range(int(found["initial_epoch"]), int(found["epochs"])), value
        frame = frame.f_back
    return None
