"""The children of Keras 3 objects, by its own lists and attributes: TensorFlow's object graph loses layers in lists,
seeds and vocabularies."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from ckptflow.state.children import (
    Children,
    attributes,
    automatic_base,
    graph_children,
    holds_state,
    layer_labels,
    name_of,
    singular,
    strip_underscores,
)
from ckptflow.state.fingerprints import Fingerprint, fingerprint
from ckptflow.state.kinds import Kind, is_keras3_model, keras3, kind_of, raw_variable
from ckptflow.state.private import keras as private


@functools.cache
def _bare(base: str) -> Any:
    """An object of a class of Keras itself, with nothing in it. Named, so that Keras's counters do not move."""
    keras, name = keras3(), f"ckptflow_{base}"
    inputs = keras.Input((1,), name="ckptflow_input")
    if base == "functional":
        return keras.Model(inputs, inputs, name=name)
    if base == "sequential":
        return keras.Sequential([keras.layers.InputLayer((1,), name="ckptflow_input_layer")], name=name)
    classes = {"model": keras.Model, "layer": keras.layers.Layer, "metric": keras.metrics.Metric}
    return (classes | {"optimizer": keras.optimizers.Optimizer})[base](name=name)


@functools.cache
def _own_attributes(base: str) -> frozenset[str]:
    """The attributes that Keras itself needs: names that no user can give to anything else."""
    return _own_containers(base) | frozenset(name for name in vars(_bare(base)) if name.startswith("_"))


@functools.cache
def own_attributes() -> frozenset[str]:
    """The attributes that layers, models and metrics have of Keras's own, whichever they are."""
    bases = ("layer", "functional", "sequential", "metric")
    return frozenset(private.OF_TRAINING).union(*(vars(_bare(base)) for base in bases))


@functools.cache
def _own_containers(base: str) -> frozenset[str]:
    """Those of them in which Keras keeps what it tracks."""
    names = {name for name, value in vars(_bare(base)).items() if kind_of(value) is not None}
    if base in ("model", "functional", "sequential"):
        names.update(private.OF_TRAINING)
    if base == "sequential":
        names.add(private.FUNCTIONAL)  # with the same layers
    return frozenset(names)


def _base_of(layer: Any) -> str:
    """The class of Keras that a layer or model is one of, as far as that decides on its attributes."""
    if not is_keras3_model(layer):
        return "layer"
    if private.is_functional(layer):
        return "functional"
    return "sequential" if isinstance(layer, keras3().Sequential) else "model"


def layer_children(layer: Any) -> Children:
    """A layer's or model's children; its optimizer and metrics are among them."""
    base = _base_of(layer)
    ignored = _own_attributes(base)
    named: list[tuple[str, Any]] = []
    if base in ("functional", "sequential"):
        named += layer_labels(layer.layers)
    named += attributes(layer, ignored)
    if base != "layer":
        found = vars(layer)
        named += [(name.lstrip("_"), found[name]) for name in private.OF_TRAINING if holds_state(found.get(name))]
    return Children(named, _tracked(layer) + graph_children(layer, _own_containers(base)))


def is_graph_model(layer: Any) -> bool:
    """Whether it is a functional or sequential model, whose `layers` are its children."""
    return is_keras3_model(layer) and _base_of(layer) in ("functional", "sequential")


def _tracked(layer: Any) -> list[tuple[str, Any]]:
    found = vars(layer)
    children: list[tuple[str, Any]] = []
    for name in private.TRACKED:
        tracked = [child for child in found.get(name, ()) if kind_of(child) is not None]
        if name in private.LISTS_OF_LAYERS:
            children += layer_labels(tracked)
        else:
            children += [(_tracked_label(child), child) for child in tracked]
    return children


def _tracked_label(child: Any) -> str:
    """Without the number that Keras made up for it: that counts everything made before it, in any model."""
    name = name_of(child)
    return automatic_base(name, type(child).__name__) or name


