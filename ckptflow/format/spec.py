"""What one tensor of the state is, before anything is planned or written: words that `state` and `transfer` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Bytes1D = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the state, known before its values are.

    `shape` and `dtype` (TensorFlow's name, as in `format.dtypes`) are those of one worker's copy. A `dynamic` tensor's
    shape or size is known only once it is captured (strings, tables, iterators): the chief writes it whole, and `shape`
    here is only its rank's place-holder `()`. With `components`, every worker holds its own component of a variable
    that is kept per replica; in storage they stack along a new first axis. Otherwise every worker holds an equal copy.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: bool = False
    components: Literal["sum", "mean", "first"] | None = None
    aliases: tuple[str, ...] = ()
    metric: bool = False


class Source(Protocol):
    """Where the writer takes values from: a snapshot. Thread-safe; tensors count as in `specs`."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]: ...

    def shape(self, index: int) -> tuple[int, ...]:
        """The captured shape (the spec's, but for a dynamic tensor)."""

    def data(self, index: int) -> Bytes1D:
        """The tensor's bytes in row-major order, zero-copy where TensorFlow allows; encoded for dtypes that need it."""

    def release(self, index: int) -> None:
        """Drops the reference: the writer has packed the last slice of this tensor that is this worker's."""


class Target(Protocol):
    """Where the reader puts values. Called from one thread only; tensors count as in the manifest."""

    def open(self, index: int) -> Bytes1D:
        """Memory for the whole tensor as it is in storage, row-major, to be filled; asked for once per tensor."""

    def finish(self, index: int) -> None:
        """Every byte of the tensor is there and has passed its checksum: take it over."""
