"""TensorFlow's object graph of a state: what is in it, what it never does, and names found again by it."""

from __future__ import annotations

import logging
from typing import Any

import keras
import msgspec
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute import values
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import ckptflow
from ckptflow.format.object_graph import GraphNode, ObjectGraph, Zeros, check_graph, edges, values_of
from ckptflow.state import graph as graph_module
from ckptflow.state.capture import capture
from ckptflow.state.graph import describe_graph, graph_of_names
from ckptflow.state.graph_names import name_values, pair, root_label
from ckptflow.state.tree import as_mapping, walk


def describe(state: Any, **where: Any) -> ObjectGraph:
    """The graph of a state, checked, and only what the tree knows in it."""
    objects = as_mapping(state)
    tree = walk(objects, **where)
    graph = describe_graph(objects, tree)
    assert graph is not None
    check_graph(graph, {leaf.name for leaf in tree.leaves})
    assert not tree.is_stale()
    return graph


def at(graph: ObjectGraph, path: str) -> Any:
    """The node at the end of a path of edges."""
    number = 0
    for label in filter(None, path.split("/")):
        number = dict(edges(graph.nodes[number]))[label]
    return graph.nodes[number]


def tensors(graph: ObjectGraph) -> list[str]:
    return [value for node in graph.nodes for _, _, value in values_of(node) if isinstance(value, str)]


def module(**children: Any) -> Any:
    made = tf.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def model(framework: Any) -> Any:
    made = framework.Sequential([framework.Input((4,)), framework.layers.Dense(3), framework.layers.Dense(2)])
    made.compile(framework.optimizers.Adam(), "mse")
    made.optimizer.build(made.trainable_variables)
    return made


# What is in it


def test_variables_are_their_tensors_names_and_lists_are_lists() -> None:
    shared = tf.Variable(1.0)
    net = module(
        w=shared, again=shared, layers=[tf.Variable(2.0), {"a/b": tf.Variable(3.0)}], nothing=[], call=tf.function(abs)
    )
    graph = describe({"net": net, "step": tf.Variable(0)})
    assert graph.nodes[0] == GraphNode(children={"net": 1, "step": 2})
    assert graph.model == 1
    assert at(graph, "net/w") == at(graph, "net/again") == "net/w"
    assert tensors(graph).count("net/w") == 1
    assert isinstance(at(graph, "net/layers").children, tuple)
    assert at(graph, "net/layers/0") == "net/layers/0"
    (node,) = [node for node in graph.nodes if isinstance(node, GraphNode) and "a/b" in node.children]
    assert node == GraphNode(children={"a/b": graph.nodes.index("net/layers/1/a/b")})
    assert {"nothing", "call"} & set(dict(edges(at(graph, "net")))) == set()


def test_tables_iterators_and_generators() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, empty_key=-1, deleted_key=-2)
    iterator = iter(tf.data.Dataset.range(3))
    generator = tf.random.Generator.from_seed(1)
    graph = describe({"table": table, "dense": dense, "iterator": iterator, "generator": generator})
    assert at(graph, "table").values == {"table": {"-keys": "table/keys", "-values": "table/values"}}
    assert at(graph, "iterator").values == {"ITERATOR": {"_STATE": "iterator/position"}}
    assert at(graph, "generator/_state_var") == "generator/state_var"
    assert "dense" not in dict(edges(graph.nodes[0]))
    assert graph.model is None