def layer_fingerprint(layer: Any) -> Fingerprint:
    """Tells whether a layer's children have changed."""
    return fingerprint(layer, _own_attributes(_base_of(layer)) - {*private.TRACKED, *private.OF_TRAINING})


def metric_children(metric: Any) -> Children:
    """A metric's variables and inner metrics."""
    found = vars(metric)
    fallback = [(_tracked_label(child), child) for name in private.OF_METRICS for child in found.get(name, ())]
    return Children(attributes(metric, _own_attributes("metric")), fallback)


def seed_children(seed: Any) -> Children:
    """A seed generator's state."""
    return Children(attributes(seed), [])


def calibrate(layer: Any, given: Collection[int]) -> None:
    """Lets a layer that was made as one that GPTQ or AWQ has calibrated compute with its kernel, if that was given a
    value: `given` has the identities of such variables."""
    found = vars(layer)
    flag = private.CALIBRATED.get(getattr(layer, "quantization_mode", None) or "", "")
    if (
        flag in found
        and private.KERNEL not in found
        and id(raw_variable(found.get(private.CALIBRATED_KERNEL))) in given
    ):
        setattr(layer, flag, True)


def optimizer_children(optimizer: Any) -> Children:
    """What an optimizer has beside slots: counters, rates, inner optimizers; then whatever else is its own."""
    found = attributes(optimizer, private.OF_OPTIMIZERS)
    named = [(label, child) for label, child in found if kind_of(child) in (Kind.VARIABLE, Kind.KERAS3_OPTIMIZER)]
    for label, child in found:
        if kind_of(child) is Kind.LIST and any(kind_of(item) is Kind.KERAS3_OPTIMIZER for item in child):
            named.append((label, child))
    of_the_model = {id(variable) for variable in private.trained_by(optimizer)}
    listed = [(_tracked_label(child), child) for child in optimizer.variables if id(child) not in of_the_model]
    return Children(named, [*listed, *found, *graph_children(optimizer, private.OF_OPTIMIZERS)])


def optimizer_slots(optimizer: Any) -> list[tuple[str, Any, Any]]:
    """(slot's name, model variable or None, slot variable) for every slot, told by lists as long as that of the model
    variables: by position, since names in Keras are automatic. Others by the variable that they were made for."""
    own = {id(variable) for variable in optimizer.variables}
    model_variables = list(private.trained_by(optimizer))
    lists = {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in (private.ALL, private.TRAINED) and kind_of(value) is Kind.LIST
    }
    labels = _slot_labels(list(lists))
    slots = []
    for name, values in lists.items():
        if len(values) != len(model_variables):
            continue
        for model_variable, slot in zip(model_variables, values, strict=True):
            if kind_of(slot) is Kind.VARIABLE and id(slot) in own:
                slots.append((labels[name], model_variable, slot))
    held = {id(slot) for _, _, slot in slots} | set(map(id, vars(optimizer).values()))
    others = [each for each in private.variables_of_optimizer(optimizer) if id(each) not in held]
    return slots + _slots_by_path(others, model_variables)


def _slots_by_path(variables: list[Any], model_variables: list[Any]) -> list[tuple[str, Any, Any]]:
    """Those made by `add_variable_from_reference`: Keras calls them by the path of that variable, and the slot."""
    keras_variables = [variable for variable in model_variables if isinstance(variable, keras3().Variable)]
    counts = Counter(variable.path.replace("/", "_") for variable in keras_variables)
    by_path = {path: each for each in keras_variables if counts[path := each.path.replace("/", "_")] == 1}
    slots = []
    for variable in variables:
        name = str(variable.name)
        ends = [match.start() for match in re.finditer("_", name) if name[: match.start()] in by_path]
        if ends:
            slots.append((name[ends[-1] + 1 :] or "var", by_path[name[: ends[-1]]], variable))
    return slots


def _slot_labels(names: list[str]) -> dict[str, str]:
    labels = {name: singular(label) for name, label in strip_underscores(names).items()}
    taken = list(labels.values())
    return {name: label if taken.count(label) == 1 else name for name, label in labels.items()}
