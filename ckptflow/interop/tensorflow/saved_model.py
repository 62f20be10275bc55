"""Reading a SavedModel or Hub module: its variables as named tensors, as a tf_keras model, or into the user's model.

Only variables are read, never a function run, unless the user trusts the source with `unsafe`. A SavedModel of our own
says by which names its tensors went in the run (`assets.extra/`); in any other a tensor is named by its path in the
object graph, as the walk names those of a `tf.Module` with the same attributes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import tensorflow as tf

from ckptflow.decoding import decode_json
from ckptflow.errors import CorruptCheckpointError, UnknownVersionError, UsageError
from ckptflow.format import dtypes
from ckptflow.format.dtypes import Array
from ckptflow.format.object_graph import VARIABLE, edges, values_of
from ckptflow.format.offer import Offer, misfit_error, offer_of_captured
from ckptflow.format.words import some_of
from ckptflow.interop.decisions import (
    in_halves,
    of_optimizers,
    optimizers_as_a_whole,
    optimizers_in,
    other_class,
    without_optimizers,
    without_scratch,
)
from ckptflow.interop.keras.described import Described, difference
from ckptflow.interop.provenance import EXTRA
from ckptflow.interop.tensorflow.bundle import TensorBundle, files_of
from ckptflow.interop.tensorflow.checkpoint import named_tensors, names_of
from ckptflow.interop.tensorflow.keras_saved_model import (
    METADATA,
    check_vocabularies,
    model_by_metadata,
    optimizer_in,
    root_of,
)
from ckptflow.interop.tensorflow.keras_saved_model import is_keras_saved_model as is_keras_saved_model
from ckptflow.interop.tensorflow.object_graph_proto import from_proto
from ckptflow.interop.tensorflow.reusable import MAX_NAMES_BYTES, NAMES_FILE, STATE_PREFIX, Names
from ckptflow.interop.tensorflow.reusable import write_saved_model as write_saved_model
from ckptflow.interop.tensors import CapturedTensors, NamedTensors
from ckptflow.interop.untrusted import probe
from ckptflow.interop.untrusted.keras_allowed import keras_module
from ckptflow.interop.untrusted.model_probe import check_model
from ckptflow.interop.untrusted.private_copy import check_regular, open_regular
from ckptflow.state.assign import Comparison, Verdict
from ckptflow.state.children import clean
from ckptflow.state.kinds import is_keras3_model, keras_models, raw_variable
from ckptflow.state.leaves import PartLeaf
from ckptflow.state.private.tensorflow import fingerprint_pb2, fingerprinting, parse_saved_model
from ckptflow.state.put import put, reader_of
from ckptflow.state.tree import Tree, walk
from ckptflow.state.weights import weights_of

_MAX_PB_BYTES = 2**31 - 1  # protobuf's own bound
# Children of the root that name variables by position. What has another path goes by that one.
_LISTS = frozenset(
    {"variables", "trainable_variables", "non_trainable_variables", "_all_variables", "named_variables"}
    | {"regularization_losses", "resources", "_misc_assets", "keras_api"}
)
_OF_METRICS = "/keras_api/metrics/"  # where tf_keras keeps those that a model was compiled with
_SHOWN = 20
_NO_STATE = ("function", "bare_concrete_function", "constant", "captured_tensor", "asset")


@dataclass(frozen=True)
class _Opened:
    """A SavedModel: its object graph with the kinds of its nodes, its variables, and, if it is our own, their names."""

    folder: str
    object_graph: Any  # a SavedObjectGraph; None for a SavedModel of TensorFlow 1
    variables: TensorBundle | None  # None where it has none
    names: Names | None


# Reading without code


def read_saved_model(folder: str, state: Mapping[str, Any] | None = None) -> NamedTensors:
    """The variables of a SavedModel, each read when it is asked for; of our own also its vocabularies and the like.

    What Keras 3's `model.export()` wrote has an order and no names: with `state`, which holds one Keras 3 model with as
    many variables, they are named as these are there. Raises `UsageError` for a folder that is no SavedModel,
    `CorruptCheckpointError` for a damaged one.
    """
    opened = _open(folder)
    if opened.names is not None:
        return _read_own(opened, opened.names)
    models = keras_models(state or {})
    if state is not None and len(models) == 1 and is_keras3_model(models[0]):
        listed = _listed(opened)
        if listed and len(listed) == len(models[0].variables):
            return _in_order(opened, models[0], state, listed)
    return _read_any(opened)


def _read_any(opened: _Opened) -> NamedTensors:
    """By the object graph, which goes along: a restore finds the objects by it."""
    bundle = opened.variables
    if bundle is None:
        return NamedTensors({}, _no_tensor)
    proto, names = _graph_of(opened), _paths_in(opened, with_lists=True)
    if proto is None:
        return named_tensors(bundle, None, names, "")
    found = named_tensors(bundle, from_proto(proto, bundle.infos, opened.folder), names, "model")
    return replace(found, metrics=frozenset(name for name in found.infos if _OF_METRICS in name))


def _graph_of(opened: _Opened) -> Any:
    """The object graph of the variables, without what holds none; None for a SavedModel of TensorFlow 1."""
    proto = opened.variables.object_graph() if opened.variables is not None else None
    if proto is None or opened.object_graph is None:
        return None
    stateless = {
        number for number, node in enumerate(opened.object_graph.nodes) if node.WhichOneof("kind") in _NO_STATE
    }
    _drop_children(proto.nodes, lambda child: child.node_id in stateless or child.local_name == "signatures")
    return proto


def _paths_in(opened: _Opened, *, with_lists: bool) -> dict[str, tuple[str, ...]]:
    """The names of each variable, by its key: its paths in the graph. What can be reached only through one of the lists
    of all has those names, `with_lists`, or is left out."""
    infos = opened.variables.infos if opened.variables is not None else {}
    proto = _graph_of(opened)
    if proto is None:  # the keys are the variables' names
        return {key: (f"model/{clean(key)}",) for key in infos}
    everything = names_of(proto, infos, prefix="model") if with_lists else {}
    _drop_children(proto.nodes[:1], lambda child: child.local_name in _LISTS)
    names = names_of(proto, infos, prefix="model")
    taken = {name for given in names.values() for name in given}
    for key, given in everything.items():
        if key not in names:
            names[key] = tuple(name for name in given if name not in taken)
            taken.update(given)
    return {key: given for key, given in names.items() if given}


def _drop_children(nodes: Any, is_unwanted: Callable[[Any], bool]) -> None:
    for node in nodes:
        kept = [child for child in node.children if not is_unwanted(child)]
        if len(kept) < len(node.children):
            del node.children[:]
            node.children.extend(kept)


def _read_own(opened: _Opened, names: Names) -> NamedTensors:
    extra = os.path.join(opened.folder, EXTRA)
    places: dict[str, tuple[TensorBundle, str]] = {}
    for keys, bundle in (
        (names.variables, opened.variables),
        (names.state, _bundle(os.path.join(extra, STATE_PREFIX))),
    ):
        for name, key in keys.items():
            if bundle is None or key not in bundle.infos:
                raise CorruptCheckpointError(f"{opened.folder}: {name!r} is not in it, its {NAMES_FILE} says it is")
            places[name] = bundle, key
    return NamedTensors(
        infos={name: bundle.infos[key] for name, (bundle, key) in places.items()},
        read=lambda name: places[name][0].read(places[name][1]),
        aliases={name: names.aliases[name] for name in places if name in names.aliases},
        metrics=frozenset(names.metrics) & places.keys(),
        models=names.models,
    )


def _no_tensor(name: str) -> Array:
    raise KeyError(name)


# Reading as a tf_keras model


def read_keras_saved_model(folder: str, *, unsafe: bool = False, imports: tuple[str, ...] = ()) -> Any:
    """The tf_keras model that a SavedModel of tf_keras holds, with its optimizer's state, which tf_keras itself leaves.

    Nothing of its graph is run, and only what is known is made, as `keras_trust` says; with `unsafe`, tf_keras loads
    it. Raises `UsageError` where tf_keras is missing, or no model can be made so; `CorruptCheckpointError` for a
    damaged one, `StateMismatchError` where it does not hold all of its own model.
    """
    opened = _open(folder)
    if unsafe:
        model = _loaded_by_keras(folder)
        _put(folder, _read_any(opened), {"model": model}, is_strict=False)
        return model
    root = root_of(folder)
    check_model(
        "ckptflow.interop.tensorflow.saved_model:read_keras_saved_model",
        folder,
        _files(folder),
        {key: root.get(key) for key in ("class_name", "config")},  # what it was compiled with may lack
        "tf_keras",
        imports=imports,
        arguments={},
    )
    model = model_by_metadata(root, folder, imports)
    if opened.names is None:
        tensors, state = _read_any(opened), {"model": model}
    else:
        tensors, state = _read_own(opened, opened.names), {opened.names.path: model}
    check_vocabularies(folder, state, tensors.infos)
    _put(folder, tensors, state)
    return model


def _loaded_by_keras(folder: str) -> Any:
    try:
        return keras_module("tf_keras").models.load_model(folder)
    except (tf.errors.OpError, OSError) as error:
        raise CorruptCheckpointError(f"{folder}: tf_keras cannot read the model: {error}") from error
    except UsageError:
        raise
    except Exception as error:  # whatever a class's from_config raises
        raise UsageError(
            f"{folder}: tf_keras cannot build the model: {type(error).__name__}: {error}. Where a class is not known, "
            "name the module that registers it by imports= (--import)"
        ) from error


# Reading into a model


def load_saved_model_into(folder: str, model: Any, *, optimizer: bool = True) -> None:
    """Gives `model` the values of a SavedModel of it; its optimizer too if `optimizer`, where all of it fits, or a
    warning that this starts fresh.

    Variables go together by the names of the run, for our own; by their order in `variables` for what Keras 3's
    `model.export()` wrote; else by their path in the object graph. Raises `StateMismatchError` with every variable of
    either side that the other has not, or with another shape, and with every vocabulary that does not fit; no value is
    changed then.
    """
    opened = _open(folder)
    if opened.names is not None:
        _put(folder, _read_own(opened, opened.names), {opened.names.path: model}, optimizer=optimizer)
        return
    state = {"model": model}
    listed = _listed(opened) if is_keras3_model(model) else []
    if not listed:
        _put(folder, _read_any(opened), state, optimizer=optimizer, described=optimizer_in(folder))
        return
    if len(listed) != len(model.variables):
        there = f"it has {len(listed)} variables in order, as Keras's model.export() writes them"
        raise misfit_error(
            folder,
            [f"{there}, and the model has {len(model.variables)}"],
            hint="Take what fits by names: rename={name there: name in the model}, with partial=True.",
        )
    _put(folder, _in_order(opened, model, state, listed), state, optimizer=optimizer)


def _listed(opened: _Opened) -> list[str]:
    """The keys of the variables in the root's list of them, in order."""
    bundle = opened.variables
    proto = bundle.object_graph() if bundle is not None else None
    if bundle is None or proto is None:
        return []
    graph = from_proto(proto, bundle.infos, opened.folder)
    number = dict(edges(graph.nodes[0])).get("variables")
    children = {} if number is None else dict(edges(graph.nodes[number]))
    ordered = [children.get(str(position)) for position in range(len(children))]
    values = [value for number in ordered if number is not None for value in values_of(graph.nodes[number])]
    return [key for attribute, suffix, key in values if (attribute, suffix) == (VARIABLE, "") and isinstance(key, str)]


