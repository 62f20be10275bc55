"""tf-checkpoint, the way in: which checkpoint a path means, and whatever can be wrong with one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf import trackable_object_graph_pb2

import ckptflow
from ckptflow.errors import CheckpointNotFoundError, CorruptCheckpointError, UsageError
from ckptflow.interop.import_ import import_model
from ckptflow.interop.tensorflow.bundle import GRAPH_KEY
from ckptflow.interop.tensorflow.checkpoint import find_prefix, read_bundle, restore_objects
from ckptflow.interop.untrusted import probe
from ckptflow.state import graph_names
from tests.interop.named import commit_tensors

Graph = trackable_object_graph_pb2.TrackableObjectGraph


# Which one is meant


def test_find_prefix(tmp_path: Path) -> None:
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(v=tf.Variable(1.0)), tmp_path / "a", max_to_keep=5)
    paths = [manager.save() for _ in range(2)]
    assert find_prefix(paths[0]) == paths[0]
    assert find_prefix(paths[0] + ".index") == paths[0]
    assert find_prefix(str(tmp_path / "a")) == os.path.realpath(paths[1])
    moved = Path(shutil.move(tmp_path / "a", tmp_path / "b"))
    assert find_prefix(str(moved)) == os.path.realpath(moved / "ckpt-2")
    (moved / "checkpoint").unlink()
    with pytest.raises(UsageError, match=r"ckpt-1\.index.*ckpt-2\.index"):
        find_prefix(str(moved))
    (moved / "ckpt-2.index").unlink()
    assert find_prefix(str(moved)) == str(moved / "ckpt-1")
    for missing in ("nothing", "b/ckpt-2", "b/ckpt-1.data-00000-of-00001"):
        with pytest.raises(CheckpointNotFoundError):
            find_prefix(str(tmp_path / missing))


@pytest.mark.parametrize("named", ["../secret", "/etc/passwd", "a/../../secret"])
def test_the_state_file_cannot_lead_out_of_its_folder(named: str, tmp_path: Path) -> None:
    tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "secret"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    with pytest.raises(CorruptCheckpointError, match="checkpoint names "):
        find_prefix(str(tmp_path / "folder"))


def test_a_state_file_of_anything_else(tmp_path: Path) -> None:
    for text in (b'model_checkpoint_path: ""', b"\xff" * 100, b"x: 3", b"", b'model_checkpoint_path: "\0"'):
        (tmp_path / "checkpoint").write_bytes(text)
        with pytest.raises((CorruptCheckpointError, CheckpointNotFoundError), match="checkpoint"):
            find_prefix(str(tmp_path))
    (tmp_path / "checkpoint").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(CorruptCheckpointError, match="larger than"):
        find_prefix(str(tmp_path))


# Damage

INDEX, DATA = ".index", ".data-00000-of-00001"


def _read_all(prefix: Path) -> dict[str, Any]:
    found = read_bundle(str(prefix))
    return {name: found.read(name).tolist() for name in found.infos}


@pytest.mark.usefixtures("unprobed")
def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    """Or is of no consequence: some bytes of the index are padding."""
    module = tf.Module()
    module.w, module.s = tf.Variable(np.arange(32, dtype=np.float32)), tf.Variable(["a", "bcd"])
    tf.train.Checkpoint(m=module).write(str(tmp_path / "good"))
    good = {end: (tmp_path / f"good{end}").read_bytes() for end in (INDEX, DATA)}
    expected = _read_all(tmp_path / "good")

    def reads(**changed: bytes) -> str:
        for end, data in {**good, **changed}.items():
            (tmp_path / f"bad{end}").write_bytes(data)
        try:
            return "same" if _read_all(tmp_path / "bad") == expected else "different"
        except CorruptCheckpointError as error:
            return "found" if "bad" in str(error) else "unnamed"

    for end in (INDEX, DATA):
        results = []
        for position in range(0, len(good[end]), 3):
            flipped = bytearray(good[end])
            flipped[position] ^= 1 << (position % 8)
            results.append(reads(**{end: bytes(flipped)}))
        assert set(results) <= ({"found"} if end == DATA else {"found", "same"})
        assert results.count("found") > len(results) // 2
        assert {reads(**{end: good[end][:size]}) for size in range(0, len(good[end]), 11)} == {"found"}


def test_a_missing_shard(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(v=tf.Variable(tf.ones([10]))).write(str(tmp_path / "stock"))
    os.unlink(prefix + DATA)
    with pytest.raises(CorruptCheckpointError, match="missing or cut short"):
        read_bundle(prefix)
    with pytest.raises(CorruptCheckpointError):
        restore_objects(prefix, {"v": tf.Variable(tf.zeros([10]))})


def _with_graph(prefix: Path, graph: Any, tensors: dict[str, Any] | None = None) -> str:
    tensors = tensors or {"k": tf.ones([2])}
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=[*tensors, GRAPH_KEY], shape_and_slices=[""] * (len(tensors) + 1),
        tensors=[*tensors.values(), graph],
    )  # fmt: skip
    return str(prefix)


def _chain(length: int, label: str) -> bytes:
    graph = Graph()
    for number in range(length):
        graph.nodes.add().children.add(node_id=number + 1, local_name=label)
    graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key="k")
    return bytes(graph.SerializeToString())


def _edge(child: int, label: str = "x") -> bytes:
    graph = Graph()
    graph.nodes.add().children.add(node_id=child, local_name=label)
    return bytes(graph.SerializeToString())


HOSTILE: dict[str, Any] = {
    "garbage": b"\xff\xfe garbage",
    "no nodes": b"",
    "no string": 3,
    "no scalar": [b"", b""],
    "a child too far": _edge(7),
    "a child below zero": _edge(-1),
    "a label too long": _edge(0, "x" * 5000),
    "a path too long": _chain(3000, "x"),
    "a long path of long labels": _chain(300, "y" * 1000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused(name: str, tmp_path: Path) -> None:
    prefix = _with_graph(tmp_path / "bad", tf.constant(HOSTILE[name]))
    with pytest.raises(CorruptCheckpointError, match="bad"):
        read_bundle(prefix)
    with pytest.raises(CorruptCheckpointError, match="bad"):
        restore_objects(prefix, {"x": tf.Variable([0.0, 0.0])})


def test_names_that_add_up_are_refused(tmp_path: Path) -> None:
    """A thousand tensors below one path of 4,000 characters cost little in the file."""
    graph = Graph()
    for number in range(4):
        graph.nodes.add().children.add(node_id=number + 1, local_name="z" * 1000)
    graph.nodes.add()
    tensors = {f"k{number}": tf.constant(0, tf.int8) for number in range(2000)}
    for number, key in enumerate(tensors):
        graph.nodes[4].children.add(node_id=5 + number, local_name=key)
        graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key=key)
    prefix = _with_graph(tmp_path / "bad", tf.constant(graph.SerializeToString()), tensors)
    assert len(read_bundle(prefix).infos) == 2000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_names, "MAX_CHARACTERS", 2**20)
        with pytest.raises(CorruptCheckpointError, match="too long names"):
            read_bundle(prefix)


def test_a_graph_that_goes_in_circles_is_read(tmp_path: Path) -> None:
    graph = Graph()
    for number in (1, 2):
        node = graph.nodes.add()
        node.children.add(node_id=number, local_name="on")
        node.children.add(node_id=0, local_name="back")
        node.children.add(node_id=0, local_name="root")
    node = graph.nodes.add()
    node.attributes.add(name="VARIABLE_VALUE", checkpoint_key="k")
    node.children.add(node_id=1, local_name="up")
    node.slot_variables.add(original_variable_node_id=2, slot_name="m", slot_variable_node_id=2)
    prefix = _with_graph(tmp_path / "circle", tf.constant(graph.SerializeToString()))
    assert list(read_bundle(prefix).infos) == ["model/on/on"]
    commit_tensors(tmp_path / "run", 0, read_bundle(prefix))
    with ckptflow.open_checkpoint(tmp_path / "run") as opened:
        assert opened["model/on/on"].tolist() == [1, 1]
    ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "out", format="tf-checkpoint")
    assert tf.train.load_variable(str(tmp_path / "out"), "model/on/on/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [1, 1]


def test_a_shape_that_the_data_cannot_fill_takes_no_memory(tmp_path: Path) -> None:
    """An index may say anything: one slice of a huge tensor is enough to have its shape in there."""
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "huge"), tensor_names=["k"], shape_and_slices=["1000000 1000000 0,1:0,1"],
        tensors=[tf.ones([1, 1])],
    )  # fmt: skip
    with pytest.raises(CorruptCheckpointError, match="cut short"):
        read_bundle(str(tmp_path / "huge"))


@pytest.mark.parametrize("how", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened(
    how: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe takes for ever, in whatever process."""
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
    model.save(tmp_path / "saved", save_format="tf")
    prefix = tf.train.Checkpoint(model=model).write(str(tmp_path / "stock"))
    monkeypatch.setattr(probe, "check", lambda *_, **__: pytest.fail("a process would have opened it"))
    names = ("saved_model.pb", "fingerprint.pb", "keras_metadata.pb", "variables/variables.data-00000-of-00001")
    for path in [*(tmp_path / "saved" / name for name in names), Path(f"{prefix}.data-00000-of-00001")]:
        kept = path.rename(tmp_path / "kept")
        how(path)
        if path.name == "saved_model.pb":
            path.with_suffix(".pbtxt").write_text("")  # else it is no SavedModel
        with pytest.raises(CorruptCheckpointError, match=f"{path.name} is not a file"):
            import_model(prefix if path.parent == tmp_path else tmp_path / "saved", tmp_path / "run")
        path.unlink() if how is os.mkfifo else path.rmdir()
        kept.rename(path)
        path.with_suffix(".pbtxt").unlink(missing_ok=True)
