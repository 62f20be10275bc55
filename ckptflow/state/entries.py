"""What may be an entry of the state, and what may be in its lists and dicts: anything else is refused by its name."""

from __future__ import annotations

from typing import Any

from ckptflow.errors import UnsupportedStateError
from ckptflow.state.children import pairs_of
from ckptflow.state.kinds import (
    CONTAINERS,
    Kind,
    carries_python_state,
    is_python_state,
    is_wrapped_container,
    kind_of,
)
from ckptflow.state.private.tensorflow import Trackable, iterators_in


def replica_iterators(path: str, iterator: Any) -> list[Any]:
    """The iterators of a DistributedIterator, one for each replica here.

    Raises `UnsupportedStateError` for one that prefetches to devices: TensorFlow gives out no state of that.
    """
    found = iterators_in(iterator)
    if not found or any(kind_of(each) is not Kind.ITERATOR for each in found):
        raise UnsupportedStateError(
            f"{path}: this DistributedIterator cannot be saved, it prefetches to the devices. Either, under "
            "MirroredStrategy, distribute by strategy.distribute_datasets_from_function(..., "
            "tf.distribute.InputOptions(experimental_fetch_to_device=False, "
            "experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA)), or keep one iter(dataset) "
            "per worker, hand that over as PerWorker(iterator), and feed the replicas by "
            "strategy.experimental_distribute_values_from_function(lambda context: next(iterator))"
        )
    return found


def check_entry(name: str, obj: Any) -> None:
    """Raises `UnsupportedStateError` for an entry of the state that is of no kind that can be saved."""
    kind = kind_of(obj)
    if carries_python_state(obj):
        return
    if kind is Kind.DATASET:
        raise UnsupportedStateError(f"{name}: a tf.data.Dataset has no position; hand over its iterator, iter(dataset)")
    if kind in CONTAINERS:
        _check_items(name, obj, set())
    elif kind is None:
        raise UnsupportedStateError(
            f"{name} is a {type(obj).__module__}.{type(obj).__qualname__}, which has no state that ckptflow knows. "
            "Pass models, optimizers, tf.Module, tf.Variable and other trackable objects, each under its own name; for "
            "plain Python state, an object with get_state() and set_state(state)"
        )


def _check_items(name: str, container: Any, seen: set[int]) -> None:
    """What is in a list or dict of the user's own must be state: a number there would be lost without a word.

    TensorFlow's wrapped ones come from a `tf.train.Checkpoint`, which passes over what it does not track.
    """
    if is_wrapped_container(container) or id(container) in seen:
        return
    seen.add(id(container))
    for label, item in pairs_of(container):
        if kind_of(item) in CONTAINERS and not is_python_state(item):
            _check_items(f"{name}/{label}", item, seen)
        elif not (isinstance(item, Trackable) or is_python_state(item)):
            check_entry(f"{name}/{label}", item)
