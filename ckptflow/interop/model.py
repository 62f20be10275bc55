"""A checkpoint's values in a live model: one that user code made, or one built again from what the manifest says."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.format.manifest import Manifest
from ckptflow.format.offer import Offer, offer_of
from ckptflow.format.spec import Bytes1D, Target, Wanted
from ckptflow.format.words import some_of
from ckptflow.interop.decisions import all_of_the_state
from ckptflow.interop.formats import TENSOR_FORMATS, Format
from ckptflow.interop.keras.config import build_with_optimizer
from ckptflow.interop.keras.optimizer import variables_of
from ckptflow.interop.untrusted.model_probe import check_builds
from ckptflow.reading import OpenCheckpoint
from ckptflow.state.assign import Comparison, Verdict, match
from ckptflow.state.configs import NO_KERAS
from ckptflow.state.graph import numbered_graph
from ckptflow.state.graph_names import pair
from ckptflow.state.kinds import LAYERS, is_tf_keras_model, kind_of
from ckptflow.state.leaves import PartLeaf
from ckptflow.state.private.keras import CALIBRATED
from ckptflow.state.private.kerases import layers_in, own_variables
from ckptflow.state.put import build, fill, rehearse
from ckptflow.state.tree import Tree, walk
from ckptflow.state.weights import trainable_of, weights_of

logger = logging.getLogger("ckptflow")

_NAMES_SHOWN = 10
_TRIM_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with a checkpoint's values. `described` is the manifest's entry of it, or None; `tree` names its tensors,
    `entry` being the model's path; `left_out` are the checkpoint's names that have no place in it."""

    model: Any
    entry: str
    described: dict[str, Any] | None
    tree: Tree
    left_out: tuple[str, ...]


def load_model(
    opened: OpenCheckpoint,
    model: Any = None,
    *,
    entry: str | None = None,
    imports: tuple[str, ...] = (),
    unsafe: bool = False,
) -> LoadedModel:
    """A model with every weight as the checkpoint has it; with its optimizer, where the checkpoint has one.

    `model` is filled if it is given; else one is built from the manifest's configs. `entry` is its path in the state,
    needed where there are several. Raises `UnsupportedStateError` where there is no model or none can be built,
    `StateMismatchError` where a weight of it is not in the checkpoint, `UsageError` where it is not clear which it is.
    """
    manifest = opened.manifest
    path = _path_of(manifest, model, entry, opened.checkpoint.url)
    described = manifest.models.get(path)
    is_ours = model is None
    optimizer_path = _path_of_optimizer(manifest, path)
    stored_bytes = opened.stored_bytes()  # not what the manifest claims
    if model is None:
        if not isinstance(described, dict):
            raise UnsupportedStateError(f"{opened.checkpoint.url}: {path!r} is not a Keras model. " + _what_can())
        if not unsafe:  # else its code runs here anyway
            check_builds(manifest.models, path, optimizer_path, stored_bytes, imports=imports)
        model = build_with_optimizer(
            manifest.models, path, optimizer_path, unsafe=unsafe, imports=imports, stored_bytes=stored_bytes
        )
    state = {path: model}
    if optimizer_path and not optimizer_path.startswith(f"{path}/") and getattr(model, "optimizer", None) is not None:
        state[optimizer_path] = model.optimizer
    offer = replace(offer_of(manifest), origin=opened.checkpoint.url, size_bytes=stored_bytes)
    tree = build(walk(state), offer)
    rename = _names_by_place(tree, offer) if is_ours else None
    restore = match(tree, offer, rename=rename, decide=partial(_decide, model, is_ours))
    rehearse(restore, opened.read_into)
    fill(restore, lambda wanted, target: opened.read_into(wanted, _Frugal(target)))
    return LoadedModel(model, path, described if isinstance(described, dict) else None, tree, restore.unexpected)


def not_held(loaded: LoadedModel, chosen: Format) -> tuple[str, ...]:
    """What of a model's own tensors a format has no place for: optimizer, vocabularies, seeds, states of RNNs, and the
    adapters (LoRA) that Keras adds to the kernel when it writes a model; what that changes is logged."""
    weights = {id(variable) for variable in _weights_of(loaded.model)} - _added_to_kernels(loaded.model, chosen)
    weights -= _not_written(loaded.model, chosen)
    is_kept_of_optimizer = _optimizer_rule(loaded, chosen)
    names = []
    for leaf in loaded.tree.leaves:
        if leaf.metric or id(loaded.tree.variables.get(leaf.name)) in weights:
            continue
        if isinstance(leaf, PartLeaf):
            is_kept = "vocabularies" in chosen.keeps
        elif any(leaf.name.startswith(f"{path}/") for path in loaded.tree.optimizers):
            is_kept = is_kept_of_optimizer(leaf.name)
        else:
            is_kept = "other" in chosen.keeps
        if not is_kept:
            names.append(leaf.name)
    return tuple(names)


