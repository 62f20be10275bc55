"""What one tensor of the state is, before anything is planned or written: words that `state` and `transfer` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ckptflow.format.boxes import Box
from ckptflow.format.dtypes import Bytes1D as Bytes1D

Rename = Mapping[str, str] | Callable[[str], str]  # from names in a checkpoint to those in a state


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What this worker holds of one tensor of the state, known before its values are.

    `shape` and `dtype` (TensorFlow's name, as in `format.dtypes`) are those of one worker's copy. A `dynamic` tensor's
    shape or size is known only once it is captured (strings, tables, iterators): it is written whole, and `shape`
    here is only its rank's place-holder `()`.

    Who holds what: every worker an equal copy, unless
    - `may_differ`: copies that nothing keeps equal; the chief's is written, whole.
    - `components`: every worker holds its own component of a variable that is kept per replica; in storage they stack
      along a new first axis.
    - `box`: this is one block of the tensor, which this worker alone writes. A tensor has as many specs of its name
      here as blocks; `shape` is the whole tensor's.
    - `own`: the tensor is this worker's, no other has it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: bool = False
    components: Literal["sum", "mean", "first"] | None = None
    aliases: tuple[str, ...] = ()
    metric: bool = False
    box: Box | None = None
    may_differ: bool = False
    own: bool = False

    @property
    def is_replicated(self) -> bool:
        """Whether every worker has a copy that should equal the others'."""
        return not (self.dynamic or self.components or self.box or self.own)


class TensorSource(Protocol):
    """Where the writer takes values from: a snapshot. Thread-safe; indices count as in `specs`."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]: ...

    def shape(self, index: int) -> tuple[int, ...]:
        """The captured shape of what is held (the spec's, but for a dynamic tensor)."""

    def data(self, index: int) -> Bytes1D:
        """Its bytes in row-major order, zero-copy where TensorFlow allows; encoded for dtypes that need it."""

    def is_fetched(self, index: int) -> bool:
        """Whether only what is needed of it should be had, by `fetch`: it lies elsewhere, or is too large."""

    def fetch(self, index: int, box: Box) -> Bytes1D:
        """The bytes of one box of it, in row-major order, brought here."""

    def release(self, index: int) -> None:
        """Drops the reference: the writer has packed the last slice of it that is this worker's."""


class Wanted(NamedTuple):
    """One thing to read: a tensor, as it counts in the manifest, or one box of it."""

    tensor: int
    box: Box | None = None


class Target(Protocol):
    """Where the reader puts values. Called from one thread only; each thing asked for is opened and finished once."""

    def open(self, wanted: Wanted) -> Bytes1D:
        """Memory for what is wanted as it is in storage, row-major, to be filled."""

    def finish(self, wanted: Wanted) -> None:
        """Every byte of it is there and has passed its checksum: take it over."""
