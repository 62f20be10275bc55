"""The children of tf_keras objects, and of TensorFlow 1's optimizers, after which its legacy ones were made.

TensorFlow's object graph, and what it lacks there: states of recurrent layers, and slots.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import Any

import tensorflow as tf

from ckptflow.state.children import (
    Children,
    attributes,
    graph_children,
    layer_labels,
    singular,
    strip_underscores,
    untracked,
)
from ckptflow.state.kinds import (
    Kind,
    is_distributed,
    is_python_state,
    is_tf_keras_model,
    kind_of,
    raw_variable,
    tf_keras,
)
from ckptflow.state.private import tf_keras as private
from ckptflow.state.private.tensorflow import DEFERRED_SLOTS, NOT_SLOTS, OWN, unique_id

# The graph's names for layers by position; they are named below by themselves.
_BY_POSITION = re.compile(r"layer(_with_weights)?-\d+")


def layer_children(layer: Any) -> Children:
    """A layer's or model's children; its optimizer and metrics are among them."""
    named: list[tuple[str, Any]] = []
    graph_model = is_tf_keras_model(layer) and private.is_functional(layer)
    if graph_model or (is_tf_keras_model(layer) and isinstance(layer, tf_keras().Sequential)):
        named += layer_labels(layer.layers)
    named += [(label, child) for label, child in graph_children(layer) if not _BY_POSITION.fullmatch(label)]
    if is_stateful(layer):
        named.append(("states", states_of(layer)))
    metrics: list[tuple[str, Any]] = []
    if is_tf_keras_model(layer):
        metrics = [(f"metrics/{label}", metric) for label, metric in layer_labels(layer.metrics)]
    weights = [weight for name in private.WEIGHTS for weight in vars(layer).get(name, ())]
    fallback = [(_short_name(weight), weight) for weight in weights if kind_of(weight) is Kind.VARIABLE]
    return Children(named, fallback + metrics + untracked(layer, own_attributes()))


@functools.cache
def own_attributes() -> frozenset[str]:
    """The attributes that every layer has of tf_keras's own."""
    # Not a model's: tf_keras gives one variables, and making those may be a collective.
    return frozenset(vars(tf_keras().layers.Layer(name="ckptflow")))


def is_stateful(layer: Any) -> bool:
    """Whether it is a recurrent layer that keeps its state from batch to batch, in variables that nothing tracks."""
    return bool(vars(layer).get(private.STATEFUL)) and vars(layer).get(private.STATES) is not None


def states_of(layer: Any) -> list[Any]:
    """That state; None for what was not made yet."""
    return list(tf.nest.flatten(vars(layer)[private.STATES]))


def symbols(arguments: Any) -> Any:
    """Symbolic inputs in the place of TensorSpecs, for a model to be called on once."""
    keras = tf_keras()

    def symbol(spec: Any) -> Any:
        return keras.Input(shape=spec.shape[1:], batch_size=spec.shape[0], dtype=spec.dtype)

    return tf.nest.map_structure(symbol, arguments)


def metric_children(metric: Any) -> Children:
    """A metric's variables, and whatever else it holds."""
    return Children(
        [(_short_name(weight), weight) for weight in metric.weights],
        [*graph_children(metric), *untracked(metric, own_attributes())],
    )


def optimizer_children(optimizer: Any) -> Children:
    """What an optimizer has beside slots: counters, rates, inner optimizers, the loss scale."""
    found = attributes(optimizer, private.OF_OPTIMIZERS)
    named = [
        (label, child)
        for label, child in found
        if kind_of(child) in (Kind.VARIABLE, Kind.TF_KERAS_OPTIMIZER, Kind.TRACKABLE)
    ]
    hyper = vars(optimizer).get(private.HYPER, {})
    named += [
        (name, child) for name, child in hyper.items() if kind_of(child) is Kind.VARIABLE or is_python_state(child)
    ]
    others = next(filter(None, map(vars(optimizer).get, private.VARIABLES)), ())
    listed = [(_short_name(child), child) for child in others if kind_of(child) is Kind.VARIABLE]
    return Children(named, [*listed, *found, *graph_children(optimizer, private.OF_OPTIMIZERS)])