def _added_to_kernels(model: Any, chosen: Format) -> set[int]:
    """The adapters of a model, by identity, in a format into which Keras writes their sum with the kernel instead."""
    if chosen.name not in ("keras", "weights"):
        return set()
    adapted = [layer for layer in layers_in(model) if getattr(layer, "lora_enabled", False)]
    rounded = [layer.name for layer in adapted if getattr(layer, "quantization_mode", None) is not None]
    if rounded:
        logger.warning(
            "Keras adds the adapters (LoRA) of %s to their quantized kernels and rounds the sums again: the %s file "
            "predicts otherwise than the checkpoint. SavedModel, tf-checkpoint and safetensors store them unchanged",
            some_of(rounded, _NAMES_SHOWN),
            chosen.name,
        )
    variables = [
        value for layer in adapted for name, value in vars(layer).items() if name.lstrip("_").startswith("lora_")
    ]
    return {id(variable) for variable in variables if hasattr(variable, "shape")}


def _not_written(model: Any, chosen: Format) -> set[int]:
    """What Keras leaves out of its files of layers that GPTQ or AWQ has calibrated, by identity; then it refuses to
    read them back."""
    if chosen.name not in ("keras", "weights"):
        return set()
    lacking: dict[str, set[int]] = {}
    for layer in layers_in(model):
        if getattr(layer, "quantization_mode", None) in CALIBRATED and not getattr(layer, "lora_enabled", False):
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            own = {id(each) for which in ("trainable", "non_trainable") for each in own_variables(layer, which)}
            if len(store) < len(own):
                lacking[layer.name] = own - set(map(id, store.values()))
    if lacking:
        logger.warning(
            "Keras does not write all of %s, calibrated by GPTQ or AWQ, and does not read the %s file back: "
            "SavedModel, tf-checkpoint and safetensors store them unchanged",
            some_of(sorted(lacking), _NAMES_SHOWN),
            chosen.name,
        )
    return set().union(*lacking.values())


def _optimizer_rule(loaded: LoadedModel, chosen: Format) -> Callable[[str], bool]:
    """Whether a format keeps the optimizer's tensor of that name."""
    optimizer = getattr(loaded.model, "optimizer", None)
    is_old = is_tf_keras_model(loaded.model)
    if "optimizer" not in chosen.keeps and not (chosen.name in ("saved-model", "hub") and is_old):
        return lambda name: False
    in_config = {f"{path}/{hyper}" for path in loaded.tree.optimizers for hyper in _HYPERPARAMETERS}
    if is_old and not hasattr(optimizer, "build") and chosen.name in ("keras", "weights"):  # tf_keras's legacy ones
        return lambda name: name in in_config and chosen.name == "keras"
    kept = {id(variable) for variable in variables_of(optimizer)}
    return lambda name: name in in_config or id(loaded.tree.variables.get(name)) in kept


# What an optimizer of tf_keras holds in variables that it does not count, and writes into its config.
_HYPERPARAMETERS = ("learning_rate", "optimizer/learning_rate", "decay", "momentum", "rho", "beta_1", "beta_2")


def _weights_of(model: Any) -> Any:
    return weights_of(model) or getattr(model, "variables", None) or ()


def _names_by_place(tree: Tree, offer: Offer) -> dict[str, str]:
    """The names in the tree of what has another in the checkpoint, by its place in the object graph of either.

    A layer whose `get_config` is not its own may not be given its name back: Keras makes it one, and goes by places.
    """
    found = match(tree, offer, partial=True)
    missing, unexpected = set(found.missing), set(found.unexpected)
    if offer.object_graph is None or not (missing and unexpected):
        return {}
    names = pair(offer.object_graph, numbered_graph(tree).graph).names
    return {their: ours for their, ours in names.items() if their in unexpected and ours in missing}


