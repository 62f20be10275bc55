"""How values get into a state: `put`, or the same steps one by one, where workers take them together.

Others put values into live objects only where the framework alone knows what goes where, each once all was found to
fit: Keras's own `load_weights` for its files, whose layers convert what they read (`interop/keras`: `.keras`, `.h5` and
`.weights.h5`, with the legacy optimizer's slots, which have an order and no names); its `load_assets` for the files of
a `.keras` that no tensor holds; `tf.train.Checkpoint` for a checkpoint of TensorFlow 1, which goes by the variables'
own names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptflow.format import boxes, dtypes
from ckptflow.format.offer import Captured, Offer
from ckptflow.format.spec import Bytes1D, Rename, Target, Wanted
from ckptflow.state.assign import Decide, match
from ckptflow.state.build import build_missing
from ckptflow.state.graph import in_names_of
from ckptflow.state.restore import Restore
from ckptflow.state.tree import Tree, walk

# Brings what is wanted of an offer into a target: opens it, fills what was opened, finishes it.
Reader = Callable[[Sequence[Wanted], Target], None]

PART_BYTES = 4 * 2**20  # of a large tensor that is read in parts


def put(
    offer: Offer,
    read: Reader,
    state: Mapping[str, Any],
    *,
    partial: bool = False,
    rename: Rename | None = None,
    decide: Decide | None = None,
) -> tuple[Tree, Restore]:
    """Gives the named objects of a state what a source offers, after building what is not built yet.

    `partial`, `rename` and `decide` are as for `match`. What does not fit, and what a rehearsal refuses, is raised
    before any value is changed. What is raised later, by `read` or by objects that do not take their state over, leaves
    some of the values there.
    """
    tree = build(walk(state), offer)
    restore = match(tree, offer, partial=partial, rename=rename, decide=decide)
    rehearse(restore, read)
    fill(restore, read)
    return tree, restore


def build(tree: Tree, offer: Offer, strategy: Any = None) -> Tree:
    """Builds what is unbuilt in the tree's objects and was built when the offer was made; the tree of what is there."""
    named = in_names_of(tree, offer)
    names = {record.name for record in named.tensors}
    return build_missing(tree, dict(named.models), strategy, names=names, stored_bytes=offer.size_bytes)


def rehearse(restore: Restore, read: Reader) -> None:
    """Reads what has to be tried before any value is changed, and tries it."""
    if restore.early:
        read(restore.early, restore)
    restore.rehearse()


def fill(restore: Restore, read: Reader) -> None:
    """Reads and assigns all the rest."""
    read(restore.rest, restore)
    restore.complete()


def reader_of(captured: Captured) -> Reader:
    """Reads what was captured in one process: a tensor in memory at a time, of large ones a part where that can be."""

    def read(wanted: Sequence[Wanted], target: Target) -> None:
        left = Counter(each.tensor for each in wanted)
        for each in wanted:
            _bring(captured, each, target.open(each))
            target.finish(each)
            left[each.tensor] -= 1
            if not left[each.tensor]:
                captured.release(each.tensor)

    return read


def _bring(captured: Captured, wanted: Wanted, into: Bytes1D) -> None:
    number, shape, is_parted = wanted.tensor, captured.shape(wanted.tensor), captured.is_fetched(wanted.tensor)
    if wanted.box is None and not is_parted:
        into[:] = captured.data(number)
        return
    item = dtypes.item_size_bytes(captured.specs[number].dtype)
    start, extents = wanted.box or boxes.whole(shape)
    if not is_parted:
        held = dtypes.as_words(captured.data(number), item).reshape(shape)
        region = tuple(slice(begin, begin + extent) for begin, extent in zip(start, extents, strict=True))
        dtypes.as_words(into, item).reshape(extents)[...] = held[region]
        return
    count, step, at = boxes.volume(extents), max(1, PART_BYTES // item), 0
    for begin in range(0, count, step):
        for inner, size in boxes.runs(extents, begin, min(begin + step, count)):
            origin = tuple(a + b for a, b in zip(start, inner, strict=True))
            data = captured.fetch(number, (origin, size))
            into[at : at + data.size] = data
            at += data.size
