"""Build: gives models and optimizers that have no variables yet those that a checkpoint is about to fill."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from ckptflow.errors import UsageError
from ckptflow.format.layout import own_name
from ckptflow.state import tf_keras
from ckptflow.state.configs import count_variables, is_built, owner_of
from ckptflow.state.kinds import (
    LAYERS,
    Kind,
    is_distributed,
    is_keras3_model,
    is_on_server,
    is_sharded,
    keras3,
    kind_of,
    raw_variable,
)
from ckptflow.state.tree import RESERVED_PREFIX, Tree, walk
from ckptflow.state.walker import OptimizerNode


def build_missing(tree: Tree, models: dict[str, Any], strategy: Any = None) -> Tree:
    """Builds what is unbuilt in the tree's objects and was built when `models` (of a manifest) was written.

    Keras models are built from their stored build config, optimizers for their model's trainable variables. Returns the
    tree of what is there then. `strategy` is the one that variables on parameter servers were made under. Raises
    `UsageError`, naming the call that is missing, for what cannot be built.
    """
    models = _as_own(tree, models)
    for path, model in tree.models.items():
        described = models.get(path)
        if isinstance(described, dict) and described.get("kind") == "model":
            _build_model(path, model, described)
    tree = _up_to_date(tree)
    for layer in tree.layers:
        _make_states(layer)
    tree = _up_to_date(tree)
    for path, node in tree.optimizers.items():
        described = models.get(path) or _under_another_name(path, node, models)
        if _is_optimizer(described) and described.get("built") and not is_built(node.optimizer):
            _build_optimizer(path, node, described, tree, strategy)
    return _up_to_date(tree)


def _as_own(tree: Tree, models: dict[str, Any]) -> dict[str, Any]:
    """Models of `PerWorker` entries by this worker's own names: the chief described its own, and all are alike."""
    found = dict(models)
    for entry in tree.per_worker:
        of_chief, own = own_name(entry, 0), own_name(entry, tree.worker)
        for path, described in models.items():
            if path == of_chief or path.startswith(f"{of_chief}/"):
                found[own + path.removeprefix(of_chief)] = described
    return found


def _up_to_date(tree: Tree) -> Tree:
    """Walked again only where something was built: a walk of many variables takes longer than reading them back."""
    return walk(tree.state, worker=tree.worker, world_size=tree.world_size) if tree.is_stale() else tree


def _is_optimizer(described: Any) -> bool:
    return isinstance(described, dict) and described.get("kind") == "optimizer"


def _under_another_name(path: str, node: OptimizerNode, models: dict[str, Any]) -> Any:
    """The optimizer's entry where it was saved in the other way: as its model's own, or as an entry."""
    optimizers = [entry for entry in models.values() if _is_optimizer(entry)]
    name = f"{type(node.optimizer).__module__}.{type(node.optimizer).__qualname__}"
    same = [entry for entry in optimizers if entry.get("class") == name]
    return same[0] if len(same) == 1 else None


def _build_model(path: str, model: Any, described: dict[str, Any]) -> None:
    wanted = described.get("variables", 0)
    if not isinstance(wanted, int) or count_variables(model) >= wanted or _all_built(model):
        return
    build_config = described.get("build_config")
    failure: Exception | None = None
    if isinstance(build_config, dict):
        try:
            with _scope(model):
                model.build_from_config(build_config)
                if is_keras3_model(model) and not _all_built(model):
                    _trace(model, build_config.get("input_shape"))
        except Exception as error:  # whatever a user's build() raises
            failure = error
    if count_variables(model) < wanted and not _all_built(model):
        raise UsageError(
            f"{path} ({type(model).__name__}) has {count_variables(model)} of the {wanted} variables saved, "
            f"and its build config cannot make the others; call it once on a batch ({path}(inputs)) before restoring"
        ) from failure


def _make_states(layer: Any) -> None:
    """A stateful layer of tf_keras makes the variables of its state with its first batch; this makes them now."""
    if kind_of(layer) is Kind.TF_KERAS_LAYER and tf_keras.is_stateful(layer):
        states = tf.nest.flatten(layer._states)
        if layer.built and any(state is None for state in states):
            with contextlib.suppress(ValueError, AttributeError):  # its batch size is not known before its first batch
                layer.reset_states()


def _trace(model: Any, input_shape: Any) -> None:
    """Calls a model on symbols: one whose own `build` leaves layers unbuilt has them afterwards."""
    keras = keras3()

    def symbols(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: symbols(inner) for name, inner in shape.items()}
        if any(isinstance(size, (list, tuple, dict)) for size in shape):
            return [symbols(inner) for inner in shape]
        return keras.KerasTensor(shape, dtype=model.input_dtype)

    if input_shape is not None:
        keras.src.backend.compute_output_spec(model.call, symbols(input_shape))


def _all_built(model: Any) -> bool:
    tree = walk({"model": model})
    return all(layer.built for layer in tree.layers)


def _scope(obj: Any) -> Any:
    """The scope of the strategy that a model was made under: its variables must be made under the same one."""
    strategy = getattr(obj, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def _build_optimizer(
    path: str,
    node: OptimizerNode,
    described: dict[str, Any],
    tree: Tree,
    strategy: Any,
) -> None:
    variables = _variables_by_name(described, tree) or _trainable_variables(path, node, tree)
    first, scope = raw_variable(variables[0]), contextlib.nullcontext()
    if is_distributed(first):
        scope = first.distribute_strategy.scope()
    elif is_on_server(variables[0]):
        scope = strategy.scope()
    try:
        with scope:
            if hasattr(node.optimizer, "build"):
                node.optimizer.build(variables)
            else:  # a legacy optimizer of tf_keras
                node.optimizer._create_all_weights(variables)
    except Exception as error:
        raise UsageError(f"{path} cannot be built; call it once on a batch, or {path}.build(variables)") from error


def _variables_by_name(described: dict[str, Any], tree: Tree) -> list[Any]:
    """Those that the checkpoint names, if the state has them all; else none."""
    names = described.get("variables")
    if not isinstance(names, list) or not all(isinstance(name, str) and name in tree.variables for name in names):
        return []
    # Under parameter servers an optimizer knows the parts.
    return [part for name in names for part in _parts(tree.variables[name])]


def _parts(variable: Any) -> list[Any]:
    return list(variable.variables) if is_sharded(variable) else [variable]


def _trainable_variables(path: str, node: OptimizerNode, tree: Tree) -> list[Any]:
    """Those of the model that holds the optimizer, else of the one entry of the state that has any."""
    owner = owner_of(node, tree)
    entries = [obj for name, obj in tree.state.items() if not name.startswith(RESERVED_PREFIX)]
    owners = [owner] if owner is not None else [obj for obj in entries if kind_of(obj) in LAYERS]
    owners = owners or [obj for obj in entries if kind_of(obj) is Kind.TRACKABLE]
    owners = [obj for obj in owners if getattr(obj, "trainable_variables", None)]
    if len(owners) != 1:
        why = f"{len(owners)} entries of state could be its model" if owners else "its model has no variables yet"
        raise UsageError(
            f"{path} is not built and {why}; call {path}.build(model.trainable_variables) before restoring"
        )
    return list(owners[0].trainable_variables)
