"""NaN and Inf in what is saved: counted while it is packed, told once for each save."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from ckptflow.events import NotFinite
from ckptflow.format.layout import Folder
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.format.statistics import not_finite
from ckptflow.format.words import some_of
from ckptflow.transfer.packing import PlannedSlice

logger = logging.getLogger("ckptflow")

MAX_NAMED = 20  # tensors in one event


class FiniteCheck:
    """Looks at each slice as it lies in the buffer from which it is sent. Used by several threads, and without a lock:
    each look adds one entry to a list."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._found: list[tuple[str, int]] = []

    def look(self, piece: PlannedSlice, data: Bytes1D) -> None:
        count = not_finite(self._specs[piece.tensor].dtype, data)
        if count:
            self._found.append((piece.name, count))

    def event(self, folder: Folder) -> NotFinite | None:
        """What was found in the slices of this worker, or None; the log says it, too."""
        counts: Counter[str] = Counter()
        for name, count in self._found:
            counts[name] += count
        if not counts:
            return None
        names = sorted(counts)
        logger.warning(
            "step %d: %d value(s) that this worker saves are NaN or Inf, in %d tensor(s): %s",
            folder.step,
            counts.total(),
            len(names),
            some_of(names, MAX_NAMED),
        )
        return NotFinite(
            step=folder.step,
            folder=str(folder),
            value_count=counts.total(),
            tensor_count=len(names),
            tensors={name: counts[name] for name in names[:MAX_NAMED]},
        )
