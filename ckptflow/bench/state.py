"""A state that is only bytes: tensors of 16 MiB, and memory to read them back into."""

from __future__ import annotations

import numpy as np

from ckptflow.bench.grid import TENSOR_BYTES
from ckptflow.format.boxes import Box
from ckptflow.format.spec import Bytes1D, TensorSpec, Wanted

_STEP_BYTES = 4096  # between where the tensors of one round, and those of the next, begin in the random bytes


class RandomState:
    """`count` tensors that no storage can compress or find twice, without memory for each: parts of a few MiB of random
    bytes, each beginning elsewhere, and in each round elsewhere again. Implements `format.spec.TensorSource`."""

    def __init__(self, count: int) -> None:
        length = (TENSOR_BYTES // 4,)
        self.specs = tuple(TensorSpec(f"state/{i:05d}", "float32", length) for i in range(count))
        self._bytes = np.random.default_rng().integers(0, 256, 4 * TENSOR_BYTES, np.uint8)
        self._round = 0

    @property
    def size_bytes(self) -> int:
        return len(self.specs) * TENSOR_BYTES

    def next_round(self) -> None:
        """From here on every tensor has other bytes."""
        self._round += 1

    def shape(self, index: int) -> tuple[int, ...]:
        return self.specs[index].shape

    def data(self, index: int) -> Bytes1D:
        begin = (index * 7919 + self._round * 104_729) * _STEP_BYTES % (self._bytes.size - TENSOR_BYTES)
        return self._bytes[begin : begin + TENSOR_BYTES]

    def is_fetched(self, index: int) -> bool:
        return False

    def fetch(self, index: int, box: Box) -> Bytes1D:
        raise NotImplementedError("all of it is here")

    def release(self, index: int) -> None:
        """Nothing is held."""


class ReusedMemory:
    """Takes tensors into memory that is there, as a restore into TensorFlow's does. Implements `format.spec.Target`."""

    def __init__(self) -> None:
        self._free: list[Bytes1D] = []
        self._open: dict[Wanted, Bytes1D] = {}

    def open(self, wanted: Wanted) -> Bytes1D:
        memory = self._free.pop() if self._free else np.zeros(TENSOR_BYTES, np.uint8)
        self._open[wanted] = memory
        return memory

    def finish(self, wanted: Wanted) -> None:
        self._free.append(self._open.pop(wanted))
