"""What tells a `tf.data` pipeline from another one, as text that is the same in every process that makes it.

TensorFlow puts a position into any pipeline whose operations have the same names, and then waits for ever, ends the
process or leaves elements out where something else is different. So a position is saved with a line for each operation:
its kind, the dtypes and ranks of its elements, the numbers that a position depends on, and the operations in the
functions that it calls.

What may change from one start to the next is not in it: data, file names, dimensions, seeds, how much is read or
prefetched, options, and what a strategy adds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import tensorflow as tf

from ckptflow.state.private.tensorflow import carried_by, dataset_of, graphs_of, inputs_of, numbers_of, unwrapped

logger = logging.getLogger("ckptflow")

_ADDED = {"Options", "AutoShard", "LegacyRebatch"}  # by options and strategies
_NUMBERS = ("batch_size", "cycle_length", "block_length", "size", "shift", "stride")  # of operations in a function


def pipeline_of(iterator: Any) -> str:
    """A line for each operation of the pipeline, the last one first; empty where it cannot be told."""
    dataset = dataset_of(iterator)
    if dataset is None:
        return ""
    try:
        return "\n".join(_lines_of(dataset))
    except Exception as error:  # a data set of a class that nobody foresaw, or of another TensorFlow
        logger.debug("the pipeline of an iterator cannot be told: %s: %s", type(error).__name__, str(error))
        return ""


def difference(there: str, here: str) -> str:
    """The first operation by which two pipelines differ, from the end; empty where they do not, or one is not known."""
    if not there or not here:
        return ""
    pairs = zip_longest(there.split("\n"), here.split("\n"), fillvalue="nothing")
    return next((f"{one} there, {other} here" for one, other in pairs if one != other), "")


def _lines_of(dataset: Any) -> Iterator[str]:
    dataset = unwrapped(dataset)
    inputs = inputs_of(dataset)
    kind = type(dataset).__name__.strip("_").partition("Dataset")[0]
    if kind not in _ADDED:
        numbers = [f"{name}={value}" for name, value in _known(numbers_of(dataset).items())]
        carried = carried_by(dataset)
        parts = [
            f"{kind}({', '.join(numbers)})",
            f"of {len(inputs)}" if len(inputs) > 1 else "",
            f"carrying {_elements(carried)}" if carried is not None else "",
            f"giving {_elements(dataset.element_spec)}",
            *(f"calling {called}" for graph in graphs_of(dataset) if (called := ", ".join(_called_in(graph)))),
        ]
        yield " ".join(filter(None, parts))
    for each in inputs:
        yield from _lines_of(each)


def _known(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, int]]:
    """Those that are known before anything runs."""
    for name, value in values:
        found = tf.get_static_value(value) if tf.is_tensor(value) else value
        if found is not None:
            yield name, int(found)


def _elements(spec: Any) -> str:
    return ", ".join(map(_element, tf.nest.flatten(spec)))


def _element(spec: Any) -> str:
    if isinstance(spec, tf.data.DatasetSpec):
        return f"data sets of ({_elements(spec.element_spec)})"
    kind = type(spec).__name__.removesuffix("Spec")
    dtype, rank = getattr(spec, "dtype", None), getattr(getattr(spec, "shape", None), "rank", None)
    name = getattr(dtype, "name", "elements")
    return f"{name}{'' if kind == 'Tensor' else f' in a {kind}'} of {'any rank' if rank is None else f'rank {rank}'}"


def _called_in(graph: Any) -> Iterator[str]:
    """The data sets that a function makes."""
    for operation in graph.get_operations():
        if "Dataset" in operation.type:
            given = zip((each.name for each in operation.op_def.input_arg), operation.inputs, strict=False)
            numbers = _known((name, value) for name, value in given if name in _NUMBERS)
            yield f"{operation.type}({', '.join(f'{name}={value}' for name, value in numbers)})"