def _in_order(opened: _Opened, model: Any, state: Mapping[str, Any], listed: list[str]) -> NamedTensors:
    """What Keras 3's `model.export()` lists as the variables, under the names that the walk gives the model's as many;
    and what is in none of its lists, by its path."""
    bundle = opened.variables
    if bundle is None:
        return NamedTensors({}, _no_tensor)
    found = {id(raw_variable(variable)): name for name, variable in walk(state).variables.items()}
    names = {found[id(raw_variable(variable))]: key for variable, key in zip(model.variables, listed, strict=True)}
    for key, given in _paths_in(opened, with_lists=False).items():
        if key not in listed and given[0] not in names and bundle.infos[key].dtype in dtypes.names():
            names[given[0]] = key
    return NamedTensors({name: bundle.infos[key] for name, key in names.items()}, lambda name: bundle.read(names[name]))


def _put(
    folder: str,
    tensors: NamedTensors,
    state: Mapping[str, Any],
    *,
    optimizer: bool = True,
    is_strict: bool = True,
    described: Described | None = None,
) -> None:
    """Gives the state the values, one tensor in memory at a time; builds what is unbuilt.

    Nothing may lack or be left over but an optimizer as a whole, and what a SavedModel does not have; without
    `is_strict`, of the rest comes what there is.
    """

    def decide(tree: Tree, offer: Offer, found: Comparison) -> Verdict:
        ours, theirs = list(tree.optimizers), optimizers_in(offer.models)
        lost = _lost(tree, is_by_graph=offer.object_graph is not None) & (found.missing.keys() - found.differing)
        found = without_scratch(tree, found) if is_strict else of_optimizers(found, ours, theirs)
        if optimizer:
            told = [difference(described, model) for model in state.values() if described is not None]
            other = other_class(tree, offer, found) or next(iter(told), None)
            verdict = optimizers_as_a_whole(found, ours, theirs, may_lack=lost, other=other)
        else:
            verdict = without_optimizers(found, ours, theirs, may_lack=lost)
        left = lost | in_halves(tree, lost)
        said = (f"does not have all of {some_of(sorted(left), _SHOWN)}: they stay as created",) if left else ()
        return replace(verdict, said=(*verdict.said, *said), passed_over=verdict.passed_over | left)

    captured = CapturedTensors(tensors)
    offer = offer_of_captured(captured, folder, "SavedModel")
    put(offer, reader_of(captured), state, partial=not is_strict, decide=decide)


