"""The format `tf-checkpoint`: what stock `tf.train.Checkpoint` writes and reads."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

from ckptflow.errors import CheckpointNotFoundError, CorruptCheckpointError, UsageError
from ckptflow.format import dtypes
from ckptflow.format.object_graph import GraphNode, ObjectGraph, Value, edges, slots_of, tensor_of, values_of
from ckptflow.format.offer import Offer, misfit_error, offer_of_captured
from ckptflow.format.words import some_of
from ckptflow.interop import provenance as provenances
from ckptflow.interop.decisions import (
    is_of_optimizer,
    optimizers_as_a_whole,
    optimizers_in,
    other_class,
    without_optimizers,
)
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.tensorflow.bundle import GRAPH_KEY, TensorBundle
from ckptflow.interop.tensorflow.checkpoint_writer import write_tf_checkpoint
from ckptflow.interop.tensorflow.object_graph_proto import SAVE_COUNTER, from_proto, without_shortcuts
from ckptflow.interop.tensors import CapturedTensors, NamedTensors, TensorInfo
from ckptflow.places.names import listed
from ckptflow.state.assign import Comparison, Verdict
from ckptflow.state.build import build_missing
from ckptflow.state.children import clean
from ckptflow.state.graph import as_children, numbered_graph
from ckptflow.state.graph_names import name_values, root_label
from ckptflow.state.kinds import Kind, kind_of, raw_variable
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.private.tf_keras import NAME, inner_optimizer
from ckptflow.state.put import put, reader_of
from ckptflow.state.tree import Tree, walk
from ckptflow.state.walker import MAX_NAME_BYTES
from ckptflow.state.weights import weights_of

__all__ = ["find_prefix", "names_of", "read_bundle", "read_provenance", "restore_objects", "write_tf_checkpoint"]

logger = logging.getLogger("ckptflow")

_VARIABLE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_MAX_STATE_BYTES = 2**20
_NAMES_SHOWN = 20
_HINT = (
    "For a warm start, pass partial=True. Layers that a Keras 3 model holds in a list or dict are in no checkpoint of "
    "TensorFlow's."
)


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
    found = [name for name in listed(path) if name.endswith(".index")]
    if len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} checkpoints; name one: {some_of(found, _NAMES_SHOWN)}")
    if not found:
        raise CheckpointNotFoundError(f"{path} has no TensorFlow checkpoint: there is no file named *.index")
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
    bundle = TensorBundle(prefix)
    proto = bundle.object_graph()
    if proto is None:
        return named_tensors(bundle, None, _names_by_key(bundle.infos), "")
    graph = from_proto(proto, bundle.infos, f"{prefix}.index")
    if provenances.NAME in bundle.infos:
        graph = without_shortcuts(graph)
    label = root_label(graph)
    return named_tensors(bundle, graph, _name_values(graph, label, f"{prefix}.index"), label)


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


def restore_objects(
    prefix: str, objects: dict[str, Any], *, optimizer: bool = True, beside: frozenset[str] = frozenset()
) -> None:
    """Gives live objects, by their names in the state, a checkpoint's values, as `tf.train.Checkpoint` would.

    The checkpoint's root may hold the objects by these names, or the one model by another, or be the model itself (as
    `save_weights` of tf_keras writes it). Unbuilt optimizers are built first. What TensorFlow's graph cannot reach
    (seeds, vocabularies) stays as it is, with a warning that names it.

    An optimizer that does not fit, where all else does, stays as it is, with a warning; without `optimizer` all do.
    Raises `StateMismatchError` where a weight, or anything that TensorFlow's graph reaches, is not in the checkpoint,
    or something in the checkpoint has no place (but for the names `beside`): all in one message, and nothing was
    changed. A checkpoint of TensorFlow 1 does not tell whose a tensor is: what has no place is warned of. Raises
    `CorruptCheckpointError` for a damaged checkpoint.
    """
    found = read_bundle(prefix)
    objects = {name: obj.obj if isinstance(obj, PerWorker) else obj for name, obj in objects.items()}
    if found.object_graph is None:  # by the variables' own names, which TensorFlow alone knows
        _restore_stock(prefix, _trackables(objects), optimizer=optimizer)
        return
    captured = CapturedTensors(replace(found, metrics=found.metrics | beside | _counter_of(found.object_graph)))
    decide = partial(_decide, optimizer)
    put(offer_of_captured(captured, prefix, "checkpoint"), reader_of(captured), objects, decide=decide)


def _counter_of(graph: ObjectGraph) -> set[str]:
    """The name of the count of saves. Where the root is the model itself, it is below the model's."""
    number = dict(edges(graph.nodes[0])).get(SAVE_COUNTER)
    values = () if number is None else values_of(graph.nodes[number])
    return {name for _, _, value in values if (name := tensor_of(value)) is not None}


