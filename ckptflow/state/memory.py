"""A tensor's memory, referred to: as long as it is, TensorFlow writes nothing into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptflow.state.leaves import host_array
from ckptflow.state.private.tensorflow import rank


@dataclass(frozen=True, slots=True)
class Memory:
    """Keeps the memory of tensors, and equals another only where all of both is the very same memory.

    An update of a variable whose memory is referred to writes elsewhere, so what is the same memory now is the same
    bytes. An address that nobody keeps proves nothing: what is freed is given to others.
    """

    addresses: tuple[int, ...]
    kept: tuple[Any, ...] = field(compare=False, repr=False)


def memory_of(held: Any) -> Memory | None:
    """The memory of what a snapshot holds of a tensor; None where it is not in this process's main memory, or where
    TensorFlow lends it to nobody: scalars, strings, and what is copied whenever it is read is new memory each time."""
    tensors = tuple(held) if isinstance(held, list) else (held,)
    addresses = []
    for tensor in tensors:
        if isinstance(tensor, np.ndarray) or "CPU" not in tensor.backing_device or not rank(tensor):
            return None
        one, another = host_array(tensor), host_array(tensor)
        if one.dtype == object or one.ctypes.data != another.ctypes.data:  # copies, of which none is the tensor's
            return None
        addresses.append(one.ctypes.data)
    return Memory(tuple(addresses), tensors)
