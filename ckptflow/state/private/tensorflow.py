"""TensorFlow's private names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter, methodcaller
from typing import Any

import tensorflow as tf

# `tf.saved_model.experimental.Fingerprint` reads the one that is stored, and makes none of the file beside it.
from tensorflow.core.protobuf import fingerprint_pb2 as fingerprint_pb2

# The message in which a checkpoint of TensorFlow's holds its object graph.
from tensorflow.core.protobuf import trackable_object_graph_pb2
from tensorflow.dtensor.python import accelerator_util

# Under which one attribute a checkpoint has all that an object is saved as; None if each part has its own.
from tensorflow.python.checkpoint import saveable_compat as saveable_compat
from tensorflow.python.data.ops.shuffle_op import _ShuffleDataset

# What kind of variable it is must be told by its type: asking one for an attribute can start a collective, and
# `tf.Variable` is the one public type.
from tensorflow.python.distribute.ps_values import AggregatingVariable, CachingVariable
from tensorflow.python.distribute.sharded_variable import ShardedVariable as ShardedVariable
from tensorflow.python.distribute.tpu_replicated_variable import TPUReplicatedVariable as TPUReplicatedVariable
from tensorflow.python.distribute.values import DistributedVariable as DistributedVariable
from tensorflow.python.distribute.values import OnReadPolicy, SyncOnReadVariable

# The key-value store of the coordination service, and whether a peer answers: nothing public asks either.
from tensorflow.python.eager.context import context as context
from tensorflow.python.eager.execute import quick_execute

# `tf.Tensor` is also the type of symbols.
from tensorflow.python.framework.ops import EagerTensor as EagerTensor

# Those of TensorFlow's own, which layers of tf_keras may have.
from tensorflow.python.ops.init_ops_v2 import Initializer as Initializer
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable as BaseResourceVariable

# `tf.saved_model.load` runs what is in it; this parses it.
from tensorflow.python.saved_model.loader_impl import parse_saved_model as parse_saved_model
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting as fingerprinting
from tensorflow.python.trackable import data_structures

# The keys that a checkpoint of TensorFlow's has for what is at a path.
from tensorflow.python.trackable.trackable_utils import checkpoint_key as checkpoint_key
from tensorflow.python.trackable.trackable_utils import escape_local_name as escape_local_name
from tensorflow.python.trackable.trackable_utils import slot_variable_key as slot_variable_key

# What `variable.ref()` returns, as a key of a dict.
from tensorflow.python.util.object_identity import Reference as Reference
from tensorflow.python.util.tf_export import get_canonical_name_for_symbol, get_symbol_from_name

# `tf.Module` is only one of the objects that TensorFlow tracks.
Trackable = tf.__internal__.tracking.Trackable
AutoTrackable = tf.__internal__.tracking.AutoTrackable

TrackableObjectGraph = trackable_object_graph_pb2.TrackableObjectGraph

# Variables

ON_SERVERS = (CachingVariable, AggregatingVariable)
# What a variable on a parameter server is around: reading the outer one may give a cached value.
inside_on_server = attrgetter("_v")
# Where each part of a ShardedVariable begins: it tells its parts alone.
starts_of_parts = attrgetter("_var_offsets")
# By which an optimizer of tf_keras knows a variable. Not to be asked of a distributed one, which has none.
unique_id = attrgetter("_unique_id")


def is_on_read(variable: Any) -> bool:
    """Whether a variable is kept per replica and aggregated when it is read: under TPUStrategy its policy says so, not
    its class."""
    return isinstance(variable, SyncOnReadVariable) or (
        isinstance(variable, DistributedVariable) and isinstance(variable._policy, OnReadPolicy)
    )


def read_variables(handles: list[Any], attributes: tuple[Any, ...]) -> list[Any]:
    """The values of several variables by one operation, which `tf.raw_ops` does not have."""
    found: list[Any] = quick_execute("_ReadVariablesOp", len(handles), inputs=handles, attrs=attributes, ctx=context())
    return found


# Of an eager tensor, without making its shape, which takes longer than reading it.
rank = methodcaller("_rank")
num_elements = methodcaller("_num_elements")

# What TensorFlow tracks

# tf.Module holds lists, tuples and dicts in proxies, which are no tuple or dict by type.
DictWrapper = data_structures._DictWrapper
TupleWrapper = data_structures._TupleWrapper
ListWrapper = data_structures.ListWrapper
# The plain list in a list's proxy, which itself answers item by item in Python.
STORAGE = "_storage"
# Begins the names of attributes that TensorFlow keeps in objects for itself.
OWN = "_self_"
# One of them: what an object tracks by name, attribute or not.
BY_NAME = "_self_unconditional_dependency_names"
# What a class overrides to tell its children, and how it is saved. `tf.train.TrackableView` asks the first one only.
TELLS_CHILDREN = "_trackable_children"
TO_TENSORS = "_serialize_to_tensors"
TO_FACTORIES = "_gather_saveables_for_checkpoint"
# A `tf.train.Checkpoint`'s root and arguments, which it does not give out.
ROOT, ARGUMENTS = "_root", "_kwargs"


def to_tensors(trackable: Any) -> dict[str, Any]:
    """What an object is saved as: a tensor, or what gives one, by a name that is unique within the object."""
    found: dict[str, Any] = trackable._serialize_to_tensors()
    return found


def from_tensors(trackable: Any, tensors: Mapping[str, Any]) -> None:
    """The reverse of `to_tensors`."""
    trackable._restore_from_tensors(tensors)


def has_tensors_by_class(trackable: Any) -> bool:
    """Whether an object's class tells what it is saved as."""
    return type(trackable)._serialize_to_tensors is not Trackable._serialize_to_tensors


