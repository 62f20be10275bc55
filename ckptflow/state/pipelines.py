"""What tells a `tf.data` pipeline from another one, as text that is the same in every process that makes it.

TensorFlow puts a position into any pipeline whose operations have the same names, and then waits for ever, ends the
process or leaves elements out where something else is different. So a position is saved with a line for each operation:
its kind, the dtypes of its elements, the numbers that a position depends on, and the operations in the functions that
it calls.

What TensorFlow goes on with exactly is not in it: data, file names, shapes, seeds, the size of a batch that is made
of one element after the other, how much is done in parallel or prefetched, options, and what a strategy adds. Nor is
what its optimizer may take out or put in, such as `repeat(1)`: where the number matters, TensorFlow refuses by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import repeat, zip_longest
from typing import Any

import tensorflow as tf

from ckptflow.state.private.tensorflow import carried_by, dataset_of, graphs_of, inputs_of, numbers_of, unwrapped

logger = logging.getLogger("ckptflow")

_ADDED = {"Options", "AutoShard", "LegacyRebatch"}  # by options and strategies
_TAKEN_OUT = {"Prefetch", "Repeat", "Take", "Skip"}  # by TensorFlow's optimizer, which also puts a prefetch in
_SAME = {"ParallelMap": "Map"}  # for the optimizer
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


def difference(there: str, here: str, *, passing_over: str | None = None) -> str:
    """The first operation by which two pipelines differ, from the end; empty where they do not, or one is not known.
    One kind may be passed over."""
    if not there or not here:
        return ""
    lines = [[each for each in text.split("\n") if each.partition("(")[0] != passing_over] for text in (there, here)]
    pairs = zip_longest(*lines, fillvalue="nothing")
    return next((f"{one} there, {other} here" for one, other in pairs if one != other), "")


def _lines_of(dataset: Any) -> Iterator[str]:
    dataset = unwrapped(dataset)
    inputs = inputs_of(dataset)
    kind = type(dataset).__name__.strip("_").partition("Dataset")[0]
    numbers = _numbers(kind, numbers_of(dataset).items())
    if kind not in _ADDED | _TAKEN_OUT and (kind, numbers) != ("Shard", "num_shards=1"):
        carried = carried_by(dataset)
        parts = [
            f"{_SAME.get(kind, kind)}({numbers})",
            f"of {len(inputs)}" if len(inputs) > 1 else "",
            f"carrying {_carried(carried)}" if carried is not None else "",
            f"giving {_elements(dataset.element_spec)}",
            *(f"calling {called}" for graph in graphs_of(dataset) if (called := ", ".join(_called_in(graph)))),
        ]
        yield " ".join(filter(None, parts))
    for each in inputs:
        yield from _lines_of(each)


def _numbers(kind: str, values: Iterable[tuple[str, Any]]) -> str:
    """Those that are known before anything runs. Only in a batch that is made in parallel are elements kept."""
    found = [
        f"{name}={int(value)}"
        for name, each in values
        if (name != "batch_size" or kind.startswith("ParallelBatch"))
        and (value := tf.get_static_value(each) if tf.is_tensor(each) else each) is not None
    ]
    return ", ".join(found)


def _elements(spec: Any) -> str:
    return ", ".join(map(_element, tf.nest.flatten(spec)))


def _element(spec: Any) -> str:
    if isinstance(spec, tf.data.DatasetSpec):
        return f"data sets of ({_elements(spec.element_spec)})"
    kind = type(spec).__name__.removesuffix("Spec")
    name = getattr(getattr(spec, "dtype", None), "name", "elements")
    return name if kind == "Tensor" else f"{name} in a {kind}"


def _carried(spec: Any) -> str:
    """With ranks: it goes into the function once more."""
    specs = [(each, getattr(getattr(each, "shape", None), "rank", None)) for each in tf.nest.flatten(spec)]
    return ", ".join(f"{_element(each)} of {'any rank' if n is None else f'rank {n}'}" for each, n in specs)


def _called_in(graph: Any) -> Iterator[str]:
    """The data sets that a function makes."""
    for operation in graph.get_operations():
        kind, is_one, _ = operation.type.partition("Dataset")
        if is_one and kind not in _TAKEN_OUT:
            given = zip(_input_names(operation), operation.inputs, strict=False)
            yield f"{operation.type}({_numbers(kind, (each for each in given if each[0] in _NUMBERS))})"


def _input_names(operation: Any) -> Iterator[str]:
    """A name for each input: some are lists."""
    for each in operation.op_def.input_arg:
        count = 1
        if each.number_attr:
            count = operation.get_attr(each.number_attr)
        elif each.type_list_attr:
            count = len(operation.get_attr(each.type_list_attr))
        yield from repeat(each.name, count)