@pytest.mark.parametrize("framework", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_layer_with_a_vocabulary_has_what_stock_expects_of_it(framework: Any) -> None:
    text = framework.layers.TextVectorization(output_mode="tf_idf")
    text.adapt(tf.constant(["a b", "b c"]))
    graph = describe({"text": text})
    lookup = at(graph, "text/_lookup_layer")
    assert at(graph, "text/_lookup_layer/idf_weights") == "text/lookup_layer/idf_weights"
    empty = {"-keys": Zeros(dtype="string", shape=(0,)), "-values": Zeros(dtype="int64", shape=(0,))}
    assert at(graph, "text/_lookup_layer/token_counts").values == {"table": empty}
    assert set(dict(edges(lookup))) == {"idf_weights", "token_counts", "token_document_counts", "num_documents"}


@pytest.mark.parametrize("framework", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_the_one_model_is_marked_however_the_state_is_given(framework: Any) -> None:
    made = model(framework)
    alone = describe({"model": made})
    assert alone.model == 1
    assert tensors(describe(made)) == tensors(alone)
    assert set(tensors(describe(tf.train.Checkpoint(model=made)))) == {*tensors(alone), "save_counter"}
    both = describe({"model": made, "optimizer": made.optimizer})
    assert at(both, "optimizer") == at(both, "model/optimizer")
    assert both.model == dict(edges(both.nodes[0]))["model"]
    assert describe({"a": made, "b": model(framework)}).model is None
    assert describe({"a": made, "module": module(v=tf.Variable(1.0))}).model == 1


def test_a_sharded_variable_is_one_and_its_slots_are() -> None:
    values_of_parts = ([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]])
    parts = [tf.Variable(value, name=f"w/part_{number}") for number, value in enumerate(values_of_parts)]
    sharded = ShardedVariable(parts, name="w")
    optimizer = tf_keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(list(sharded.variables))
    graph = describe({"net": module(w=sharded), "optimizer": optimizer})
    assert at(graph, "net/w") == "net/w"
    assert at(graph, "optimizer/_variables/1") == at(graph, "optimizer/momentums/0") == "optimizer/momentum/net/w"
    optimizer = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    optimizer._create_all_weights(list(sharded.variables))
    graph = describe({"net": module(w=sharded), "optimizer": optimizer})
    assert at(graph, "net/w") == "net/w"
    ((name, of, slot),) = at(graph, "optimizer").slots
    assert (name, graph.nodes[of], graph.nodes[slot]) == ("momentum", "net/w", "optimizer/momentum/net/w")


def test_an_entry_of_each_worker_is_in_it_only_where_there_is_one() -> None:
    state = {"v": tf.Variable(1.0), "data": ckptflow.PerWorker(iter(tf.data.Dataset.range(3)))}
    assert at(describe(state), "data").values == {"ITERATOR": {"_STATE": "data/worker-0/position"}}
    assert dict(edges(describe(state, world_size=2).nodes[0])) == {"v": 1}


def test_python_state_and_what_is_attached_are_not_in_it() -> None:
    class Plain:
        def get_state(self) -> Any:
            return 1

        def set_state(self, state: Any) -> None: ...

    objects = {"v": tf.Variable(1.0), "plain": Plain(), "ckptflow.fit": tf.Variable(2)}
    assert describe_graph(objects, walk(objects)) == ObjectGraph(nodes=(GraphNode(children={"v": 1}), "v"))


def test_it_stays_small() -> None:
    """Per variable: its name, the number where it hangs, and little more."""
    net = module(layers=[module(kernel=tf.Variable(0.0), bias=tf.Variable(0.0)) for _ in range(1000)])
    graph = describe({"net": net})
    data = msgspec.json.encode(graph)
    assert len(data) - sum(map(len, tensors(graph))) < 30 * 2000
    assert msgspec.json.decode(data, type=ObjectGraph) == graph


# What it never does


def test_it_reads_no_variable_and_starts_no_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even asking a variable that is kept per replica for an attribute that it lacks would start one."""
    on_read = tf.VariableSynchronization.ON_READ
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        kept = tf.Variable(1.0, synchronization=on_read, aggregation=tf.VariableAggregation.SUM)
        layers = [tf_keras.layers.Dense(2), tf_keras.layers.BatchNormalization()]
        made = tf_keras.Sequential([tf_keras.Input((3,)), *layers])
        made.compile(tf_keras.optimizers.legacy.Adam(), "mse")
        made.optimizer._create_all_weights(made.trainable_variables)
    state = {"model": made, "kept": kept}
    tree = walk(state)

    def refuse(self: Any, *arguments: Any, **more: Any) -> Any:
        raise AssertionError(f"{type(self).__name__} was asked: {arguments}")

    for name in ("_get", "_get_cross_replica", "value", "read_value", "numpy"):
        monkeypatch.setattr(values.SyncOnReadVariable, name, refuse)
    monkeypatch.setattr(values.DistributedVariable, "__getattr__", refuse, raising=False)
    with pytest.raises(AssertionError, match="was asked"):
        hasattr(kept, "anything_missing")
    graph = describe_graph(state, tree)
    assert graph is not None
    assert at(graph, "kept") == "kept"
    assert len(at(graph, "model/optimizer").slots) == 8
    assert {leaf.name for leaf in tree.leaves if not leaf.metric} == set(tensors(graph))


def test_asking_early_hides_nothing_later() -> None:
    """An optimizer of tf_keras answers for ever what it answered first, and a model is asked before it is trained."""
    made = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
    made.compile(tf_keras.optimizers.Adam(), "mse")
    assert "_momentums" not in dict(edges(at(describe({"model": made}), "model/optimizer")))
    made.optimizer.build(made.trainable_variables)
    assert "_momentums" in dict(edges(at(describe({"model": made}), "model/optimizer")))
    assert "_momentums" in tf.train.TrackableView.children(made.optimizer)


class Broken(tf.Module):  # type: ignore[misc]
    """An object that TensorFlow cannot ask for its children; `walk` has seen it before that."""

    is_broken = False

    def __init__(self) -> None:
        super().__init__()
        self.inner = tf.Variable(1.0)

    def _trackable_children(self, *arguments: Any, **more: Any) -> Any:
        if self.is_broken:
            raise RuntimeError("no")
        return super()._trackable_children(*arguments, **more)


def test_an_object_that_raises_is_left_out_alone(caplog: pytest.LogCaptureFixture) -> None:
    state = {"net": module(bad=Broken(), good=tf.Variable(1.0))}
    tree = walk(state)
    state["net"].bad.is_broken = True
    with caplog.at_level(logging.INFO, "ckptflow"):
        graph = describe_graph(state, tree)
    assert graph is not None
    assert tensors(graph) == ["net/good"]
    assert "Broken" in caplog.text


def test_it_never_fails_a_save(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("whatever")

    state = {"v": tf.Variable(1.0)}
    with ckptflow.CheckpointManager(tmp_path, state) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(graph_module, "numbered", fail)
            manager.save(1)
            manager.wait()
        assert "ZeroDivisionError" in caplog.text
        manager.save(2)
    with ckptflow.open_checkpoint(tmp_path, 1) as opened:
        assert opened.manifest.object_graph is None
        assert opened["v"] == 1
    with ckptflow.open_checkpoint(tmp_path, 2) as opened:  # it is asked for again
        assert opened.manifest.object_graph == ObjectGraph(nodes=(GraphNode(children={"v": 1}), "v"))


def test_a_graph_that_does_not_fit_the_checkpoint_does_not_fail_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ckptflow.state.capture.describe_graph", lambda *_: ObjectGraph(nodes=(GraphNode(), "other")))
    with ckptflow.CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}) as manager:
        manager.save(1)
    with ckptflow.open_checkpoint(tmp_path) as opened:
        assert opened.manifest.object_graph is None
    assert "without its object graph" in caplog.text


def test_one_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(graph_module, "MAX_CHARACTERS", 10)
    state = {"a name of some length": tf.Variable(1.0)}
    assert describe_graph(state, walk(state)) is None
    assert "too large" in caplog.text


def test_it_is_made_once_per_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"v": tf.Variable(1.0)}
    tree = walk(state)
    first = capture(tree, is_chief=True).object_graph
    monkeypatch.setattr("ckptflow.state.capture.describe_graph", None)
    assert first is not None
    assert capture(tree, is_chief=True).object_graph is first


# From names, and names from it


def test_a_graph_of_names() -> None:
    graph = graph_of_names(["a/0", "a/1", "a/1/x", "b", "/", "c//d"])
    check_graph(graph, {"a/0", "a/1", "a/1/x", "b", "c//d"})
    assert at(graph, "a/0") == "a/0"
    assert at(graph, "a/1") == GraphNode(children={"x": 4}, values={"VARIABLE_VALUE": {"": "a/1"}})
    assert at(graph, "c/d") == "c//d"
    assert dict(edges(graph.nodes[0])).keys() == {"a", "b", "c"}


def test_names_are_given_in_the_order_of_the_walk() -> None:
    optimizer = GraphNode(children={"_variables": 6, "_iterations": 5, "_momentums": 7, "_trainable_variables": 8})
    graph = ObjectGraph(
        nodes=(
            GraphNode(children={"model": 1}),
            GraphNode(children={"optimizer": 2, "_dense": 3, "again": 3}),
            optimizer,
            GraphNode(children={"_kernel": 4, "_private": 9, "private": 10}),
            "k", "it", GraphNode(children=(5, 11)), GraphNode(children=(11,)), GraphNode(children=(4,)), "p", "q", "m",
        )
    )  # fmt: skip
    names = name_values(graph)
    assert names["k"][0] == "model/dense/kernel"
    assert names["p"][0] == "model/dense/_private"
    assert names["q"][0] == "model/dense/private"
    assert names["it"][0] == "model/optimizer/iterations"
    assert names["m"][0] == "model/optimizer/momentum/dense/kernel"
    assert all(len(given) == 1 for given in names.values())


def test_names_that_clash_are_told_apart() -> None:
    graph = ObjectGraph(nodes=(GraphNode(children={"a/": 1, "a": 2, "/a": 3}), "x", "y", "z"))
    assert name_values(graph) == {"x": ("a",), "y": ("a_1",), "z": ("a_2",)}


def test_what_the_root_is() -> None:
    def root(**children: int) -> ObjectGraph:
        return ObjectGraph(nodes=(GraphNode(children=children), "v"))

    assert root_label(root(model=1, save_counter=1)) == ""
    assert root_label(root(anything=1, root=0)) == "model"
    assert root_label(root(**{"layer_with_weights-0": 1})) == "model"
    assert root_label(root(_functional=1)) == "model"
    assert root_label(root(iter=1, decay=1)) == "optimizer"


def test_tensors_are_found_again_by_the_edges() -> None:
    inner = GraphNode(children={"w": 2, "more": 3})
    theirs = ObjectGraph(nodes=(GraphNode(children={"net": 1, "old": 4}), inner, "1", "2", "3"))
    ours = ObjectGraph(nodes=(GraphNode(children={"net": 1, "new": 3}), GraphNode(children={"w": 2}), "W", "N"))
    assert pair(theirs, ours).names == {"1": "W"}
    renamed = ObjectGraph(nodes=(GraphNode(children={"model": 1}), *ours.nodes[1:]), model=1)
    assert pair(theirs, renamed).names == {"1": "W"}
    root = ObjectGraph(nodes=(inner, GraphNode(), "1", "2"))
    assert pair(root, renamed).names == {"1": "W"}
    assert pair(root, ours).names == {}


def test_no_tensor_is_found_twice_and_other_values_are_no_match() -> None:
    theirs = ObjectGraph(
        nodes=(GraphNode(children={"a": 1, "b": 2, "t": 3}), "1", "2", GraphNode(values={"table": {"-keys": "3"}}))
    )
    ours = ObjectGraph(
        nodes=(
            GraphNode(children={"a": 1, "b": 1, "t": 2}),
            "A",
            GraphNode(values={"table": {"-keys": Zeros(dtype="int8", shape=())}}),
        )
    )
    assert pair(theirs, ours).names == {"1": "A"}
    assert pair(theirs, ours).passed_over == {"3"}
