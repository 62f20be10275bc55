"""What is wanted finds the slices that it needs, without comparing all with all."""

from __future__ import annotations

import numpy as np
import pytest

from ckptflow.format import boxes
from ckptflow.format.manifest import SliceRecord
from ckptflow.format.spec import Bytes1D, TensorSpec, Wanted
from ckptflow.transfer.arrivals import Arrival
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import read_tensors
from tests.transfer.helpers import FOLDER, same_bits
from tests.transfer.test_reader import written


class _SlicesTarget:
    def __init__(self) -> None:
        self.memory: dict[Wanted, Bytes1D] = {}

    def open(self, wanted: Wanted) -> Bytes1D:
        assert wanted.box is not None
        self.memory[wanted] = np.zeros(4 * boxes.volume(wanted.box[1]), np.uint8)
        return self.memory[wanted]

    def finish(self, wanted: Wanted) -> None:
        pass


def test_slices_that_are_wanted_one_by_one_are_not_all_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest, (kernel,) = written(1, [TensorSpec("kernel", "float32", (3000, 1000))], shard_bytes=2**16)
    slices = manifest.tensors[0].slices
    compared: list[None] = []
    touches = Arrival.touches

    def counted(arrival: Arrival, piece: SliceRecord) -> bool:
        compared.append(None)
        return touches(arrival, piece)

    monkeypatch.setattr(Arrival, "touches", counted)
    wanted = [Wanted(0, (piece.start, piece.shape)) for piece in slices]
    target = _SlicesTarget()
    read_tensors(store, FOLDER, manifest, wanted, target, BufferPool(3 * 2**16, 2**16))
    assert len(slices) > 100
    assert len(compared) < 10 * len(slices)
    found = [target.memory[each].view("f4").reshape(piece.shape) for each, piece in zip(wanted, slices, strict=True)]
    places = [tuple(slice(at, at + n) for at, n in zip(piece.start, piece.shape, strict=True)) for piece in slices]
    assert all(same_bits(array, kernel[place]) for array, place in zip(found, places, strict=True))