def _decide(optimizer: bool, tree: Tree, offer: Offer, found: Comparison) -> Verdict:
    """Nothing may differ but an optimizer as a whole, and what no checkpoint of TensorFlow's has of the state."""
    weights = {id(weight) for model in tree.models.values() for weight in weights_of(model)}
    reached = {tensor_of(value) for node in numbered_graph(tree).graph.nodes for _, _, value in values_of(node)}
    reached |= {name for name, variable in tree.variables.items() if id(variable) in weights}
    lost = found.missing.keys() - reached - found.differing
    ours, theirs = list(tree.optimizers), optimizers_in(offer.models)
    if optimizer:
        other = other_class(tree, offer, found)
        verdict = optimizers_as_a_whole(found, ours, theirs, may_lack=lost, other=other)
    else:
        verdict = without_optimizers(found, ours, theirs, may_lack=lost)
    lost -= verdict.passed_over
    if not lost:
        return replace(verdict, hint=_HINT)
    text = (
        f"no checkpoint of TensorFlow's has what follows, it is as it was made: {some_of(sorted(lost), _NAMES_SHOWN)}"
    )
    return replace(verdict, said=(*verdict.said, text), hint=_HINT)


def _trackables(objects: Mapping[str, Any]) -> dict[str, Any]:
    return {name: obj for name, obj in objects.items() if kind_of(obj) is not None and name != SAVE_COUNTER}


def _restore_stock(prefix: str, objects: Mapping[str, Any], *, optimizer: bool) -> None:
    infos = TensorBundle(prefix).infos
    tree, unbuilt = _with_optimizers(walk(objects), infos) if optimizer else (walk(objects), [])
    keys = {name: raw_variable(variable).name.partition(":")[0] for name, variable in tree.variables.items()}
    weights = {name: key for name, key in keys.items() if not is_of_optimizer(name, tree.optimizers)}
    problems = _problems_by_names(tree, weights, infos)
    if problems:
        raise misfit_error(prefix, problems, hint="A checkpoint of TensorFlow 1 goes by the variables' own names.")
    of_optimizers = [*unbuilt, *_problems_by_names(tree, keys, infos)] if optimizer else []
    if of_optimizers:
        logger.warning(
            "%s: the optimizer's state does not match and is not restored, it starts fresh: %s",
            prefix,
            of_optimizers[0],
        )
    wanted = keys if optimizer and not of_optimizers else weights
    taken = {name: key for name, key in wanted.items() if key in infos}
    try:  # of variables alone that are there: whatever TensorFlow does not find, it says once it has changed the others
        variables = [raw_variable(tree.variables[name]) for name in taken]
        tf.train.Checkpoint(variables=variables).read(prefix).assert_existing_objects_matched().expect_partial()
    except tf.errors.OpError as error:
        raise CorruptCheckpointError(f"{prefix}: {error.message}") from error
    lost = {leaf.name for leaf in tree.leaves if not (leaf.metric or is_of_optimizer(leaf.name, tree.optimizers))}
    lost -= taken.keys()
    if lost:
        logger.warning("%s does not have %s: they stay as created", prefix, some_of(sorted(lost), _NAMES_SHOWN))
    more = sorted(infos.keys() - set(taken.values()))
    if more:
        logger.warning("%s: what follows has no place in the state: %s", prefix, some_of(more, _NAMES_SHOWN))


def _with_optimizers(tree: Tree, infos: Collection[str]) -> tuple[Tree, list[str]]:
    """The tree with its optimizers built, and what keeps those from it that the checkpoint has tensors of."""
    problems = []
    for path, node in tree.optimizers.items():
        inner = inner_optimizer(node.optimizer)
        name = str(getattr(inner, "name", None) or vars(inner).get(NAME, ""))
        is_keras3 = kind_of(inner) is Kind.KERAS3_OPTIMIZER
        try:  # those of tf_keras call their variables after the scope that their first step is in
            with contextlib.nullcontext() if is_keras3 else tf.name_scope(name):
                tree = build_missing(tree, {path: {"kind": "optimizer", "built": True}})
        except UsageError as error:
            problems += [str(error)] if any(key.startswith(f"{name}/") for key in infos) else []
    return tree, problems


def _problems_by_names(tree: Tree, keys: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> list[str]:
    """What a checkpoint of TensorFlow 1 has not, or otherwise, of what TensorFlow would read from it: `keys` are the
    variables' own names, by those in the state."""
    reached = {tensor_of(value) for node in numbered_graph(tree).graph.nodes for _, _, value in values_of(node)}
    problems = []
    for name, key in keys.items():
        raw = raw_variable(tree.variables[name])
        dtype, shape = raw.dtype.base_dtype.name, tuple(raw.shape.as_list())
        if key not in infos:
            is_needed = name in reached or is_of_optimizer(name, tree.optimizers)
            problems += [f"{name}: there is no {key} in the checkpoint"] if is_needed else []
        elif infos[key].shape != shape and None not in shape:
            problems.append(f"{name}: shape {list(infos[key].shape)} in the checkpoint, {list(shape)} in the state")
        elif infos[key].dtype != dtype:
            problems.append(f"{name}: dtype {infos[key].dtype} in the checkpoint, {dtype} in the state")
    twice = {key for key, count in Counter(keys.values()).items() if count > 1 and key in infos}
    return [*problems, *(f"{name}: another one is called {key} as well" for name, key in keys.items() if key in twice)]