def _lost(tree: Tree, *, is_by_graph: bool) -> set[str]:
    """What a SavedModel may lack: vocabularies and tables, which are constants in most, and what TensorFlow's object
    graph does not have of a Keras model: seeds, states of RNNs."""
    lost = {leaf.name for leaf in tree.leaves if isinstance(leaf, PartLeaf)}
    if is_by_graph and tree.models:
        weights = {id(weight) for model in tree.models.values() for weight in weights_of(model)}
        of_models, of_optimizers = (tuple(f"{path}/" for path in paths) for paths in (tree.models, tree.optimizers))
        found = [name for name, each in tree.variables.items() if id(each) not in weights]
        lost |= {name for name in found if name.startswith(of_models) and not name.startswith(of_optimizers)}
    return lost


# Opening


def _open(folder: str) -> _Opened:
    pb, prefix = os.path.join(folder, "saved_model.pb"), os.path.join(folder, "variables", "variables")
    if not any(os.path.isfile(path) for path in (pb, f"{pb}txt")):
        raise UsageError(f"{folder} is no SavedModel: it has no saved_model.pb")
    check_regular(_files(folder), folder)
    probe.check("ckptflow.interop.tensorflow.saved_model:read_all", folder, _files(folder), what=probe.BUNDLE)
    graphs = _parse(folder, pb)
    graph = next((graph for graph in graphs if graph.HasField("object_graph_def")), None)
    object_graph = graph.object_graph_def if graph is not None else None
    bundle = _bundle(prefix)
    if bundle is None and object_graph is not None:
        count = sum(node.WhichOneof("kind") == "variable" for node in object_graph.nodes)
        if count:
            raise CorruptCheckpointError(f"{folder} has {count} variables, and {prefix}.index is missing")
    return _Opened(folder, object_graph, bundle, _read_names(os.path.join(folder, EXTRA, NAMES_FILE)))