class _Frugal:
    """Takes values over as a restore does, and gives the memory that the old ones leave back to the system.

    glibc keeps it, and where it does not fit the next value the process grows to twice the model (seen with tensors of
    16 MiB: 2.1 times the model, with this 1.2). Training would have to touch that memory anew; an export ends.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._since_trim_bytes = 0
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def open(self, wanted: Wanted) -> Bytes1D:
        memory = self._target.open(wanted)
        self._since_trim_bytes += memory.nbytes
        return memory

    def finish(self, wanted: Wanted) -> None:
        self._target.finish(wanted)
        if self._trim is not None and self._since_trim_bytes > _TRIM_BYTES:
            self._trim(0)
            self._since_trim_bytes = 0


def _path_of(manifest: Manifest, model: Any, entry: str | None, url: str) -> str:
    """Where in the state the model is."""
    models = [path for path, described in manifest.models.items() if _kind(described) == "model"]
    models = [path for path in models if not any(path.startswith(f"{above}/") for above in models)]
    if model is not None and kind_of(model) not in LAYERS:  # a module, which may hold models
        models = []
    names = [tensor.name for tensor in manifest.tensors]
    if entry is not None:
        if not any(name == entry or name.startswith(f"{entry}/") for name in names):
            there = some_of(sorted({name.partition("/")[0] for name in names}), _NAMES_SHOWN)
            raise UsageError(f"{url} has no entry {entry!r}; it has {there or 'none'}")
        return entry
    if len(models) == 1:
        return models[0]
    if models:
        raise UsageError(f"{url} has several models; choose one with entry=: {some_of(models, _NAMES_SHOWN)}")
    if model is None:
        raise UnsupportedStateError(f"{url} has no Keras model, and model= was not given. " + _what_can())
    optimizers = {path for path, described in manifest.models.items() if _kind(described) == "optimizer"}
    entries = sorted({name.partition("/")[0] for name in names} - optimizers - {"save_counter"})
    if len(entries) != 1:
        raise UsageError(f"{url} has the entries {some_of(entries, _NAMES_SHOWN)}; say by entry= which the model is")
    return entries[0]


def _what_can() -> str:
    return f"These formats can store any state: {', '.join(TENSOR_FORMATS)}"


def _kind(described: object) -> object:
    return described.get("kind") if isinstance(described, dict) else None


def _path_of_optimizer(manifest: Manifest, path: str) -> str | None:
    """The model's own optimizer, or the one that was an entry by itself in the state, beside the model."""
    optimizers = [other for other, described in manifest.models.items() if _kind(described) == "optimizer"]
    if f"{path}/optimizer" in optimizers:
        return f"{path}/optimizer"
    paths = [
        other
        for other in optimizers
        if not other.startswith((f"{path}/", *(f"{each}/" for each in optimizers)))
        and manifest.models[other].get("framework") != NO_KERAS
    ]
    return paths[0] if len(paths) == 1 and _kind(manifest.models.get(path)) == "model" else None


def check_order(loaded: LoadedModel) -> None:
    """Raises `UsageError` where a model's optimizer was built for its variables in another order, or for some of them.

    Keras's files hold slots by their order, and are read in the model's.
    """
    optimizer = getattr(loaded.model, "optimizer", None)
    node = next((node for node in loaded.tree.optimizers.values() if node.optimizer is optimizer), None)
    names = {id(variable): name for name, variable in loaded.tree.variables.items()}
    wanted = [names.get(id(variable)) for variable in trainable_of(loaded.model)]
    if node is not None and node.built_for and list(node.built_for) != wanted:
        raise UsageError(
            "the optimizer of model= was built for other variables than model.trainable_variables, or for these in "
            "another order, and a file of Keras's would assign its slots to other variables. Leave model= out, or "
            "compile it again"
        )


def _decide(model: Any, is_ours: bool, tree: Tree, offer: Offer, found: Comparison) -> Verdict:
    """No weight, table or vocabulary may keep the value that it was made with; an optimizer may be new."""
    weights = {id(variable) for variable in _weights_of(model)}
    needed = {name for name, variable in tree.variables.items() if id(variable) in weights}
    needed |= {leaf.name for leaf in tree.leaves if isinstance(leaf, PartLeaf)}
    hint = "The model was built from its config: hand it over (model=), made by your code" if is_ours else ""
    return all_of_the_state(found, may_lack=found.missing.keys() - needed, hint=hint)
