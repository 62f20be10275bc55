"""What is wanted on its way into the target's memory: each part's bytes where they belong, once they are verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.manifest import Manifest, SliceRecord, TensorRecord
from ckptflow.format.spec import Bytes1D, Target, Wanted
from ckptflow.transfer.ranges import Part


class Arrival:
    """One wanted tensor or box on its way into the target's memory."""

    def __init__(self, manifest: Manifest, wanted: Wanted) -> None:
        self._tensor = tensor = manifest.tensors[wanted.tensor]
        self._item = dtypes.item_size_bytes(tensor.dtype)
        self.box = boxes.whole(tensor.storage_shape) if wanted.box is None else wanted.box
        check_box(tensor, self.box)
        self.wanted = wanted
        self.size_bytes = boxes.volume(self.box[1]) * self._item
        self.memory: Bytes1D | None = None

    def touches(self, piece: SliceRecord) -> bool:
        """Whether a slice has elements of it."""
        return self.wanted.box is None or boxes.intersect(self.box, (piece.start, piece.shape)) is not None

    def open(self, target: Target) -> Bytes1D:
        """Its memory, asked for once."""
        if self.memory is None:
            self.memory = target.open(self.wanted)
            if self.memory.size != self.size_bytes:
                raise ValueError(
                    f"{self._tensor.name!r}: {self.memory.size:,} bytes were opened for {self.size_bytes:,}"
                )
        return self.memory

    def take(self, target: Target, part: Part, data: Bytes1D) -> None:
        """Copies what it needs of a part's verified bytes."""
        into, piece = self.open(target), part.slice
        if part.is_whole and (piece.start, piece.shape) == self.box:
            into[:] = data
        elif self.wanted.box is None and boxes.is_contiguous(self.box[1], piece.shape):
            begin = boxes.row_major_offset(self.box[1], piece.start) * self._item + part.begin - piece.offset
            into[begin : begin + data.size] = data
        else:
            _scatter(dtypes.as_words(into, self._item).reshape(self.box[1]), self.box, part, data, self._item)


def touching(tensor: TensorRecord, arrivals: Sequence[Arrival]) -> Callable[[SliceRecord], list[Arrival]]:
    """Says of each slice of a tensor which of the arrivals have elements of it.

    Slices do not overlap: where whole slices are wanted each is of its own, and not every one is compared with all.
    """
    by_box: dict[Box, list[Arrival]] = {}
    for arrival in arrivals:
        by_box.setdefault(arrival.box, []).append(arrival)
    if by_box.keys() <= {(piece.start, piece.shape) for piece in tensor.slices}:
        return lambda piece: [each for each in by_box.get((piece.start, piece.shape), ()) if each.touches(piece)]
    return lambda piece: [each for each in arrivals if each.touches(piece)]


def check_box(tensor: TensorRecord, box: Box) -> None:
    """Raises ValueError for a box that does not lie in the tensor."""
    shape = tensor.storage_shape
    if len(box[0]) != len(shape) or any(
        at < 0 or extent < 0 or at + extent > length for at, extent, length in zip(*box, shape, strict=True)
    ):
        raise ValueError(f"the box {box} does not lie in {tensor.name!r} of shape {list(shape)}")


def _scatter(into: npt.NDArray[Any], box: Box, part: Part, data: Bytes1D, item_size: int) -> None:
    """Copies into the array of `box` what lies in it of a part's elements; both are boxes of one tensor."""
    begin = (part.begin - part.slice.offset) // item_size
    words, at = dtypes.as_words(data, item_size), 0
    for start, shape in boxes.runs(part.slice.shape, begin, begin + words.size):
        held = words[at : at + boxes.volume(shape)].reshape(shape)
        at += held.size
        origin = tuple(a + b for a, b in zip(part.slice.start, start, strict=True))
        overlap = boxes.intersect(box, (origin, shape))
        if overlap is not None:
            extents, to, here = overlap
            into[_slices(to, extents)] = held[_slices(here, extents)]


def _slices(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(at, at + extent) for at, extent in zip(start, shape, strict=True))
