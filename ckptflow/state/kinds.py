"""What kind of thing an object in the state is, told by its type alone.

Never by `hasattr` or `getattr`: on a variable that is kept per replica, asking for a missing attribute starts a
collective.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import UserList, deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import tensorflow as tf

from ckptflow.state.per_worker import PerWorker
from ckptflow.state.private import tensorflow as private
from ckptflow.state.private.keras import value_of
from ckptflow.state.private.tensorflow import Trackable
from ckptflow.state.private.tf_keras import BUILT, HYPERS_MADE, SLOTS, inner_optimizer, without_autocast


class Kind(Enum):
    """How the walk treats an object; `None` in its place means: not part of any state."""

    VARIABLE = auto()
    LIST = auto()
    DICT = auto()
    SET = auto()
    RECORD = auto()  # of a class made by attrs, or one that tells TensorFlow how to take it apart
    TABLE = auto()
    ITERATOR = auto()
    DISTRIBUTED_ITERATOR = auto()
    LOOKUP = auto()  # a Keras layer with a vocabulary, of either Keras
    DISCRETIZATION = auto()
    KERAS3_LAYER = auto()
    KERAS3_OPTIMIZER = auto()
    KERAS3_METRIC = auto()
    KERAS3_SEED = auto()
    TF_KERAS_LAYER = auto()
    TF_KERAS_OPTIMIZER = auto()
    TF_KERAS_METRIC = auto()
    TF1_OPTIMIZER = auto()
    TRACKABLE = auto()
    DATASET = auto()
    PER_WORKER = auto()


OPTIMIZERS = frozenset({Kind.KERAS3_OPTIMIZER, Kind.TF_KERAS_OPTIMIZER, Kind.TF1_OPTIMIZER})
METRICS = frozenset({Kind.KERAS3_METRIC, Kind.TF_KERAS_METRIC})
CONTAINERS = frozenset({Kind.LIST, Kind.DICT, Kind.SET, Kind.RECORD})
LAYERS = frozenset({Kind.KERAS3_LAYER, Kind.TF_KERAS_LAYER, Kind.LOOKUP, Kind.DISCRETIZATION})
# What such a layer has of Keras's own: its bundle holds what of it is state.
OF_PREPROCESSING: dict[Kind | None, frozenset[str]] = {
    Kind.LOOKUP: frozenset(
        {"idf_weights", "input_vocabulary", "lookup_table", "num_documents", "token_counts", "token_document_counts"}
    ),
    Kind.DISCRETIZATION: frozenset({"bin_boundaries", "input_bin_boundaries", "summary"}),
}

_NO_STATE = (tf.types.experimental.PolymorphicFunction, tf.lookup.StaticHashTable)  # tracked all the same

_by_type: dict[type, Kind | None] = {}


def kind_of(obj: object) -> Kind | None:
    """The object's kind, from its type (remembered: the answer for a type never changes)."""
    cls = type(obj)
    try:
        return _by_type[cls]
    except KeyError:
        return _by_type.setdefault(cls, _classify(cls))


def _classify(cls: type) -> Kind | None:
    # tf.Module wraps dicts and tuples in proxies, which are no dict or tuple by type.
    if issubclass(cls, private.DictWrapper):
        return Kind.DICT
    if not issubclass(cls, private.AutoTrackable):  # a Module or a layer that is a container has attributes as well
        if issubclass(cls, (private.TupleWrapper, list, tuple, deque, UserList)):
            return Kind.LIST
        if issubclass(cls, Mapping):
            return Kind.DICT
        if issubclass(cls, (set, frozenset)):
            return Kind.SET
    if issubclass(cls, PerWorker):
        return Kind.PER_WORKER
    if issubclass(cls, (tf.Variable, private.DistributedVariable, private.ShardedVariable)):
        return Kind.VARIABLE
    if issubclass(cls, tf.distribute.DistributedIterator):
        return Kind.DISTRIBUTED_ITERATOR
    if issubclass(cls, tf.data.Iterator):
        return Kind.ITERATOR
    if issubclass(cls, (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)):
        return Kind.TABLE
    if issubclass(cls, tf.data.Dataset):
        return Kind.DATASET
    if issubclass(cls, tf.compat.v1.train.Optimizer):
        return Kind.TF1_OPTIMIZER
    kind = _classify_keras3(cls) or _classify_tf_keras(cls)
    if kind is None and issubclass(cls, Trackable) and not issubclass(cls, _NO_STATE):
        kind = Kind.TRACKABLE
    if kind is None and (hasattr(cls, "__attrs_attrs__") or hasattr(cls, "__tf_flatten__")):
        kind = Kind.RECORD
    return kind


def keras3() -> Any:
    """The module `keras` (3), or None while nothing has imported it: then no object can be one of its."""
    return sys.modules.get("keras")


def tf_keras() -> Any:
    """The module `tf_keras`, or None while nothing has imported it."""
    return sys.modules.get("tf_keras")