def _files(folder: str) -> list[str]:
    """What is read of a SavedModel, and some that may not be there."""
    names = ("saved_model.pb", "saved_model.pbtxt", "fingerprint.pb", METADATA)
    prefixes = (os.path.join(folder, "variables", "variables"), os.path.join(folder, EXTRA, STATE_PREFIX))
    bundles = [files_of(prefix) for prefix in prefixes if os.path.isfile(f"{prefix}.index")]
    return [*(os.path.join(folder, name) for name in names), *(file for files in bundles for file in files)]


def read_all(folder: str) -> None:
    """Reads what there is of a SavedModel as its readers do. For a process of its own: it may die of it."""
    found = (_open(folder).variables, _bundle(os.path.join(folder, EXTRA, STATE_PREFIX)))
    for bundle in (each for each in found if each is not None):
        for key in bundle.infos:
            bundle.read(key)
    read_saved_model(folder)
    if is_keras_saved_model(folder):
        root_of(folder)


def _parse(folder: str, pb: str) -> Any:
    """Its meta graphs. TensorFlow's own reader checks no checksum of `saved_model.pb`, so we do."""
    if os.path.isfile(pb) and os.path.getsize(pb) > _MAX_PB_BYTES:
        raise CorruptCheckpointError(f"{pb} is larger than any saved_model.pb")
    try:
        graphs = parse_saved_model(folder).meta_graphs
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{folder}: saved_model.pb cannot be read: {error}") from error
    if not graphs:
        raise CorruptCheckpointError(f"{folder}: saved_model.pb holds no graph")
    if os.path.isfile(os.path.join(folder, "fingerprint.pb")) and os.path.isfile(pb):
        _check_fingerprint(folder)
    return graphs


def _check_fingerprint(folder: str) -> None:
    stored, actual = fingerprint_pb2.FingerprintDef(), fingerprint_pb2.FingerprintDef()
    try:
        stored.ParseFromString(fingerprinting.ReadSavedModelFingerprint(folder))
        actual.ParseFromString(fingerprinting.CreateFingerprintDef(folder))
    except Exception as error:  # its errors, and protobuf's, have no common class
        raise CorruptCheckpointError(f"{folder}: fingerprint.pb cannot be read: {error}") from error
    if stored.saved_model_checksum != actual.saved_model_checksum:
        raise CorruptCheckpointError(
            f"{folder}: saved_model.pb does not match the checksum in fingerprint.pb. If it was edited on purpose, "
            "delete fingerprint.pb"
        )


def _bundle(prefix: str) -> TensorBundle | None:
    return TensorBundle(prefix) if os.path.isfile(f"{prefix}.index") else None


def _read_names(path: str) -> Names | None:
    if not os.path.isfile(path):
        return None
    try:
        with open_regular(path) as file:
            data = file.read(MAX_NAMES_BYTES + 1)
        if len(data) > MAX_NAMES_BYTES:
            raise ValueError(f"longer than {MAX_NAMES_BYTES:,} bytes")
        names = decode_json(data, Names)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read: {error}") from error
    if names.version != 1:
        raise UnknownVersionError(f"{path}: version {names.version} is not known to this ckptflow; upgrade ckptflow")
    return names
