"""A tensor's memory, referred to: as long as it is, TensorFlow writes nothing into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptflow.state.leaves import host_array

_FEW_BYTES = 64  # of so few the value itself is kept: TensorFlow lends no scalar's memory


@dataclass(frozen=True, slots=True)
class Memory:
    """Keeps the memory of tensors, and equals another only where both are the very same memory, or as few bytes.

    An update of a variable whose memory is referred to writes elsewhere, so what is the same memory now is the same
    bytes. An address that nobody keeps proves nothing: what is freed is given to others.
    """

    addresses: tuple[int | bytes, ...]
    kept: tuple[Any, ...] = field(compare=False, repr=False)


def memory_of(held: Any) -> Memory | None:
    """The memory of what a snapshot holds of a tensor. What TensorFlow copies at each read is new memory each time.

    None if it is not in this process's main memory, or is lent to nobody, as strings are.
    """
    tensors = tuple(held) if isinstance(held, list) else (held,)
    addresses: list[int | bytes] = []
    for tensor in tensors:
        if isinstance(tensor, np.ndarray) or "CPU" not in tensor.backing_device or tensor.dtype.name == "string":
            return None
        one = host_array(tensor)
        if one.nbytes <= _FEW_BYTES:
            addresses.append(one.tobytes())
        elif one.ctypes.data == host_array(tensor).ctypes.data:
            addresses.append(one.ctypes.data)
        else:  # copies, of which none is the tensor's
            return None
    return Memory(tuple(addresses), tensors)
