"""Build: gives models and optimizers that have no variables yet those that a checkpoint is about to fill."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from ckptflow.errors import UsageError
from ckptflow.format.layout import own_name
from ckptflow.state import tf_keras
from ckptflow.state.configs import count_variables, inputs_of, owner_of, part_of
from ckptflow.state.kinds import (
    LAYERS,
    Kind,
    is_built,
    is_distributed,
    is_keras3_model,
    is_on_server,
    is_sharded,
    keras3,
    kind_of,
    raw_variable,
)
from ckptflow.state.limits import limited, machine_bytes
from ckptflow.state.private import tensorflow as private
from ckptflow.state.private.keras import trace
from ckptflow.state.private.tf_keras import inner_optimizer, make_slots
from ckptflow.state.tree import RESERVED_PREFIX, Tree, walk
from ckptflow.state.walker import OptimizerNode
from ckptflow.state.weights import trainable_of

_FREE_BYTES, _RATIO = 2**30, 32  # a model may have more than its checkpoint, and each replica a copy


def build_missing(
    tree: Tree,
    models: dict[str, Any],
    strategy: Any = None,
    *,
    names: Collection[str] = frozenset(),
    stored_bytes: int | None = None,
) -> Tree:
    """Builds what is unbuilt in the tree's objects and was built when `models` (of a manifest) was written.

    Keras models are built from their stored build config, optimizers for their model's trainable variables. Returns the
    tree of what is there then. `strategy` is the one that variables on parameter servers were made under, `names` are
    those of the checkpoint's tensors. Raises `UsageError`, naming the call that is missing, for what cannot be built,
    and where the inputs described make a model far larger than the `stored_bytes` that there are to put into it.
    """
    models = _as_own(tree, models)
    for path, model in tree.models.items():
        described = models.get(path)
        if isinstance(described, dict) and described.get("kind") == "model":
            _build_within(path, model, described, stored_bytes)
    tree = _up_to_date(tree)
    for layer in tree.layers:
        _make_states(layer)
    tree = _up_to_date(tree)
    for path, node in tree.optimizers.items():
        their_path = path if path in models else _another_path(node, models)
        entry: Any = models.get(their_path)
        if not _is_optimizer(entry) or is_built(node.optimizer) or _is_around_another(node.optimizer):
            continue
        if entry.get("built") or tf_keras.has_hypers(node.optimizer, their_path, names):
            _build_optimizer(path, node, entry, tree, strategy)
        elif tf_keras.is_legacy(node.optimizer) and f"{their_path}/iterations" in names:
            _ = node.optimizer.iterations  # made when it is first asked for
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


def _is_around_another(optimizer: Any) -> bool:
    """Whether it is an optimizer of TensorFlow 1 with no slots but those of the one in it, which is built by itself."""
    return kind_of(optimizer) is Kind.TF1_OPTIMIZER and inner_optimizer(optimizer) is not optimizer


def _another_path(node: OptimizerNode, models: dict[str, Any]) -> str:
    """The optimizer's path where it was saved in the other way: as its model's own, or as an entry; "" if unknown."""
    name = f"{type(node.optimizer).__module__}.{type(node.optimizer).__qualname__}"
    same = [path for path, entry in models.items() if _is_optimizer(entry) and entry.get("class") == name]
    return same[0] if len(same) == 1 else ""


def _build_within(path: str, model: Any, described: dict[str, Any], stored_bytes: int | None) -> None:
    """As `_build_model`, with a limit in proportion to what is stored: nobody vouches for the shapes described."""
    way = f"Call the model that your code makes once on a batch ({path}(inputs)) before restoring"
    most = None if stored_bytes is None else most_bytes(stored_bytes, machine_bytes())
    with limited(most, path, way):
        _build_model(path, model, described)


def most_bytes(stored_bytes: int, memory_bytes: int) -> int:
    """What the variables of a model may take: more than this machine's memory only where about as much is stored, as of
    a model on parameter servers or on large GPUs."""
    return _FREE_BYTES + min(_RATIO * stored_bytes, max(memory_bytes, 2 * stored_bytes))


def _build_model(path: str, model: Any, described: dict[str, Any]) -> None:
    wanted = described.get("variables", 0)
    if not isinstance(wanted, int) or count_variables(model) >= wanted or _all_built(model):
        return
    failures = []
    with _scope(model):
        for attempt in (_build_from_config, _call_on_symbols):
            try:
                attempt(model, described)
            except Exception as error:  # whatever a user's build() or call() raises
                failures.append(error)
            if _all_built(model):
                return
    if count_variables(model) < wanted:
        raise UsageError(
            f"{path} ({type(model).__name__}) has {count_variables(model)} of the {wanted} variables saved, "
            f"and its build config cannot make the others; call it once on a batch ({path}(inputs)) before restoring"
        ) from (failures[0] if failures else None)


def _build_from_config(model: Any, described: dict[str, Any]) -> None:
    build_config = part_of(described, "build_config")
    if isinstance(build_config, dict):
        model.build_from_config(build_config)


def _call_on_symbols(model: Any, described: dict[str, Any]) -> None:
    """A model whose own `build` leaves layers unbuilt, or which has none, has them afterwards."""
    if not is_keras3_model(model):
        arguments = inputs_of(described)
        if arguments is not None:
            model(*tf_keras.symbols(arguments))
        return
    build_config = part_of(described, "build_config")
    if isinstance(build_config, dict):
        _trace(model, build_config.get("input_shape"))


def _make_states(layer: Any) -> None:
    """A stateful layer of tf_keras makes the variables of its state with its first batch; this makes them now."""
    is_stateful = kind_of(layer) is Kind.TF_KERAS_LAYER and tf_keras.is_stateful(layer)
    if is_stateful and layer.built and any(state is None for state in tf_keras.states_of(layer)):
        with contextlib.suppress(ValueError, AttributeError):  # its batch size is not known before its first batch
            layer.reset_states()


def _trace(model: Any, input_shape: Any) -> None:
    keras = keras3()

    def symbols(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: symbols(inner) for name, inner in shape.items()}
        if any(isinstance(size, (list, tuple, dict)) for size in shape):
            return [symbols(inner) for inner in shape]
        return keras.KerasTensor(shape, dtype=model.input_dtype)

    if input_shape is not None:
        trace(model, symbols(input_shape))


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
            if kind_of(node.optimizer) is Kind.TF1_OPTIMIZER:
                private.make_slots(node.optimizer, variables)
            elif hasattr(node.optimizer, "build"):
                node.optimizer.build(variables)
            else:  # a legacy optimizer of tf_keras
                make_slots(node.optimizer, variables)
    except Exception as error:
        raise UsageError(f"{path} cannot be built; {_way_to_build(path, node.optimizer)}") from error


def _way_to_build(path: str, optimizer: Any) -> str:
    if hasattr(optimizer, "build"):
        return f"call {path}.build(model.trainable_variables) before restoring"
    return f"apply it once ({path}.apply_gradients) before restoring"  # it has no other way


def _variables_by_name(described: dict[str, Any], tree: Tree) -> list[Any]:
    """Those that the checkpoint names, if the state has them all; else none."""
    names = described.get("variables")
    if not isinstance(names, list) or not all(isinstance(name, str) and name in tree.variables for name in names):
        return []
    # Under parameter servers an optimizer knows the parts.
    return [part for name in names for part in _parts(tree.variables[name])]


def _parts(variable: Any) -> list[Any]:
    return list(variable.variables) if is_sharded(variable) else [variable]


def _is_of_an_optimizer(name: str, tree: Tree) -> bool:
    return any(name.startswith(f"{optimizer}/") for optimizer in tree.optimizers)


def _trainable_variables(path: str, node: OptimizerNode, tree: Tree) -> list[Any]:
    """Those of the model that holds the optimizer, else of the one entry that has any, else those that are entries."""
    owner = owner_of(node, tree)
    entries = [obj for name, obj in tree.state.items() if not name.startswith(RESERVED_PREFIX)]
    owners = [owner] if owner is not None else [obj for obj in entries if kind_of(obj) in LAYERS]
    owners = owners or [obj for obj in entries if kind_of(obj) is Kind.TRACKABLE]
    owners = [obj for obj in owners if trainable_of(obj)]
    if len(owners) != 1:
        if not owners:
            loose = [v for name, v in tree.variables.items() if v.trainable and not _is_of_an_optimizer(name, tree)]
            if loose:
                return loose
            raise UsageError(f"{path} is not built and its model has no variables yet; call the model once on a batch")
        raise UsageError(
            f"{path} is not built and {len(owners)} entries of state could be its model; "
            + _way_to_build(path, node.optimizer)
        )
    return trainable_of(owners[0])