def factories(trackable: Any) -> dict[str, Any]:
    """TensorFlow's old way: what makes what saves an object, by name. A table of a SavedModel has nothing else."""
    found: dict[str, Any] = trackable._gather_saveables_for_checkpoint()
    return found


def track(obj: Any, child: Any, name: str) -> None:
    """Has an object track another one under a name that need not be one of an attribute."""
    obj._track_trackable(child, name)


def untrack(obj: Any, name: str) -> None:
    """The reverse of `track`."""
    obj._delete_tracking(name)


# Optimizers of TensorFlow 1

# Their variables that are of no other one, as powers of rates, and of what a checkpoint of TensorFlow's has for later.
NOT_SLOTS, DEFERRED_SLOTS = "_non_slot_dict", "_deferred_slot_restorations"


def make_slots(optimizer: Any, variables: list[Any]) -> None:
    """Gives such an optimizer all of its variables, which else happens in its first step."""
    optimizer._create_slots(variables)


# Tables, data sets and iterators

marks_of_dense = attrgetter("_empty_key", "_deleted_key")  # the keys that mark rows as not in use
value_shape = attrgetter("_value_shape")  # of a table's values
ShuffleDataset = _ShuffleDataset  # an iterator's own position has no name for it
seeds_of = attrgetter("_seed", "_seed2")  # of a shuffle; both 0: drawn anew by each iterator


def inputs_of(dataset: Any) -> list[Any]:
    """The data sets that one is made of."""
    return list(dataset._inputs())


def dataset_of(iterator: Any) -> Any:
    """What an iterator was made from; None where it was made from a handle."""
    return getattr(iterator, "_dataset", None)


def unwrapped(dataset: Any) -> Any:
    """The data set that does the work: readers, and the classes of TensorFlow 1, are around another one."""
    for name in ("_dataset", "_impl"):
        dataset = getattr(dataset, name, dataset)
    return dataset


# What a position is made of room for, by the attribute of a data set. A position itself
# tells the size of a shuffle.
_NUMBERS = ("_cycle_length", "_block_length", "_batch_size", "_num_shards", "_size", "_shift", "_stride")


def numbers_of(dataset: Any) -> dict[str, Any]:
    """The numbers that a position depends on, tensors or not, by what they are called."""
    numbers = {name[1:]: getattr(dataset, name) for name in _NUMBERS if hasattr(dataset, name)}
    window = getattr(dataset, "_window_size_func", None)  # of each key, most often the same number
    return numbers if window is None else {**numbers, "window_size": window.function.graph.outputs[0]}


def carried_by(dataset: Any) -> Any:
    """The structure of what a `scan` carries from one element to the next; None of another."""
    return getattr(dataset, "_state_structure", None)


def graphs_of(dataset: Any) -> list[Any]:
    """The graphs of the functions that it calls."""
    return [each.function.graph for each in dataset._functions()]


def iterators_in(distributed: Any) -> list[Any]:
    """The iterators in a DistributedIterator; None for one that prefetches to devices, and has no state."""
    return [getattr(each, "_iterator", None) for each in distributed._iterators or ()]


# Strategies

DEFAULT_STRATEGY = "_DefaultDistributionStrategy"  # the class of what stands for no strategy at all
cluster_resolver_of = attrgetter("_cluster_resolver")  # of a ParameterServerStrategy, of which it is not public
coordinator_of = attrgetter("_cluster_coordinator")  # which was made for a ParameterServerStrategy, or None
is_dtensor_initialized = accelerator_util.is_initialized  # asking for anything else of DTensor would initialize it


def public_name(cls: type) -> str:
    """The name under which a class is public: several of TensorFlow's have another name in their code."""
    names = vars(cls).get("_tf_api_names") or (cls.__name__,)
    return str(names[0]).rpartition(".")[2]


# Functions


def symbol(name: str) -> Any:
    """What is public under a name, as configs of tf_keras have it; None if there is no such thing."""
    return get_symbol_from_name(name)


def names_of(obj: Any) -> Iterator[str | None]:
    """The names under which a function or class is public, in TensorFlow and in tf_keras, however it is reached."""
    for api in ("tensorflow", "keras"):
        yield get_canonical_name_for_symbol(obj, api, add_prefix_to_v1_names=True)


def traced(function: Any) -> list[Any]:
    """The concrete functions of a tf.function, which `tf.saved_model.save` will write."""
    return list(function._list_all_concrete_functions())


def owner_of(captured: Any) -> Any:
    """The object whose resource a function has captured, if it still is there."""
    return getattr(captured, "_parent_trackable", lambda: None)()


# LiteRT


def conversion_error() -> type[Exception]:
    """What the converter raises, with the operations that it cannot convert."""
    from tensorflow.lite.python.convert_phase import ConverterError

    found: type[Exception] = ConverterError
    return found


def lite_schema() -> Any:
    """The classes of a LiteRT file's tables, to add an entry to its metadata."""
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated
