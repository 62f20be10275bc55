"""The position of a `tf.data` iterator, and whether one of a checkpoint is of the same pipeline."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.format.dtypes import Array
from ckptflow.state.bundle import OUT_OF_MEMORY, Bundle, says
from ckptflow.state.pipelines import difference, pipeline_of
from ckptflow.state.private.tensorflow import from_tensors, to_tensors

_ANOTHER = "the position in the checkpoint is one in another pipeline"
_AS_IT_WAS = "Make the dataset as it was when it was saved"
_BUFFERED = re.compile(rb"(Iterator::[^\x00-\x20@]*:buffer)::(\d+)@@")  # the elements of a shuffle, in a position
_FETCHED = re.compile(rb"Iterator::Root::\w+(::0|_invocation_results\[0\])@@")  # the next element, if it was fetched
_OTHER_ELEMENTS = re.compile(r"(Data type mismatch|Incompatible shapes) at component|Expected \d+ components")
_NOTE = b"\xa2\x06"  # begins field 100 of a TensorProto, bytes. It has none of that number: TensorFlow passes over it
_MAX_NOTE_BYTES = 2**14 - 1  # what two bytes can say


def _noted(pipeline: str) -> bytes:
    """What stands before a position: the pipeline, or what stands for a long one."""
    text = pipeline.encode()
    if len(text) > _MAX_NOTE_BYTES:
        text = f"{pipeline.count(chr(10)) + 1} operations, sha256 {hashlib.sha256(text).hexdigest()}".encode()
    return _NOTE + bytes([len(text) & 127 | 128, len(text) >> 7]) + text if text else b""


def _note_in(position: bytes) -> str:
    """The pipeline that a position is of; empty where TensorFlow alone has written it."""
    if not position.startswith(_NOTE):
        return ""
    return position[4 : 4 + (position[2] & 127) + (position[3] << 7)].decode()


def _buffer_sizes(position: bytes) -> dict[str, int]:
    """How many elements the buffer of each shuffle has room for, by its place in the pipeline."""
    sizes: dict[str, int] = {}
    for name, number in _BUFFERED.findall(position):
        sizes[name.decode()] = max(sizes.get(name.decode(), 0), int(number) + 1)
    return sizes


class IteratorBundle(Bundle):
    """A `tf.data` iterator: its position, its shuffle buffer, everything that decides what comes next.

    One limit is TensorFlow's: `shuffle` without a seed goes on exactly to the end of its epoch, and then draws anew.
    """

    stock_names: Mapping[str, str] = {"position": "_STATE"}

    def __init__(self, iterator: Any) -> None:
        self.dtypes = {"position": "string"}
        self.obj = self._iterator = iterator

    def read(self) -> dict[str, Any]:
        (state,) = to_tensors(self._iterator).values()
        return {"position": tf.strings.join([self._note, tf.io.serialize_tensor(state)])}

    @functools.cached_property
    def _note(self) -> bytes:
        return _noted(pipeline_of(self._iterator))

    def write(self, parts: Mapping[str, Array]) -> None:
        (name,) = to_tensors(self._iterator)
        state = tf.io.parse_tensor(tf.constant(parts["position"].item()), tf.variant)
        from_tensors(self._iterator, {name: state})

    def misfit(self, parts: Mapping[str, Array]) -> str:
        """Unless the pipelines are known to differ, tried on the iterator, which gets its own position back: making
        a second one of the same dataset draws from the seeds that both share. What failed to be restored would be at
        its end."""
        if changed := self.changed(parts["position"].item()):
            return f"{_ANOTHER}: {changed}. {_AS_IT_WAS}"
        before = self.held()
        try:
            with self.put_back_if_stopped(before):
                self.write(parts)
                why = self._other_buffers(parts["position"].item()) or self._other_elements(parts["position"].item())
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            why = f"{_ANOTHER}: other operations, or in another order. {_AS_IT_WAS}. TensorFlow says: {says(error)}"
        self.put_back(before)
        return why

    def changed(self, position: bytes, *, passing_over: str | None = None) -> str:
        """How the pipeline differs from the one that a position is known to be of; empty where it does not. One kind
        of operation may be passed over."""
        return difference(_note_in(position), _note_in(self._note), passing_over=passing_over)

    def _other_buffers(self, position: bytes) -> str:
        """TensorFlow takes the position of a shuffle of another size, and then loses elements and fails at some later
        one. Here the iterator, which has taken it, tells how large its own buffers are."""
        saved, now = _buffer_sizes(position), _buffer_sizes(self.read()["position"].numpy())
        for name in sorted(saved.keys() & now.keys()):
            if saved[name] != now[name]:
                sizes = f"a shuffle has buffer_size={saved[name]:,} there, {now[name]:,} here"
                return f"{_ANOTHER}: {sizes}. {_AS_IT_WAS}"
        return ""

    def _other_elements(self, position: bytes) -> str:
        """Elements that were fetched ahead are in the position, and keep their dtypes and shapes. One is there already:
        it costs no time to ask for it."""
        if not _FETCHED.search(position):
            return ""
        try:
            next(self._iterator, None)
        except tf.errors.OpError as error:  # any other is of the data, and comes when its turn comes
            text = says(error)
            if _OTHER_ELEMENTS.match(text):
                return f"{_ANOTHER}: its elements have other dtypes or shapes. {_AS_IT_WAS}. TensorFlow says: {text}"
        return ""

    def check(self, path: str) -> None:
        """Raises `UnsupportedStateError` if the pipeline cannot be saved."""
        try:
            self.read()
        except tf.errors.OpError as error:
            raise UnsupportedStateError(
                f"{path}: this tf.data iterator cannot be saved, its pipeline runs Python code (from_generator, "
                "py_function, numpy_function) or another stateful operation. Build it of TensorFlow operations alone, "
                "or keep the position yourself in an object with get_state and set_state. TensorFlow says: "
                f"{error.message}"
            ) from error
        except (AttributeError, NotImplementedError) as error:
            raise UnsupportedStateError(
                f"{path}: this tf.data iterator ({type(self._iterator).__name__}) has no state that can be saved. Make "
                "it by iter(dataset), one per worker, and under a strategy hand its elements out by "
                "strategy.experimental_distribute_values_from_function(lambda context: next(iterator))"
            ) from error
