"""The children of Keras 3 objects, by its own lists and attributes: TensorFlow's object graph loses layers in lists,
seeds and vocabularies."""

from __future__ import annotations

import functools
from typing import Any

from ckptflow.state.children import (
    Children,
    attributes,
    automatic_base,
    fingerprint,
    layer_labels,
    singular,
    strip_underscores,
)
from ckptflow.state.kinds import Kind, is_keras3_model, keras3, kind_of

# What Keras tracks of a layer, whatever attribute holds it.
_TRACKED = ("_trainable_variables", "_non_trainable_variables", "_seed_generators", "_layers", "_metrics")
_MODEL_METRICS = ("_loss_tracker", "_compile_metrics")
_OF_TRAINING = frozenset(
    {"_compiled_trainable_state", "_compile_config", "_eval_epoch_iterator", "history", "optimizer"}
)


@functools.cache
def _own_attributes() -> frozenset[str]:
    """The attributes that every layer and model has of Keras's own. Named, so that Keras's counters do not move."""
    keras = keras3()
    inputs = keras.Input((1,), name="ckptflow_input")
    bare: list[Any] = [
        keras.layers.Layer(name="ckptflow_layer"),
        keras.Model(inputs, inputs, name="ckptflow_functional"),
        keras.Sequential([keras.layers.InputLayer((1,), name="ckptflow_input_layer")], name="ckptflow_sequential"),
        keras.metrics.Metric(name="ckptflow_metric"),
    ]
    names = frozenset(name for obj in bare for name in vars(obj))
    return names | _OF_TRAINING


def layer_children(layer: Any) -> Children:
    """A layer's or model's children; its optimizer and metrics are among them."""
    ignored = _own_attributes()
    named: list[tuple[str, Any]] = []
    if is_graph_model(layer):
        named += layer_labels(layer.layers)
    named += attributes(layer, ignored)
    if is_keras3_model(layer):
        found = vars(layer)
        named += [(name.lstrip("_"), found[name]) for name in _MODEL_METRICS if found.get(name) is not None]
        if kind_of(found.get("optimizer")) is not None:
            named.append(("optimizer", found["optimizer"]))
    return Children(named, _tracked(layer))


def is_graph_model(layer: Any) -> bool:
    """Whether it is a functional or sequential model, whose `layers` are its children."""
    if not is_keras3_model(layer):
        return False
    from keras.src.models.functional import Functional

    return isinstance(layer, (keras3().Sequential, Functional))


def _tracked(layer: Any) -> list[tuple[str, Any]]:
    found = vars(layer)
    children: list[tuple[str, Any]] = []
    for name in _TRACKED:
        tracked = [child for child in found.get(name, ()) if kind_of(child) is not None]
        if name in ("_layers", "_metrics"):
            children += layer_labels(tracked)
        else:
            children += [(_tracked_label(child), child) for child in tracked]
    return children


def _tracked_label(child: Any) -> str:
    """Without the number that Keras made up for it: that counts everything made before it, in any model."""
    name = str(getattr(child, "name", "seed_generator"))
    return automatic_base(name, type(child).__name__) or name


def layer_fingerprint(layer: Any) -> tuple[int, ...]:
    """Tells whether a layer's children have changed."""
    ignored = _own_attributes() - {*_TRACKED, *_MODEL_METRICS, "optimizer"}
    return fingerprint(layer, ignored)


def metric_children(metric: Any) -> Children:
    """A metric's variables and inner metrics."""
    found = vars(metric)
    fallback = [(str(child.name), child) for name in ("_variables", "_metrics") for child in found.get(name, ())]
    return Children(attributes(metric, _own_attributes()), fallback)


def seed_children(seed: Any) -> Children:
    """A seed generator's state."""
    return Children(attributes(seed), [])


def optimizer_children(optimizer: Any) -> Children:
    """What an optimizer has beside slots: counters, rates, inner optimizers; then whatever else is its own."""
    named = [
        (label, child)
        for label, child in attributes(optimizer, ("_variables", "_trainable_variables", "_tracker"))
        if kind_of(child) in (Kind.VARIABLE, Kind.KERAS3_OPTIMIZER)
    ]
    for label, child in attributes(optimizer):
        if kind_of(child) is Kind.LIST and any(kind_of(item) is Kind.KERAS3_OPTIMIZER for item in child):
            named.append((label, child))
    of_the_model = {id(variable) for variable in optimizer._trainable_variables}
    fallback = [(str(child.name), child) for child in optimizer.variables if id(child) not in of_the_model]
    return Children(named, fallback)


def optimizer_slots(optimizer: Any) -> list[tuple[str, Any, Any]]:
    """(slot's name, model variable or None, slot variable) for every slot, told by lists as long as that of the model
    variables: by position, since names in Keras are automatic."""
    own = {id(variable) for variable in optimizer.variables}
    model_variables = list(optimizer._trainable_variables)
    lists = {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables") and kind_of(value) is Kind.LIST
    }
    labels = _slot_labels(list(lists))
    slots = []
    for name, values in lists.items():
        if len(values) != len(model_variables):
            continue
        for model_variable, slot in zip(model_variables, values, strict=True):
            if kind_of(slot) is Kind.VARIABLE and id(slot) in own:
                slots.append((labels[name], model_variable, slot))
    return slots


def _slot_labels(names: list[str]) -> dict[str, str]:
    labels = {name: singular(label) for name, label in strip_underscores(names).items()}
    taken = list(labels.values())
    return {name: label if taken.count(label) == 1 else name for name, label in labels.items()}