def _classify_keras3(cls: type) -> Kind | None:
    keras = keras3()
    if keras is None or not hasattr(keras, "layers"):
        return None
    if issubclass(cls, keras.Variable):
        return Kind.VARIABLE
    if issubclass(cls, (keras.layers.StringLookup, keras.layers.IntegerLookup)):
        return Kind.LOOKUP
    if issubclass(cls, keras.layers.Discretization):
        return Kind.DISCRETIZATION
    if issubclass(cls, keras.layers.Layer):
        return Kind.KERAS3_LAYER
    if issubclass(cls, keras.optimizers.Optimizer):
        return Kind.KERAS3_OPTIMIZER
    if issubclass(cls, keras.metrics.Metric):
        return Kind.KERAS3_METRIC
    if issubclass(cls, keras.random.SeedGenerator):
        return Kind.KERAS3_SEED
    return None


def _classify_tf_keras(cls: type) -> Kind | None:
    keras = tf_keras()
    if keras is None or not hasattr(keras, "layers"):
        return None
    if issubclass(cls, (keras.layers.StringLookup, keras.layers.IntegerLookup)):
        return Kind.LOOKUP
    if issubclass(cls, keras.layers.Discretization):
        return Kind.DISCRETIZATION
    if issubclass(cls, keras.metrics.Metric):  # a layer as well
        return Kind.TF_KERAS_METRIC
    if issubclass(cls, keras.layers.Layer):
        return Kind.TF_KERAS_LAYER
    if issubclass(cls, (keras.optimizers.Optimizer, keras.optimizers.legacy.Optimizer)):
        return Kind.TF_KERAS_OPTIMIZER
    if issubclass(cls, keras.mixed_precision.LossScaleOptimizer):
        return Kind.TF_KERAS_OPTIMIZER
    return None


def is_keras3_model(obj: object) -> bool:
    """Whether it is a Keras 3 model, of any sort."""
    keras = keras3()
    return keras is not None and kind_of(obj) is Kind.KERAS3_LAYER and isinstance(obj, keras.Model)


def is_keras3_layer(obj: object) -> bool:
    """Whether it is a layer of Keras 3, of any sort."""
    keras = keras3()
    return keras is not None and kind_of(obj) in LAYERS and isinstance(obj, keras.layers.Layer)


def is_tf_keras_model(obj: object) -> bool:
    """Whether it is a tf_keras model, of any sort."""
    keras = tf_keras()
    return keras is not None and kind_of(obj) is Kind.TF_KERAS_LAYER and isinstance(obj, keras.Model)


def keras_models(state: Mapping[str, Any]) -> list[Any]:
    """The objects of a state that are models of either Keras."""
    return [obj for obj in state.values() if is_keras3_model(obj) or is_tf_keras_model(obj)]


def is_checkpoint(obj: object) -> bool:
    """Whether it is a `tf.train.Checkpoint`, of TensorFlow 2 or of 1."""
    return isinstance(obj, (tf.train.Checkpoint, tf.compat.v1.train.Checkpoint))


def has_items(obj: object) -> bool:
    """Whether it is a Module, or another object with attributes, that is one of Python's own containers as well."""
    return isinstance(obj, (list, tuple, dict, set, frozenset, deque, UserList)) and kind_of(obj) not in CONTAINERS


def is_wrapped_container(obj: object) -> bool:
    """Whether it is a list, tuple or dict as TensorFlow holds it where it was assigned to an attribute."""
    return isinstance(obj, (private.ListWrapper, private.DictWrapper, private.TupleWrapper))


def follows(obj: object, value: object) -> bool:
    """Whether an attribute's value belongs to an object, as the frameworks see it.

    A `tf.Module` follows every container. Neither Keras follows a deque or a record: what a layer has there (the
    memory of an agent, of millions of tuples) is not its own.
    """
    kind = kind_of(value)
    if kind is None:  # most values are no state; to ask whether one is a UserList takes longer than all else
        return True
    is_foreign = kind is Kind.RECORD or isinstance(value, (deque, UserList))
    return not is_foreign or kind_of(obj) is Kind.TRACKABLE


def is_normalization(obj: object) -> bool:
    """Whether it is a Normalization layer, of either Keras, which computes with copies of its variables."""
    return any(
        keras is not None and hasattr(keras, "layers") and isinstance(obj, keras.layers.Normalization)
        for keras in (keras3(), tf_keras())
    )


def is_built(optimizer: Any) -> bool:
    """Whether an optimizer has its variables. A legacy one of tf_keras may have no slots: SGD without momentum."""
    if kind_of(optimizer) is Kind.KERAS3_OPTIMIZER:
        return bool(optimizer.built)
    found = vars(optimizer)
    inner = inner_optimizer(optimizer)
    if inner is not optimizer:
        return is_built(inner)
    if SLOTS in found:
        return bool(found[SLOTS] or found.get(HYPERS_MADE) or found.get(private.NOT_SLOTS))
    return bool(found.get(BUILT, False))


