"""tf-checkpoint: key for key and byte for byte what stock `tf.train.Checkpoint` writes; stock restores it, and ours
restores stock's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import ckptflow
from ckptflow.errors import CorruptCheckpointError
from ckptflow.format.object_graph import GraphNode, ObjectGraph, Zeros
from ckptflow.format.spec import TensorSpec
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.tensorflow import checkpoint as tf_checkpoint
from ckptflow.interop.tensorflow import checkpoint_writer as tf_checkpoint_writer
from ckptflow.interop.tensorflow.bundle import GRAPH_KEY, TensorBundle
from ckptflow.interop.tensorflow.object_graph_proto import to_proto
from ckptflow.state.graph import describe_graph
from ckptflow.state.tree import walk
from ckptflow.storage.local import LocalStore
from tests import roots
from tests.interop import tf_states
from tests.interop.stock import run_stock
from tests.interop.tf_states import STATES
from tests.transfer.helpers import FOLDER, ArraySource, write_checkpoint

ITERATORS_ARE_TUNED = True  # see tests.untuned

COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
PROVENANCE = Provenance(
    run_url="s3://bucket/run", run_id="r", folder="000000000001-i0001", step=1, incarnation=1, manifest_sha256="0",
    format="tf-checkpoint", ckptflow="0", exported_at="2026-01-02T03:04:05Z",
)  # fmt: skip


def trained(name: str) -> dict[str, Any]:
    state = STATES[name].make()
    STATES[name].train(state)
    return state


def save(url: Path, state: Any, step: int = 1) -> None:
    with ckptflow.CheckpointManager(url, state) as manager:
        manager.save(step)


def export(url: Path, prefix: Path) -> tuple[str, ...]:
    with ckptflow.open_checkpoint(url) as opened:
        return tf_checkpoint.write_tf_checkpoint(str(prefix), opened, PROVENANCE)


def content(prefix: Any) -> dict[str, tuple[str, tuple[int, ...], Any]]:
    """Everything in a bundle but its graph: dtype, shape, bytes; the rows of tables in the order of their keys."""
    bundle = TensorBundle(str(prefix))
    arrays = {key: bundle.read(key) for key in bundle.infos if key not in (GRAPH_KEY, "ckptflow", COUNTER)}
    for key in [key for key in arrays if key.endswith("table-keys")]:
        values = key.removesuffix("keys") + "values"
        order = np.argsort(arrays[key])
        arrays[key], arrays[values] = arrays[key][order], arrays[values][order]
    return {key: (str(a.dtype), a.shape, a.tolist() if a.dtype == object else a.tobytes()) for key, a in arrays.items()}


def edges(prefix: Any) -> set[tuple[Any, ...]]:
    """The paths in a bundle's graph: for each object with values its keys, by every edge that leads to it."""
    proto = TensorBundle(str(prefix)).object_graph()
    leads = [bool(node.attributes or node.slot_variables) for node in proto.nodes]
    keys = [tuple(sorted((a.name, a.checkpoint_key) for a in node.attributes)) for node in proto.nodes]
    found: set[tuple[Any, ...]] = set()
    for number, node in enumerate(proto.nodes):
        found |= {(number and keys[number], c.local_name, keys[c.node_id]) for c in node.children if leads[c.node_id]}
        for slot in node.slot_variables:
            found.add((slot.slot_name, keys[slot.original_variable_node_id], keys[slot.slot_variable_node_id]))
    return found


# Written


@pytest.mark.parametrize("name", STATES)
def test_it_is_what_stock_writes(name: str, tmp_path: Path) -> None:
    """The same keys, the same bytes under each, the same slots; with only what the one model's root needs on top."""
    state = trained(name)
    stock = tf.train.Checkpoint(**state).save(str(tmp_path / "stock"))
    save(tmp_path / "run", state)
    left_out = export(tmp_path / "run", tmp_path / "ours")
    assert content(tmp_path / "ours") == content(stock)
    assert edges(stock) - edges(tmp_path / "ours") == set()
    more = {label for _, label, _ in edges(tmp_path / "ours") - edges(stock)}
    assert more <= {label for obj in state.values() for label in tf.train.TrackableView.children(obj)}
    assert left_out == tuple(name for name in left_out if "loss_tracker" in name or "metrics/" in name)
    data = [path.name for path in tmp_path.iterdir() if path.name.startswith("ours.data")]
    assert data == ["ours.data-00000-of-00001"]
    assert not [path for path in tmp_path.iterdir() if "parts" in path.name]