def optimizer_children_of_tf1(optimizer: Any) -> Children:
    """What an optimizer of TensorFlow 1 has beside slots: what it tracks, and what it was given."""
    others = attributes(optimizer, (private.SLOTS, NOT_SLOTS, DEFERRED_SLOTS))
    return Children(graph_children(optimizer), others)


def is_legacy(optimizer: Any) -> bool:
    """Whether it is one of the optimizers whose variables are all made late: hyperparameters and counter, too."""
    return private.HYPER in vars(optimizer)


def has_hypers(optimizer: Any, path: str, names: Collection[str]) -> bool:
    """Whether tensors of these names are hyperparameters of a legacy optimizer at that path, which it has yet to make:
    one that was given as a variable says nothing."""
    given = vars(optimizer).get(private.HYPER, {})
    return any(f"{path}/{name}" in names for name, value in given.items() if kind_of(value) is not Kind.VARIABLE)


def optimizer_slots(optimizer: Any, model_variables: list[Any]) -> list[tuple[str, Any, Any]]:
    """(slot's name, model variable or None, slot variable) for every slot of a new or a legacy optimizer, or
    of one of TensorFlow 1."""
    by_key = {unique_id_of(raw_variable(variable)): variable for variable in model_variables}
    found = vars(optimizer)
    if kind_of(optimizer) is Kind.TF1_OPTIMIZER:
        return [
            (name, by_key.get(key), slot)
            for name, slots in found[private.SLOTS].items()
            for key, slot in slots.items()
            if kind_of(slot) is Kind.VARIABLE
        ]
    if private.SLOTS in found:
        return [
            (name, by_key.get(key), slot)
            for key, slots in found[private.SLOTS].items()
            for name, slot in slots.items()
            if kind_of(slot) is Kind.VARIABLE
        ]
    keys = {position: key for key, position in dict(found.get(private.INDEX) or {}).items()}
    lists = {
        name: list(value)
        for name, value in found.items()
        if name != private.VARIABLES[0] and not name.startswith(OWN) and kind_of(value) is Kind.LIST
    }
    labels = strip_underscores(lists)
    return [
        (singular(labels[name]), by_key.get(keys[position]), slot)
        for name, values in lists.items()
        if len(values) == len(keys)
        for position, slot in enumerate(values)
        if kind_of(slot) is Kind.VARIABLE
    ]


class NadamCounter:
    """Python state of tf_keras's Nadam: how often it has multiplied `_u_product`, plus one. No variable has it.

    A step compares it with its own number, so that of all variables only the first one's multiplies: begun anew at 1,
    each would. In a tf.function the number is a constant for each variable, counted up while it is traced.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._private = private.Nadam(optimizer)

    def get_state(self) -> int:
        return int(self._private.u_products)

    def set_state(self, state: Any) -> None:
        """Call it when the optimizer's variables are restored."""
        if type(state) is not int or state < 1:
            raise ValueError(f"{state!r} is not a count")
        if state != int(self._optimizer.iterations.numpy()) + 1:  # traced: the next trace counts the same again
            state = max(1, state - len(self._private.momentums))
        self._private.u_products = state


def python_parts(optimizer: Any) -> dict[str, Any]:
    """What an optimizer keeps in plain Python and not in its variables, by name: objects with get_state, set_state."""
    return {"u_product_counter": NadamCounter(optimizer)} if private.U_PRODUCTS in vars(optimizer) else {}


def unique_id_of(variable: Any) -> Any:
    """By which optimizers know a raw variable in this process."""
    # Never by getattr with a default: on a variable that is kept per replica that would start a collective.
    return unique_id(variable.values[0] if is_distributed(variable) else variable)


def _short_name(variable: Any) -> str:
    return str(variable.name).split(":")[0].rsplit("/", 1)[-1]
