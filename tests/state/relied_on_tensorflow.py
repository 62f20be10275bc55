"""Checks of TensorFlow's private names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from ckptflow.state.private import tensorflow as of_tensorflow
from ckptflow.state.private import tf_keras as of_tf_keras
from tests.state.relied_on import model_of, relied_on


@contextlib.contextmanager
def mirrored() -> Iterator[Any]:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        yield strategy


def on_read() -> Any:
    how = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.SUM}
    return tf.Variable(1.0, **how)


@relied_on(
    "tensorflow.DistributedVariable tensorflow.is_on_read tensorflow.BaseResourceVariable",
    "which variables have a copy or component per replica, asked of none of them",
)
def _distributed(folder: Path) -> None:
    with mirrored():
        plain, mirror, reading = tf.Variable(1.0, trainable=False).values[0], tf.Variable(1.0), on_read()
    assert isinstance(plain, of_tensorflow.BaseResourceVariable)
    assert [isinstance(each, of_tensorflow.DistributedVariable) for each in (plain, mirror, reading)] == [0, 1, 1]
    assert [of_tensorflow.is_on_read(each) for each in (plain, mirror, reading)] == [False, False, True]


@relied_on("tensorflow.ON_SERVERS tensorflow.inside_on_server", "the variable on a parameter server, under its cache")
def _on_servers(folder: Path) -> None:
    variable = tf.Variable(1.0)
    for kind in of_tensorflow.ON_SERVERS[:1]:  # the other one wants a strategy
        assert of_tensorflow.inside_on_server(kind(variable)) is variable


@relied_on("tensorflow.ShardedVariable tensorflow.starts_of_parts", "one tensor in several variables, put together")
def _sharded(folder: Path) -> None:
    sharded = of_tensorflow.ShardedVariable([tf.Variable([1.0, 2.0]), tf.Variable([3.0])])
    assert list(map(list, of_tensorflow.starts_of_parts(sharded))) == [[0], [2]]


@relied_on("tensorflow.TPUReplicatedVariable", "one variable for each core of a TPU that shares a model")
def _replicated(folder: Path) -> None:
    variables = [tf.Variable(1.0), tf.Variable(1.0)]
    found = of_tensorflow.TPUReplicatedVariable(variables, name="v").variables
    assert [id(each) for each in found] == list(map(id, variables))


@relied_on("tensorflow.unique_id tf_keras.INDEX", "which slot of an optimizer of tf_keras is of which variable")
def _unique_id(folder: Path) -> None:
    model = model_of("tf_keras")
    keys = vars(model.optimizer)[of_tf_keras.INDEX]
    assert {of_tensorflow.unique_id(variable) for variable in model.trainable_variables} == set(keys)


@relied_on("tensorflow.read_variables", "capture reads many variables by one operation")
def _read_variables(folder: Path) -> None:
    variables = [tf.Variable(1.0), tf.Variable(2.0)]
    attributes = ("N", 2, "dtypes", [tf.float32.as_datatype_enum] * 2)
    found = of_tensorflow.read_variables([each.handle for each in variables], attributes)
    assert [float(each) for each in found] == [1, 2]


@relied_on(
    "tensorflow.rank tensorflow.num_elements tensorflow.EagerTensor",
    "captured tensors on their way to bytes, without making shapes",
)
def _eager(folder: Path) -> None:
    tensor = tf.zeros([2, 3])
    assert isinstance(tensor, of_tensorflow.EagerTensor)
    assert (of_tensorflow.rank(tensor), of_tensorflow.num_elements(tensor)) == (2, 6)


@relied_on("tensorflow.Reference", "a dict with variables as keys, which has no name that is the same elsewhere")
def _reference(folder: Path) -> None:
    assert isinstance(tf.Variable(1.0).ref(), of_tensorflow.Reference)


@relied_on(
    "tensorflow.Trackable tensorflow.AutoTrackable tensorflow.TELLS_CHILDREN tensorflow.TO_TENSORS "
    "tensorflow.TO_FACTORIES tensorflow.has_tensors_by_class",
    "what TensorFlow tracks, and what a class of the user's own tells of itself",
)
def _trackable(folder: Path) -> None:
    assert issubclass(tf.Module, of_tensorflow.AutoTrackable)
    assert issubclass(tf.Variable, of_tensorflow.Trackable)
    for name in (of_tensorflow.TELLS_CHILDREN, of_tensorflow.TO_TENSORS, of_tensorflow.TO_FACTORIES):
        assert callable(getattr(of_tensorflow.Trackable, name))
    assert of_tensorflow.has_tensors_by_class(table())
    assert not of_tensorflow.has_tensors_by_class(tf.Module())


@relied_on(
    "tensorflow.ListWrapper tensorflow.DictWrapper tensorflow.TupleWrapper tensorflow.STORAGE",
    "lists, dicts and tuples that a tf.Module holds",
)
def _wrappers(folder: Path) -> None:
    module = tf.Module()
    module.a, module.b, module.c = [tf.Variable(1.0)], {"x": tf.Variable(1.0)}, (tf.Variable(1.0),)
    kinds = (of_tensorflow.ListWrapper, of_tensorflow.DictWrapper, of_tensorflow.TupleWrapper)
    assert [type(each) for each in (module.a, module.b, module.c)] == list(kinds)
    assert type(vars(module.a)[of_tensorflow.STORAGE]) is list
    assert [type(each.__wrapped__) for each in (module.b, module.c)] == [dict, tuple]


@relied_on(
    "tensorflow.OWN tensorflow.BY_NAME tensorflow.track tensorflow.untrack",
    "what TensorFlow keeps in an object's attributes for itself; what hangs on a model for one export",
)
def _tracking(folder: Path) -> None:
    module, child = tf.Module(), tf.Module()
    of_tensorflow.track(module, child, "x")
    assert tf.train.TrackableView.children(module)["x"] is child
    assert of_tensorflow.BY_NAME in vars(module)
    assert {name for name in vars(module) if name.startswith("_self_")} <= {
        name for name in vars(module) if name.startswith(of_tensorflow.OWN)
    }
    of_tensorflow.untrack(module, "x")
    assert "x" not in tf.train.TrackableView.children(module)


@relied_on("tensorflow.ROOT tensorflow.ARGUMENTS", "what a tf.train.Checkpoint in the state holds")
def _checkpoint(folder: Path) -> None:
    module = tf.Module()
    found = vars(tf.train.Checkpoint(module))
    assert found[of_tensorflow.ROOT] is module or found[of_tensorflow.ROOT]() is module
    assert of_tensorflow.ARGUMENTS in vars(tf.train.Checkpoint(x=module))


def table() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, [-1, -1])


@relied_on(
    "tensorflow.to_tensors tensorflow.from_tensors tensorflow.value_shape tensorflow.saveable_compat",
    "tables, iterators and whatever else is saved as it says itself",
)
def _to_tensors(folder: Path) -> None:
    one, other = table(), table()
    one.insert(tf.constant(["a"]), tf.constant([[1, 2]], tf.int64))
    tensors = of_tensorflow.to_tensors(one)
    assert set(tensors) == {"-keys", "-values"}
    of_tensorflow.from_tensors(other, tensors)
    assert other.export()[1].numpy().tolist() == [[1, 2]]
    assert of_tensorflow.value_shape(one).as_list() == [2]
    assert of_tensorflow.saveable_compat.get_saveable_name(one) == "table"
    (state,) = of_tensorflow.to_tensors(iter(tf.data.Dataset.range(3))).values()
    assert state.dtype == tf.variant


@relied_on("tensorflow.factories", "tables of a SavedModel that was loaded")
def _factories(folder: Path) -> None:
    assert of_tensorflow.factories(tf.Module()) == {}


@relied_on("tensorflow.marks_of_dense", "rows of a DenseHashTable that are in use")
def _marks(folder: Path) -> None:
    marks = {"default_value": -1, "empty_key": 7, "deleted_key": 8}
    dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, **marks)
    assert tuple(map(int, of_tensorflow.marks_of_dense(dense))) == (7, 8)


@relied_on(
    "tensorflow.ShuffleDataset tensorflow.seeds_of tensorflow.inputs_of",
    "a fit that goes on draws the orders that its shuffles would have drawn",
)
def _shuffles(folder: Path) -> None:
    for seed in (None, 5):
        shuffled = tf.data.Dataset.range(3).shuffle(2, seed=seed)
        (found,) = of_tensorflow.inputs_of(shuffled.batch(1))
        assert isinstance(found, of_tensorflow.ShuffleDataset)
        assert any(map(int, of_tensorflow.seeds_of(found))) == (seed is not None)


@relied_on(
    "tensorflow.dataset_of tensorflow.unwrapped tensorflow.numbers_of tensorflow.carried_by tensorflow.graphs_of",
    "a position is put into the pipeline that it is of, and into no other",
)
def _pipelines(folder: Path) -> None:
    numbers = tf.data.Dataset.range(9)
    batches = numbers.batch(4)
    assert of_tensorflow.dataset_of(iter(batches)) is batches
    assert of_tensorflow.unwrapped(batches) is batches
    records = tf.data.TFRecordDataset(["a"], num_parallel_reads=2)
    assert {name: int(value) for name, value in of_tensorflow.numbers_of(of_tensorflow.unwrapped(records)).items()} == {
        "cycle_length": 2,
        "block_length": 1,
    }
    assert type(of_tensorflow.unwrapped(tf.compat.v1.data.Dataset.range(9))) is type(numbers)
    shard = of_tensorflow.numbers_of(numbers.shard(2, 0))
    found = of_tensorflow.numbers_of(numbers.window(4, 2, 3)) | of_tensorflow.numbers_of(batches) | shard
    assert {name: int(value) for name, value in found.items()} == {
        "batch_size": 4, "num_shards": 2, "size": 4, "shift": 2, "stride": 3,
    }  # fmt: skip
    groups = numbers.group_by_window(lambda x: x % 3, lambda key, each: each.batch(4), 8)
    assert int(tf.get_static_value(of_tensorflow.numbers_of(groups)["window_size"])) == 8
    called = [each.type for graph in of_tensorflow.graphs_of(groups) for each in graph.get_operations()]
    assert "BatchDatasetV2" in called
    scanned = numbers.scan(tf.constant(0.0), lambda total, x: (total, x))
    assert of_tensorflow.carried_by(scanned) == tf.TensorSpec([], tf.float32)
    assert of_tensorflow.carried_by(numbers) is None


@relied_on("tensorflow.iterators_in", "the iterators, one for each replica, of a DistributedIterator")
def _distributed_iterator(folder: Path) -> None:
    how = tf.distribute.InputOptions(
        experimental_fetch_to_device=False,
        experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA,
    )
    with mirrored() as strategy:
        dataset = strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.range(3), how)
        whole = strategy.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2))
    assert [isinstance(each, tf.data.Iterator) for each in of_tensorflow.iterators_in(iter(dataset))] == [True]
    assert not any(isinstance(each, tf.data.Iterator) for each in of_tensorflow.iterators_in(iter(whole)))


@relied_on("tensorflow.DEFAULT_STRATEGY tensorflow.public_name", "which strategy it is, as users call it")
def _strategies(folder: Path) -> None:
    assert type(tf.distribute.get_strategy()).__name__ == of_tensorflow.DEFAULT_STRATEGY
    assert of_tensorflow.public_name(tf.distribute.ParameterServerStrategy) == "ParameterServerStrategy"


@relied_on("tensorflow.cluster_resolver_of tensorflow.coordinator_of", "where a parameter server strategy runs")
def _parameter_servers(folder: Path) -> None:
    names = tf.distribute.ParameterServerStrategy.__init__.__code__.co_names  # tests/matrix make some
    assert {"_cluster_resolver", "_cluster_coordinator"} <= set(names)


@relied_on("tensorflow.context", "messages between workers, and whether one still answers")
def _context(folder: Path) -> None:
    context = of_tensorflow.context()
    assert context.coordination_service is None
    for name in ("get", "set", "delete"):
        assert callable(getattr(context, f"{name}_config_key_value"))
    assert callable(context.check_collective_ops_peer_health)


@relied_on("tensorflow.is_dtensor_initialized", "whether this process is one of several clients of DTensor")
def _dtensor(folder: Path) -> None:
    assert of_tensorflow.is_dtensor_initialized() is False


@relied_on("tensorflow.Initializer", "the matrix in an initializer is not saved with a config")
def _initializer(folder: Path) -> None:
    assert isinstance(tf.compat.v2.zeros_initializer(), of_tensorflow.Initializer)


@relied_on(
    "tensorflow.checkpoint_key tensorflow.escape_local_name tensorflow.slot_variable_key "
    "tensorflow.TrackableObjectGraph",
    "checkpoints that tf.train.Checkpoint reads, and reading those that it writes",
)
def _keys(folder: Path) -> None:
    assert of_tensorflow.checkpoint_key("a/b", "VARIABLE_VALUE") == "a/b/.ATTRIBUTES/VARIABLE_VALUE"
    assert of_tensorflow.escape_local_name("a/.b") == "a.S..b"
    assert of_tensorflow.slot_variable_key("v", "o", "m") == "v/.OPTIMIZER_SLOT/o/m"
    graph = of_tensorflow.TrackableObjectGraph()
    graph.nodes.add().children.add(node_id=0, local_name="x")
    assert of_tensorflow.TrackableObjectGraph.FromString(graph.SerializeToString()) == graph


@relied_on(
    "tensorflow.parse_saved_model tensorflow.fingerprinting tensorflow.fingerprint_pb2",
    "a SavedModel is read without running its graph, and checked against its fingerprint",
)
def _saved_model(folder: Path) -> None:
    saved = str(folder / "saved")
    tf.saved_model.save(tf.Module(), saved)
    assert len(of_tensorflow.parse_saved_model(saved).meta_graphs) == 1
    found = [
        of_tensorflow.fingerprint_pb2.FingerprintDef.FromString(made(saved)).saved_model_checksum
        for made in (
            of_tensorflow.fingerprinting.ReadSavedModelFingerprint,
            of_tensorflow.fingerprinting.CreateFingerprintDef,
        )
    ]
    assert found[0] == found[1] != 0


@relied_on(
    "tensorflow.make_slots tensorflow.NOT_SLOTS tensorflow.DEFERRED_SLOTS",
    "the variables of an optimizer of TensorFlow 1, before its first step",
)
def _slots_of_tf1(folder: Path) -> None:
    variable, optimizer = tf.Variable(1.0), tf.compat.v1.train.AdamOptimizer()
    of_tensorflow.make_slots(optimizer, [variable])
    found = vars(optimizer)
    key = of_tensorflow.unique_id(variable)
    assert {name: list(slots) for name, slots in found[of_tf_keras.SLOTS].items()} == {"m": [key], "v": [key]}
    assert {name for name, _ in found[of_tensorflow.NOT_SLOTS]} == {"beta1_power", "beta2_power"}
    assert found[of_tensorflow.DEFERRED_SLOTS] == {}


@relied_on("tensorflow.symbol tensorflow.names_of", "which operation a config of tf_keras calls, by all its names")
def _symbols(folder: Path) -> None:
    assert "math.add" in list(of_tensorflow.names_of(of_tensorflow.symbol("math.add")))
    assert of_tensorflow.symbol("no.such") is None
    assert "keras.metrics.mean_squared_error" in list(of_tensorflow.names_of(tf_keras.losses.mse))


@relied_on("tensorflow.traced tensorflow.owner_of", "what the signatures of a SavedModel use")
def _functions(folder: Path) -> None:
    used = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), 0)
    function = tf.function(lambda: used.lookup(tf.constant("a")))
    function.get_concrete_function()
    (concrete,) = of_tensorflow.traced(function)
    owners = [of_tensorflow.owner_of(captured) for captured, _ in concrete.graph.captures]
    assert any(owner is used for owner in owners)


@relied_on("tensorflow.conversion_error tensorflow.lite_schema", "LiteRT files, with where they come from")
def _lite(folder: Path) -> None:
    assert issubclass(of_tensorflow.conversion_error(), Exception)
    schema = of_tensorflow.lite_schema()
    assert callable(schema.ModelT.InitFromPackedBuf)
    assert {"name", "buffer"} <= set(vars(schema.MetadataT()))
    assert "data" in vars(schema.BufferT())