def is_feature_space(obj: object) -> bool:
    """Whether it is a FeatureSpace, of either Keras, whose encoders have the sizes of its vocabularies."""
    return any(
        keras is not None and hasattr(keras, "utils") and isinstance(obj, keras.utils.FeatureSpace)
        for keras in (keras3(), tf_keras())
    )


def _without_keras3(variable: Any) -> Any:
    keras = keras3()
    is_wrapped = keras is not None and hasattr(keras, "Variable") and isinstance(variable, keras.Variable)
    return value_of(variable) if is_wrapped else variable


def raw_variable(variable: Any) -> Any:
    """The variable under Keras's and mixed precision's wrappers: a resource variable, a DistributedVariable, or None
    if a Keras 3 variable has not been given its value yet."""
    variable = _without_keras3(variable)
    if tf_keras() is not None:
        variable = without_autocast(variable)
    while isinstance(variable, private.ON_SERVERS):
        variable = private.inside_on_server(variable)
    return variable


def is_distributed(variable: Any) -> bool:
    """Whether a raw variable has one copy or component per replica."""
    return isinstance(variable, private.DistributedVariable)


def is_on_read(variable: Any) -> bool:
    """Whether a raw variable is kept per replica and aggregated when it is read."""
    return private.is_on_read(variable)


def local_copies(variable: Any) -> tuple[tuple[Any, ...], ...]:
    """The resource variables of a raw variable on this worker, by replica: one, or, where the cores of a TPU share a
    model, one for each core, all of the same value."""
    copies = variable.values if is_distributed(variable) else (variable,)
    return tuple(
        tuple(copy.variables) if isinstance(copy, private.TPUReplicatedVariable) else (copy,) for copy in copies
    )


def is_sharded(variable: Any) -> bool:
    """Whether a raw variable is one tensor in several variables on parameter servers."""
    return isinstance(variable, private.ShardedVariable)


def is_on_server(variable: Any) -> bool:
    """Whether a variable, as its framework hands it out, is on a parameter server, or is sharded over several."""
    return isinstance(_without_keras3(variable), (*private.ON_SERVERS, private.ShardedVariable))


def is_on_mesh(variable: Any) -> bool:
    """Whether a raw variable is a DTensor's."""
    return isinstance(variable, tf.experimental.dtensor.DVariable) and variable.layout is not None


def is_resource_variable(variable: Any) -> bool:
    """Whether a raw variable is a plain one that reads and assigns by its handle."""
    return isinstance(variable, private.BaseResourceVariable)


_LIBRARIES = {"keras", "tf_keras", "tensorflow", "builtins", "numpy", "jax", "torch"}


def carries_python_state(obj: object) -> bool:
    """Whether it has `get_state` and `set_state` of the user's own, beside whatever TensorFlow tracks in it."""
    if isinstance(obj, type):
        return False
    if kind_of(obj) is None:
        return callable(getattr(obj, "get_state", None)) and callable(getattr(obj, "set_state", None))
    return overrides(obj, "get_state") and overrides(obj, "set_state")


def is_python_state(obj: object) -> bool:
    """The same of what an object of the state holds. By its type alone, and only if the two methods can be called as
    ours are: nobody has handed this one over, and other libraries have methods of these names, too."""
    cls: Any = type(obj)
    return _is_python_state(cls)


def may_hold_state(cls: Any) -> bool:
    """Whether an object of this class can be state, or hold any."""
    return _classified(cls) not in (None, Kind.DATASET) or _is_python_state(cls)


def is_mere_container(cls: Any) -> bool:
    """Whether an object of this class is no state but for what is in it."""
    return _classified(cls) in CONTAINERS and not _is_python_state(cls)


def _classified(cls: type) -> Kind | None:
    return _by_type[cls] if cls in _by_type else _by_type.setdefault(cls, _classify(cls))


@functools.cache
def _is_python_state(cls: Any) -> bool:
    is_users = _overrides(cls, "get_state") and _overrides(cls, "set_state")
    return is_users and _takes(cls.get_state, 1) and _takes(cls.set_state, 2)


def _takes(method: Any, count: int) -> bool:
    try:
        inspect.signature(method).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def tells_children_itself(obj: object) -> bool:
    """Whether a class of the user's own says what TensorFlow tracks in it, beside its attributes, or has slots."""
    cls: Any = type(obj)
    return isinstance(obj, Trackable) and (overrides(obj, private.TELLS_CHILDREN) or _has_slots(cls))


@functools.cache
def _has_slots(cls: Any) -> bool:
    return any(not is_of_library(base) and vars(base).get("__slots__") for base in cls.__mro__)


def overrides(obj: object, name: str) -> bool:
    """Whether an object's class has an attribute of this name from the user, not from a library."""
    cls: Any = type(obj)
    return _overrides(cls, name)


@functools.cache
def _overrides(cls: Any, name: str) -> bool:
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    return owner is not None and not is_of_library(owner)


def is_of_library(cls: type) -> bool:
    """Whether a class is of Python's own types, or of a library that we know."""
    return str(cls.__module__).partition(".")[0] in _LIBRARIES
