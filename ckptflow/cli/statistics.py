"""`ckptflow show --stats`: reads a checkpoint and says what its numbers are like, a slice at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptflow.cli.render import Justify, bar_of_spans, count_text, make_console, print_table

if TYPE_CHECKING:
    from ckptflow.format.manifest import Manifest, TensorRecord
    from ckptflow.format.spec import Bytes1D, Wanted
    from ckptflow.format.statistics import Statistics
    from ckptflow.reading import OpenCheckpoint


class _Measured:
    """Takes slices, measures each when it is there, and forgets it."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._bytes: dict[Wanted, Bytes1D] = {}
        self.found: dict[int, Statistics] = {}

    def open(self, wanted: Wanted) -> Bytes1D:
        from ckptflow.format import boxes, dtypes
        from ckptflow.transfer.buffers import memory_for

        tensor = self._manifest.tensors[wanted.tensor]
        shape = tensor.storage_shape if wanted.box is None else wanted.box[1]
        size_bytes = boxes.volume(shape) * dtypes.item_size_bytes(tensor.dtype)
        self._bytes[wanted] = memory_for(f"tensor {tensor.name!r}", size_bytes)
        return self._bytes[wanted]

    def finish(self, wanted: Wanted) -> None:
        from ckptflow.format.components import aggregate
        from ckptflow.format.dtypes import numpy_dtype
        from ckptflow.format.statistics import Statistics, measure, merge

        tensor, data = self._manifest.tensors[wanted.tensor], self._bytes.pop(wanted)
        if tensor.components is not None:  # as it is restored
            array = aggregate(data.view(numpy_dtype(tensor.dtype)).reshape(tensor.shape), tensor.components)
            data = array.reshape(-1).view("u1")
        before = self.found.get(wanted.tensor, Statistics())
        self.found[wanted.tensor] = merge(before, measure(tensor.dtype, data))


def read_statistics(opened: OpenCheckpoint) -> dict[str, Statistics]:
    """Of each tensor of numbers, by its name, in the order of the manifest. Every byte is checked before it is used.

    Memory: staging buffers, and a few slices, or one tensor of which workers kept parts for themselves.
    """
    from ckptflow.format.spec import Wanted
    from ckptflow.format.statistics import can_be_measured

    manifest = opened.manifest
    wanted: list[Wanted] = []
    for number, tensor in enumerate(manifest.tensors):
        if can_be_measured(tensor.dtype):
            whole = tensor.components is not None or len(tensor.slices) < 2
            wanted += [Wanted(number)] if whole else [Wanted(number, (s.start, s.shape)) for s in tensor.slices]
    target = _Measured(manifest)
    with bar_of_spans("reading", "read") as progress:
        progress.expect(sum(manifest.tensors[number].size_bytes for number in {each.tensor for each in wanted}))
        opened.read_into(wanted, target)
    return {manifest.tensors[number].name: target.found[number] for number in sorted(target.found)}


def statistics_to_json(tensor: TensorRecord, found: Mapping[str, Statistics]) -> dict[str, Any]:
    """The member `stats` of a tensor: see docs/cli.md."""
    from dataclasses import asdict

    return {"stats": asdict(found[tensor.name]) if tensor.name in found else None}


def render_statistics(tensors: list[TensorRecord], found: Mapping[str, Statistics], count: int) -> None:
    """Prints those that hold NaN or Inf, then the others in their order, `count` in all at least, and how many hold."""
    console = make_console()
    measured = [tensor for tensor in tensors if tensor.name in found]
    bad = {tensor.name for tensor in measured if found[tensor.name].nan or found[tensor.name].inf}
    shown = sorted(measured, key=lambda tensor: tensor.name not in bad)[: max(count, len(bad))]
    columns: dict[str, Justify] = {"tensor": "left", "dtype": "left", "min": "right", "max": "right", "mean": "right"}
    columns |= {"NaN": "right", "Inf": "right"}
    rows = [_cells(tensor, found[tensor.name]) for tensor in shown]
    if rows:
        print_table(console, columns, rows, ["red" if tensor.name in bad else "" for tensor in shown])
    said = f"NaN or Inf in {len(bad):,} of {count_text(len(measured), 'tensor')}"
    console.print(said, style="red" if bad else "")
    if len(shown) < len(measured):
        console.print(f"{len(measured) - len(shown):,} smaller ones are not shown. See --tensors.", style="dim")


def _cells(tensor: TensorRecord, found: Statistics) -> list[str]:
    numbers = ("" if value is None else f"{value:.5g}" for value in (found.min, found.max, found.mean))
    return [tensor.name, tensor.dtype, *numbers, f"{found.nan:,}", f"{found.inf:,}"]
