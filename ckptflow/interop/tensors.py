"""Named tensors: what a file holds where there is no model to put it in, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptflow.format.dtypes import Array


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's dtype (TensorFlow's name, as in `format.dtypes`) and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NamedTensors:
    """Tensors by the name that they get in a checkpoint, and what belongs to them.

    `read(name)` gives one whole tensor as an array of the dtype and shape that `infos` says (strings as an array of
    objects, bytes each); it is called from several threads, once for each tensor. `read_part(name, begin, end)`, where
    there is one, gives these bytes of a tensor in row-major order: large tensors of numbers are read by it, and never
    whole. `python_state`, `models` and `object_graph` are as in a manifest. `aliases`: further names of a tensor.
    `left_out` names what the file has and a checkpoint cannot hold.
    """

    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Array]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: frozenset[str] = frozenset()  # names of variables of metrics
    per_worker: tuple[str, ...] = ()  # as in a manifest of one worker
    python_state: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    object_graph: Any = None
    left_out: tuple[str, ...] = ()
    read_part: Callable[[str, int, int], npt.NDArray[np.uint8]] | None = None


def bytes_of(array: Array) -> npt.NDArray[np.uint8]:
    """The bytes of a numeric array in row-major order, sharing its memory where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
