"""The one way into a state: what is offered arrives bit for bit, read in boxes and parts, or nothing is changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.errors import StateMismatchError
from ckptflow.format import dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.dtypes import Array
from ckptflow.format.offer import Offer, offer_of_captured
from ckptflow.format.spec import Bytes1D, Wanted
from ckptflow.interop import tensors as module
from ckptflow.interop.tensors import CapturedTensors, NamedTensors, TensorInfo, bytes_of
from ckptflow.state import put as putting
from ckptflow.state.assign import Comparison, Verdict
from ckptflow.state.capture import Snapshot, capture
from ckptflow.state.put import put, reader_of
from ckptflow.state.tree import Tree, as_mapping, walk


def snapshot_of(state: Any) -> Snapshot:
    return capture(walk(as_mapping(state)), is_chief=True)


class Gathering:
    """Takes what is read as it is in storage."""

    def __init__(self, sizes: dict[Wanted, int]) -> None:
        self._sizes = sizes
        self.got: dict[Wanted, Bytes1D] = {}
        self.finished: Counter[Wanted] = Counter()

    def open(self, wanted: Wanted) -> Bytes1D:
        self.got[wanted] = np.zeros(self._sizes[wanted], np.uint8)
        return self.got[wanted]

    def finish(self, wanted: Wanted) -> None:
        self.finished[wanted] += 1


@st.composite
def boxed(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box | None]]:
    """A shape, and boxes of it."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    boxes: list[Box | None] = [None]
    for _ in range(draw(st.integers(0, 3))):
        edges = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
        boxes.append((tuple(low for low, _ in edges), tuple(high - low for low, high in edges)))
    return shape, list(dict.fromkeys(boxes))


@given(boxed(), st.sampled_from(["float32", "bool", "complex128", "bfloat16"]), st.booleans())
def test_boxes_are_read_whole_or_in_parts(given_: tuple[Any, Any], dtype: str, is_parted: bool) -> None:
    shape, boxes = given_
    array: Array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtypes.numpy_dtype(dtype))
    tensors = NamedTensors(
        {"x": TensorInfo(dtype, shape)},
        lambda name: array,
        read_part=(lambda name, begin, end: bytes_of(array)[begin:end]) if is_parted else None,
    )
    expected = {Wanted(0, box): bytes_of(array if box is None else array[_region(box)]) for box in boxes}
    target = Gathering({wanted: data.size for wanted, data in expected.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE_BYTES", 0)
        patch.setattr(putting, "PART_BYTES", 8)
        reader_of(CapturedTensors(tensors))(list(expected), target)
    assert target.finished == dict.fromkeys(expected, 1)
    assert all(target.got[wanted].tobytes() == data.tobytes() for wanted, data in expected.items())


def _region(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, start + extent) for start, extent in zip(*box, strict=True))


def test_each_tensor_is_read_once_and_let_go() -> None:
    reads: Counter[str] = Counter()

    def read(name: str) -> Array:
        reads[name] += 1
        return np.full(4, len(name), np.float32)

    infos = {name: TensorInfo("float32", (4,)) for name in ("m/a", "m/bb")}
    captured = CapturedTensors(NamedTensors(infos, read))
    module_ = tf.Module()
    module_.a, module_.bb = tf.Variable(tf.zeros(4)), tf.Variable(tf.zeros(4))
    put(offer_of_captured(captured, "here", "source"), reader_of(captured), {"m": module_})
    assert reads == {"m/a": 1, "m/bb": 1}
    assert module_.bb.numpy().tolist() == [4.0] * 4


def test_what_is_refused_and_what_is_left_are_the_decisions() -> None:
    first, second = tf.Module(), tf.Module()
    first.same, first.gone, first.other = tf.Variable(1.0), tf.Variable(2.0), tf.Variable([3.0])
    second.same, second.new, second.other = tf.Variable(0.0), tf.Variable(0.0), tf.Variable(0.0)
    snapshot = snapshot_of({"m": first})
    offer = offer_of_captured(snapshot, "there", "source")
    seen: list[Comparison] = []

    def refuse(tree: Tree, offer: Offer, found: Comparison) -> Verdict:
        seen.append(found)
        return Verdict(frozenset({"m/new", "m/other"}), hint="Do this.")

    with pytest.raises(StateMismatchError) as caught:
        put(offer, reader_of(snapshot), {"m": second}, decide=refuse)
    assert str(caught.value).splitlines() == [
        "there does not fit the state; no value was changed.",
        "  m/other: shape (1) in the source, () in the state",
        "  m/new: in the state, not in the source",
        "Do this.",
    ]
    assert seen[0].matched == {"m/same": "m/same"}
    assert (set(seen[0].missing), set(seen[0].unexpected)) == ({"m/new", "m/other"}, {"m/gone", "m/other"})
    _, restore = put(
        offer, reader_of(snapshot), {"m": second}, decide=lambda *_: Verdict(passed_over=frozenset({"m/same", "m/new"}))
    )
    assert second.same.numpy() == 0.0
    assert (restore.missing, restore.unexpected) == (("m/other",), ("m/gone", "m/other"))
