"""The format `tf-checkpoint`: what stock `tf.train.Checkpoint` writes and reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ckptflow.errors import CheckpointNotFoundError, CorruptCheckpointError, StateMismatchError, UsageError
from ckptflow.format import dtypes
from ckptflow.format.object_graph import GraphNode, ObjectGraph, Value, edges, slots_of, tensor_of, values_of
from ckptflow.format.words import some_of
from ckptflow.interop import provenance as provenances
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.tensorflow.bundle import GRAPH_KEY, TensorBundle
from ckptflow.interop.tensorflow.checkpoint_writer import write_tf_checkpoint
from ckptflow.interop.tensorflow.object_graph_proto import SAVE_COUNTER, from_proto, without_shortcuts
from ckptflow.interop.tensors import NamedTensors, TensorInfo
from ckptflow.printable import lines as text_lines
from ckptflow.state.build import build_missing
from ckptflow.state.children import clean
from ckptflow.state.graph import as_children, models_by_graph, numbered_graph
from ckptflow.state.graph_names import Pairs, bound_by_tensorflow, name_values, pair, root_label
from ckptflow.state.kinds import is_normalization, kind_of
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.tree import Tree, walk
from ckptflow.state.walker import MAX_NAME_BYTES
from ckptflow.state.weights import weights_of

__all__ = ["find_prefix", "names_of", "read_bundle", "read_provenance", "restore_objects", "write_tf_checkpoint"]

logger = logging.getLogger("ckptflow")

_VARIABLE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_MAX_STATE_BYTES = 2**20
_NAMES_SHOWN = 20


def read_provenance(prefix: str) -> Provenance | None:
    """Which checkpoint a tf-checkpoint was exported from; None where it was not by ckptflow."""
    bundle = TensorBundle(prefix)
    info = bundle.infos.get(provenances.NAME)
    if info is None or (info.dtype, info.shape) != ("string", ()):
        return None
    return provenances.decode(bundle.read(provenances.NAME).item(), prefix)


def find_prefix(path: str) -> str:
    """The prefix of the checkpoint that a path means.

    A prefix, `PREFIX.index`, a folder with a `checkpoint` file (the newest that it names), or one with a single index.
    Raises `CheckpointNotFoundError` where there is none, `CorruptCheckpointError` where the `checkpoint` file names
    something outside of its folder, and `UsageError` where it is not clear which is meant.
    """
    for prefix in (path, path.removesuffix(".index")):
        if os.path.isfile(f"{prefix}.index"):
            return prefix
    if not os.path.isdir(path):
        raise CheckpointNotFoundError(f"{path}: there is neither {path}.index nor a folder with a checkpoint")
    state_file = os.path.join(path, "checkpoint")
    if os.path.isfile(state_file):
        if os.path.getsize(state_file) > _MAX_STATE_BYTES:
            raise CorruptCheckpointError(f"{state_file} is larger than {_MAX_STATE_BYTES:,} bytes")
        try:
            state = tf.train.get_checkpoint_state(path)
            named = state.model_checkpoint_path if state is not None else ""
            inside = os.path.realpath(named)
        except ValueError as error:
            raise CorruptCheckpointError(f"{state_file} names no checkpoint: {error}") from error
        if not named or os.path.commonpath([os.path.realpath(path), inside]) != os.path.realpath(path):
            raise CorruptCheckpointError(
                f"{state_file} names {named!r}, which is not in its folder; give the checkpoint's prefix instead"
            )
        if not os.path.isfile(f"{inside}.index"):
            raise CheckpointNotFoundError(f"{state_file} names {named}, and there is no {named}.index")
        return inside
    found = sorted(name for name in os.listdir(path) if name.endswith(".index"))
    if len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} checkpoints, say which: {some_of(found, _NAMES_SHOWN)}")
    if not found:
        raise CheckpointNotFoundError(f"{path} holds no checkpoint of TensorFlow's: there is no file named *.index")
    return os.path.join(path, found[0].removesuffix(".index"))


def names_of(proto: Any, keys: Mapping[str, Any] | None = None, *, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """For each key of a checkpoint's tensor the name, and then further ones, that its object graph gives it.

    Names are those that ckptflow's walk gives the same objects, where that follows TensorFlow's graph. `keys` are those
    that the checkpoint has; `prefix` goes before the names of the root's children. Raises `CorruptCheckpointError`.
    """
    return _name_values(from_proto(proto, keys or {}, "object graph"), prefix, "object graph")


def _name_values(graph: ObjectGraph, prefix: str, where: str) -> dict[str, tuple[str, ...]]:
    try:
        return name_values(graph, prefix)
    except ValueError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error


def read_bundle(prefix: str) -> NamedTensors:
    """A checkpoint of TensorFlow's as named tensors, without the program that saved it.

    Names come from its object graph, which goes along, so that a restore finds the objects by it, whatever they are
    called in the state. A root that is a model itself becomes the entry "model". A checkpoint without an object graph
    (of `tf.compat.v1.train.Saver`) keeps its names. Raises `CorruptCheckpointError` for a damaged one.
    """
    return _read(prefix)[0]


def _read(prefix: str) -> tuple[NamedTensors, str]:
    """Also the entry that the root is, "" where it only holds the entries."""
    bundle = TensorBundle(prefix)
    proto = bundle.object_graph()
    if proto is None:
        return named_tensors(bundle, None, _names_by_key(bundle.infos), ""), ""
    graph = from_proto(proto, bundle.infos, f"{prefix}.index")
    if provenances.NAME in bundle.infos:
        graph = without_shortcuts(graph)
    label = root_label(graph)
    return named_tensors(bundle, graph, _name_values(graph, label, f"{prefix}.index"), label), label


def named_tensors(
    bundle: TensorBundle, graph: ObjectGraph | None, names: Mapping[str, tuple[str, ...]], label: str
) -> NamedTensors:
    """The tensors of a bundle under these names (and aliases) by key, with its graph in the same names.

    `label` is the entry that the graph's root is, "" where it only holds the entries.
    """
    nodes = () if graph is None else graph.nodes
    iterators = {key for node in nodes for attribute, _, key in values_of(node) if attribute == "ITERATOR"}
    kept = {key: names[key] for key, info in bundle.infos.items() if key in names and _can_hold(info, key in iterators)}
    keys = {given[0]: key for key, given in kept.items()}
    by_key = {key: given[0] for key, given in kept.items()}
    return NamedTensors(
        infos={name: _info_of(bundle.infos[key]) for name, key in keys.items()},
        read=lambda name: bundle.read(keys[name]),
        aliases={given[0]: given[1:] for given in kept.values() if given[1:]},
        object_graph=None if graph is None else with_names(graph, by_key, label),
        left_out=tuple(sorted(set(bundle.infos) - set(kept) - {GRAPH_KEY, provenances.NAME})),
    )


def _can_hold(info: TensorInfo, is_iterator: bool) -> bool:
    return is_iterator if info.dtype == "variant" else info.dtype in dtypes.names()


def _info_of(info: TensorInfo) -> TensorInfo:
    return TensorInfo("string", ()) if info.dtype == "variant" else info  # an iterator's position: serialized


def _names_by_key(infos: Mapping[str, TensorInfo]) -> dict[str, tuple[str, ...]]:
    """The keys themselves as names, without what TensorFlow adds to each."""
    names: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for key in infos:
        name = clean(key.removesuffix(_VARIABLE_SUFFIX))
        while name in taken:
            name += "_"
        if len(name.encode()) <= MAX_NAME_BYTES:
            taken.add(name)
            names[key] = (name,)
    return names


def with_names(graph: ObjectGraph, names: Mapping[str, str], label: str = "") -> ObjectGraph:
    """A graph of TensorFlow's keys as one of names; what has none is left out. A root that is an object becomes one
    entry below a new root."""
    shift = 1 if label else 0
    nodes: list[str | GraphNode] = []
    for node in graph.nodes:
        values: dict[str, dict[str, Value]] = {}
        for attribute, suffix, key in values_of(node):
            if isinstance(key, str) and key in names:
                values.setdefault(attribute, {})[suffix] = names[key]
        if isinstance(node, str) and values:
            nodes.append(names[node])
            continue
        children = {name: number + shift for name, number in edges(node)}
        slots = tuple((name, of + shift, slot + shift) for name, of, slot in slots_of(node))
        nodes.append(GraphNode(children=as_children(children), values=values, slots=slots))
    if not label:
        entries = dict(edges(nodes[0]))
        return ObjectGraph(nodes=tuple(nodes), model=entries.get("model"), gives_names=True)
    counter = {name: number for name, number in edges(nodes[0]) if name == SAVE_COUNTER}
    root = GraphNode(children={label: 1, **counter})
    return ObjectGraph(nodes=(root, *nodes), model=1, gives_names=True)


def restore_objects(prefix: str, objects: dict[str, Any], *, beside: frozenset[str] = frozenset()) -> None:
    """Gives live objects, by their names in the state, a checkpoint's values, by stock `tf.train.Checkpoint`.

    The checkpoint's root may hold the objects by these names, or the one model by another, or be the model itself (as
    `save_weights` of tf_keras writes it). Unbuilt optimizers are built first. What TensorFlow's graph cannot reach
    (seeds, vocabularies) stays as it is, with a warning that names it.

    Raises `StateMismatchError` where a weight, or anything that TensorFlow's graph reaches, is not in the checkpoint,
    or something in the checkpoint has no place (but for the names `beside`): all in one message, and nothing was
    changed. Raises `CorruptCheckpointError` for a damaged checkpoint.
    """
    found, root = _read(prefix)
    objects = {name: obj.obj if isinstance(obj, PerWorker) else obj for name, obj in objects.items()}
    theirs = found.object_graph
    if theirs is None:
        _restore_stock(prefix, tf.train.Checkpoint(**_trackables(objects)))
        return
    tree = walk(objects)
    tree = build_missing(tree, models_by_graph(tree, theirs))
    ours = numbered_graph(tree)
    pairs = pair(theirs, ours.graph)
    _compare(prefix, found, tree, ours.graph, pairs, pairs.passed_over | beside | {SAVE_COUNTER})
    bound = pairs.theirs()
    _check_order(prefix, theirs, ours.graph, pairs)
    labels = {number: label for label, number in edges(theirs.nodes[0])}
    named = {
        labels.get(bound.get(ours.numbers.get(id(obj), -1), -1), name): obj
        for name, obj in _trackables(objects).items()
    }
    if root and root not in named:
        raise StateMismatchError(f"{prefix} holds one object, and none of {some_of(list(named), _NAMES_SHOWN)} is it")
    _restore_stock(prefix, tf.train.Checkpoint(named[root]) if root else tf.train.Checkpoint(**named))
    if SAVE_COUNTER in objects and SAVE_COUNTER in found.infos:
        objects[SAVE_COUNTER].assign(found.read(SAVE_COUNTER))
    for layer in tree.layers:
        if is_normalization(layer):
            layer.finalize_state()


def _check_order(prefix: str, theirs: ObjectGraph, ours: ObjectGraph, pairs: Pairs) -> None:
    """Raises `StateMismatchError` where TensorFlow would give a value to another object than the one that it is of.

    It goes by the first edge that leads to a variable. That can be a place in an optimizer's list, where another
    variable is now that other layers were frozen when the model was compiled.
    """
    entries = dict(edges(ours.nodes[0])).values()
    bound = pairs.theirs()
    starts = {bound[our]: our for our in entries if our in bound}
    in_order = [(number, starts[number]) for _, number in edges(theirs.nodes[0]) if number in starts]
    by_tensorflow = bound_by_tensorflow(theirs, ours, in_order)
    for number, our in pairs.nodes.items():
        if by_tensorflow.get(number) != our and any(name in pairs.names for name in _tensors_of(theirs.nodes[number])):
            name = next(iter(_tensors_of(theirs.nodes[number])))
            raise StateMismatchError(f"{prefix}: TensorFlow itself would take {name} for another variable")


def _tensors_of(node: str | GraphNode) -> list[str]:
    return [name for _, _, value in values_of(node) if (name := tensor_of(value)) is not None]


def _trackables(objects: Mapping[str, Any]) -> dict[str, Any]:
    return {name: obj for name, obj in objects.items() if kind_of(obj) is not None and name != SAVE_COUNTER}


def _restore_stock(prefix: str, checkpoint: Any) -> None:
    try:
        checkpoint.read(prefix).assert_existing_objects_matched().expect_partial()
    except AssertionError as error:
        raise StateMismatchError(f"{prefix} does not fit: {' '.join(str(error).split())[:2000]}") from error
    except tf.errors.OpError as error:
        raise CorruptCheckpointError(f"{prefix}: {error.message}") from error
    except ValueError as error:  # shapes
        raise StateMismatchError(f"{prefix} does not fit: {error}") from error


def _compare(
    prefix: str, found: NamedTensors, tree: Tree, ours: ObjectGraph, pairs: Pairs, passed_over: frozenset[str]
) -> None:
    """Raises `StateMismatchError`, with every difference, before anything is changed; warns of what nobody can save."""
    matched = {our: their for their, our in pairs.names.items()}
    reached = {tensor_of(value) for node in ours.nodes for _, _, value in values_of(node)}
    weights = {id(weight) for model in tree.models.values() for weight in weights_of(model)}
    lines: list[str] = []
    lost: list[str] = []
    for leaf in tree.leaves:
        their = matched.get(leaf.name)
        if their is not None:
            info = found.infos[their]
            if info.dtype != leaf.dtype:
                lines.append(f"{leaf.name}: dtype {info.dtype} in the checkpoint, {leaf.dtype} in the state")
            if leaf.shape is not None and not tf.TensorShape(leaf.shape).is_compatible_with(info.shape):
                lines.append(f"{leaf.name}: shape {info.shape} in the checkpoint, {leaf.shape} in the state")
        elif leaf.name != SAVE_COUNTER and not leaf.metric:
            is_weight = leaf.name in reached or id(tree.variables.get(leaf.name)) in weights
            (lines if is_weight else lost).append(f"{leaf.name}: in the state, not in the checkpoint")
    lines += [
        f"{name}: in the checkpoint, not in the state"
        for name in sorted(found.infos)
        if name not in pairs.names and name not in passed_over
    ]
    if lines:
        raise StateMismatchError(
            text_lines(
                f"{prefix} does not fit the state; no value was changed.",
                *(f"  {line}" for line in lines),
                "For a warm start, pass partial=True. Layers that a Keras 3 model holds in a list or dict are in no "
                "checkpoint of TensorFlow's.",
            )
        )
    if lost:
        logger.warning("%s: no checkpoint of TensorFlow's has what follows, it is as it was made: %s", prefix,
                       some_of([line.partition(":")[0] for line in lost], _NAMES_SHOWN))  # fmt: skip