def test_a_tf_train_checkpoint_as_the_state(tmp_path: Path) -> None:
    """With its own save_counter, with lists and dicts, and with one inside of it."""
    inner = tf.train.Checkpoint(v=tf.Variable(3.0), rows=[tf.Variable(4), {"a": tf.Variable(5)}])
    more = {"inner": inner, "several": [tf.Variable(1), tf.Variable(2)]}
    checkpoint = tf.train.Checkpoint(**trained("tf_keras custom loop"), **more)
    save(tmp_path / "run", checkpoint)
    stock = checkpoint.write(str(tmp_path / "stock"))
    export(tmp_path / "run", tmp_path / "ours")
    assert content(tmp_path / "ours") == content(stock)
    assert TensorBundle(str(tmp_path / "ours")).read(COUNTER) == TensorBundle(stock).read(COUNTER) == 1


def test_variables_of_a_strategy(tmp_path: Path) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    on_read = tf.VariableSynchronization.ON_READ
    with strategy.scope():
        state = {
            "mirrored": tf.Variable([1.0, 2.0]),
            "sum": tf.Variable(3.0, synchronization=on_read, aggregation=tf.VariableAggregation.SUM),
            "mean": tf.Variable(4.0, synchronization=on_read, aggregation=tf.VariableAggregation.MEAN),
            "generator": tf.random.Generator.from_seed(3),
            "model": tf_states.compiled(tf_keras, lambda: tf_states.legacy.SGD(0.1, momentum=0.9)).make()["model"],
        }
    stock = tf.train.Checkpoint(**state).save(str(tmp_path / "stock"))
    with ckptflow.CheckpointManager(tmp_path / "run", state, strategy=strategy) as manager:
        manager.save(1)
    export(tmp_path / "run", tmp_path / "ours")
    assert content(tmp_path / "ours") == content(stock)


@pytest.mark.parametrize("make", [lambda: tf_keras.optimizers.Adam(0.1), lambda: tf_states.legacy.Adam(0.1)])
def test_sharded_variables_and_their_slots_have_stock_s_keys(make: Any, tmp_path: Path) -> None:
    parts = [tf.Variable(tf.ones([rows, 2]), name=f"w/part_{number}") for number, rows in enumerate((1, 2))]
    module, optimizer = tf.Module(), make()
    module.w = ShardedVariable(parts, name="w")
    tf_states.build(optimizer, parts)
    state = {"net": module, "optimizer": optimizer}
    graph = describe_graph(state, walk(state))
    assert graph is not None
    stock = TensorBundle(tf.train.Checkpoint(**state).save(str(tmp_path / "stock")))
    assert set(to_proto(graph)[1]) == set(stock.infos) - {GRAPH_KEY}


def test_the_components_of_several_workers_come_as_their_aggregate(tmp_path: Path) -> None:
    specs = {how: TensorSpec(how, "float32", (2,), components=how) for how in ("sum", "mean", "first")}
    arrays: dict[str, Any] = dict.fromkeys(specs, np.array([3, 5], np.float32))
    roots.make_root(str(tmp_path / "run"), [1], world_size=2, arrays=arrays, specs=specs)
    assert export(tmp_path / "run", tmp_path / "ours") == ()
    found = {
        key.partition("/")[0]: np.frombuffer(a[2], np.float32).tolist() for key, a in content(tmp_path / "ours").items()
    }
    assert found == {"sum": [6, 10], "mean": [3, 5], "first": [3, 5]}


