"""Which children an object has, by its kind, and what tells that they have changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ckptflow.state import children, fingerprints, keras3, tf_keras
from ckptflow.state.children import Children
from ckptflow.state.fingerprints import Fingerprint
from ckptflow.state.kinds import CONTAINERS, LAYERS, OF_PREPROCESSING, Kind, has_items, is_keras3_layer, kind_of

_RULES: dict[Kind | None, Callable[[Any], Children]] = {
    Kind.KERAS3_METRIC: keras3.metric_children,
    Kind.KERAS3_SEED: keras3.seed_children,
    Kind.KERAS3_OPTIMIZER: keras3.optimizer_children,
    Kind.TF_KERAS_METRIC: tf_keras.metric_children,
    Kind.TF_KERAS_OPTIMIZER: tf_keras.optimizer_children,
    Kind.TF1_OPTIMIZER: tf_keras.optimizer_children_of_tf1,
}


def children_of(obj: Any) -> Children:
    """An object's children: its items first where it is a container as well."""
    if kind_of(obj) in CONTAINERS:
        return children.of_container(obj)
    found = _by_attributes(obj)
    if not has_items(obj):
        return found
    items = children.of_container(obj)
    return Children([*items.named, *found.named], found.fallback, [*items.nameless, *found.nameless], items.by_key)


def _by_attributes(obj: Any) -> Children:
    kind = kind_of(obj)
    if kind in LAYERS:
        found = keras3.layer_children(obj) if is_keras3_layer(obj) else tf_keras.layer_children(obj)
        return found.without(of_its_bundle(obj)) if kind in OF_PREPROCESSING else found
    return _RULES.get(kind, children.generic)(obj)


def of_its_bundle(layer: Any) -> list[Any]:
    """What a layer that is saved as a bundle has for it."""
    return [value for name, value in vars(layer).items() if name in OF_PREPROCESSING.get(kind_of(layer), ())]


def fingerprint_of(kind: Kind | None) -> Callable[[Any], Fingerprint]:
    """What to look at an object of that kind by: the same, as long as it has the same children."""
    if kind in CONTAINERS:
        return fingerprints.container_fingerprint
    if kind is Kind.KERAS3_LAYER:
        return keras3.layer_fingerprint
    return functools.partial(fingerprints.fingerprint, ignored=OF_PREPROCESSING.get(kind, frozenset()))