def test_parts_and_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts: several data files, tensors larger than one cut into slices; stock reads all of it."""
    state = trained("keras") | {"large": tf.Variable(tf.random.normal([3000, 3, 5]))}
    state["column"] = tf.Variable(tf.random.normal([5000]))
    with ckptflow.CheckpointManager(tmp_path / "run", state, shard_bytes=2**16, memory_budget_bytes=2**17) as manager:
        manager.save(1)
    stock = tf.train.Checkpoint(**state).save(str(tmp_path / "stock"))
    monkeypatch.setattr(tf_checkpoint_writer, "PART_BYTES", 2**10)
    export(tmp_path / "run", tmp_path / "ours")
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("ours.data")]) >= 4
    assert content(tmp_path / "ours") == content(stock)


def test_tensors_without_a_graph_go_by_their_names(tmp_path: Path) -> None:
    """What was imported: objects are made up of the parts of the names."""
    arrays: dict[str, Any] = {
        "a/b/c": np.arange(6, dtype=np.float32).reshape(2, 3), "a/b": np.int64(3) * np.ones([], np.int64),
        "a.b/0": np.ones(2, np.int8), "words": np.array([b"x", b""], object),
    }  # fmt: skip
    roots.make_root(str(tmp_path / "run"), [1], arrays=arrays)
    assert export(tmp_path / "run", tmp_path / "ours") == ()
    root, inner = tf.Module(), tf.Module()
    root.b, inner.c = inner, tf.Variable(tf.zeros([2, 3]))
    words = tf.Variable(["", ""])
    tf.train.Checkpoint(a=root, words=words).read(str(tmp_path / "ours")).assert_existing_objects_matched()
    assert inner.c.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert words.numpy().tolist() == [b"x", b""]
    assert tf_checkpoint.read_bundle(str(tmp_path / "ours")).read("a/b").tolist() == 3


def _chain(label: str, length: int) -> ObjectGraph:
    nodes = [GraphNode(children={label: number + 1}) for number in range(length)]
    return ObjectGraph(nodes=(*nodes, "v"))


HOSTILE = {
    "a path too long": _chain("x", 3000),
    "labels too long together": _chain("x" * 1000, 5),
    "not the position of an iterator": ObjectGraph(nodes=(GraphNode(values={"ITERATOR": {"_STATE": "words"}}),)),
    "zeros that cannot be": ObjectGraph(
        nodes=(GraphNode(values={"a": {"": Zeros(dtype="float4_e2m1fn", shape=(2,))}}),)
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_in_a_manifest_is_refused(name: str, tmp_path: Path) -> None:
    specs = [TensorSpec("v", "float32", (2,)), TensorSpec("words", "string", (), dynamic=True)]
    source = ArraySource(specs, [np.ones(2, np.float32), np.array(b"x", object)])
    write_checkpoint(LocalStore(str(tmp_path / "run")), [source], object_graph=HOSTILE[name])
    with pytest.raises(CorruptCheckpointError, match="run"):
        export(tmp_path / "run" / str(FOLDER), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_says_where_it_comes_from(tmp_path: Path) -> None:
    save(tmp_path / "run", trained("variables"))
    export(tmp_path / "run", tmp_path / "ours")
    assert tf_checkpoint.read_provenance(str(tmp_path / "ours")) == PROVENANCE
    stock = tf.train.Checkpoint(w=tf.Variable(1.0)).write(str(tmp_path / "stock"))
    assert tf_checkpoint.read_provenance(stock) is None


# Restored by stock

STOCK = """
import os
import numpy as np, tensorflow as tf
from tests.interop.tf_states import STATES
answer = {}

def check(case, prefix, form, status):
    for name in ("assert_existing_objects_matched", "assert_consumed"):
        try:
            getattr(status, name)()
            answer.setdefault(case, {}).setdefault(form, []).append(name)
        except AssertionError as error:
            answer.setdefault(case, {}).setdefault(form, []).append(str(error)[:300])
    status.expect_partial()

for case, prefix in argument.items():
    state = STATES[case].make()
    check(case, prefix, "entries", tf.train.Checkpoint(**state).restore(prefix))
    tf.train.Checkpoint(**state).write(prefix + "-again")
    if case == "everything":
        answer["answers"] = state["module"].answers()
    if "model" in state:
        model = STATES[case].make()["model"]
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        check(case, prefix, "model and optimizer", checkpoint.restore(prefix))
        tf.train.Checkpoint(model=model).write(prefix + "-beside")
        model = STATES[case].make()["model"]
        check(case, prefix, "root", tf.train.Checkpoint(model).restore(prefix))
        tf.train.Checkpoint(model=model).write(prefix + "-root")
        if case.startswith("tf_keras"):
            model = STATES[case].make()["model"]
            check(case, prefix, "load_weights", model.load_weights(prefix))
            tf.train.Checkpoint(model=model).write(prefix + "-weights")
"""


# The other states have what stock writes (`test_it_is_what_stock_writes`): these are restored by it as well.
RESTORED = ("everything", "keras", "tf_keras", "tf_keras legacy mixed")


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    """Some states, exported and restored by stock in every form; what the asserts said."""
    folder = tmp_path_factory.mktemp("stock")
    prefixes = {}
    answers: list[Any] = []
    for name in RESTORED:
        state = trained(name)
        save(folder / f"{name}-run", state)
        export(folder / f"{name}-run", folder / name)
        prefixes[name] = str(folder / name)
        if name == "everything":
            answers = state["module"].answers()
    return folder, run_stock(STOCK, prefixes), answers


BOTH = ["assert_existing_objects_matched", "assert_consumed"]


@pytest.mark.parametrize("name", RESTORED)
def test_stock_restores_it(name: str, restored: tuple[Path, dict[str, Any], list[Any]]) -> None:
    folder, asserts, _ = restored
    ours = content(folder / name)
    assert asserts[name]["entries"] == BOTH
    assert content(folder / f"{name}-again") == ours
    if "root" not in asserts[name]:
        return
    assert asserts[name]["model and optimizer"] == BOTH
    assert asserts[name]["root"] == BOTH
    for other in ("beside", "root", *(["weights"] if name.startswith("tf_keras") else [])):
        assert content(folder / f"{name}-{other}") == ours
    if name.startswith("tf_keras"):  # it has no place for a save_counter
        matched, consumed = asserts[name]["load_weights"]
        assert matched == BOTH[0]
        assert "save_counter" in consumed


def test_what_comes_next_comes_next(restored: tuple[Path, dict[str, Any], list[Any]]) -> None:
    """The iterator's position, the generator's state, what the tables answer."""
    assert restored[1]["answers"] == restored[2]


def test_the_weights_alone_come_without_what_no_checkpoint_has(tmp_path: Path) -> None:
    def make() -> Any:
        layers = [keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.Adam(0.5), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    saved, into = make(), make()
    saved.optimizer.iterations.assign(7)
    prefix = tf.train.Checkpoint(model=saved, optimizer=saved.optimizer).write(str(tmp_path / "m.ckpt"))
    state = {"model": into, "optimizer": into.optimizer}
    ckptflow.import_model(prefix, tmp_path / "run", model=state, optimizer=False)
    assert all(map(np.array_equal, into.get_weights(), saved.get_weights()))
    assert int(into.optimizer.iterations) == 0


def test_what_has_no_place_in_a_checkpoint_by_names_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `tf.compat.v1.train.Saver` writes it: there whose a tensor is, nothing tells."""
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "v1"), tensor_names=["dense/kernel", "dense/kernel/Adam", "global_step"],
        shape_and_slices=["", "", ""], tensors=[tf.ones([2, 3]), tf.ones([2, 3]), tf.constant(7, tf.int64)],
    )  # fmt: skip
    module = tf.Module()
    module.kernel = tf.Variable(tf.zeros([2, 3]), name="dense/kernel")
    for is_kept in (True, False):
        ckptflow.import_model(tmp_path / "v1", tmp_path / f"run-{is_kept}", model=module, optimizer=is_kept)
        assert module.kernel.numpy().tolist() == [[1, 1, 1]] * 2
        assert "what follows has no place in the state: dense/kernel/Adam, global_step" in caplog.text
        caplog.clear()
