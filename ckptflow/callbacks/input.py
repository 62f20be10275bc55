"""The input of a fit: how far it was read, and how a new one is brought to the same place, in the same order.

Where TensorFlow gives out an iterator's own position, that is kept: with it even a `shuffle` without a seed goes on as
it was. Else the new iterator is read up to it.

The order of later epochs needs more. A seeded `shuffle` draws the next one from a generator that all iterators over
its dataset share: once for each iterator that is made, also for those that Keras makes and never uses; and a `shuffle`
below another one once for each iterator that is read. So as many are drawn as had been, without reading anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ckptflow.state.iterators import IteratorBundle
from ckptflow.state.kinds import Kind, kind_of
from ckptflow.state.private.tensorflow import ShuffleDataset, inputs_of, seeds_of

Bytes = npt.NDArray[np.uint8]

logger = logging.getLogger("ckptflow")

MAX_POSITION_BYTES = 64 * 2**20  # the position of a large shuffle buffer is all of its elements
_MARK = b"epoch_num_random_samples"  # stands once for each shuffle in a position, unless that has come to its end


class Input:
    """`source` is the dataset, `make` makes an iterator over it, or over what a strategy made of it."""

    def __init__(self, source: Any, make: Callable[[], Any]) -> None:
        self._make = make
        self._shuffles = list(_shuffles_in(source))
        self._can_save = True
        self.iterator: Any = None
        self.made = 0  # iterators
        self.used = 0  # of which this many were read
        self.pulled = 0  # batches out of the newest

    def was_made(self) -> None:
        """Keras has made an iterator."""
        self.made, self.pulled = self.made + 1, 0

    def advance(self, batches: int) -> None:
        """So many more batches were read."""
        if self.pulled == 0:
            self.used += 1
        self.pulled += batches

    def counters(self, ahead: int = 0) -> dict[str, int]:
        """As they are once `ahead` more batches were read."""
        used = self.used + bool(ahead and not self.pulled)
        return {"made": self.made, "used": used, "pulled": self.pulled + ahead}

    def position(self) -> Any:
        """The iterator's own position as a tensor of bytes; of none where it cannot be had."""
        nothing = tf.zeros([0], tf.uint8)
        if not self._can_save or kind_of(self.iterator) is not Kind.ITERATOR:
            return nothing
        self._can_save = False
        try:
            position = tf.io.decode_raw(IteratorBundle(self.iterator).read()["position"], tf.uint8)
        except (tf.errors.OpError, AttributeError, NotImplementedError):
            logger.info("the input of fit has no position that can be saved: a resume reads it up to where it was")
            return nothing
        if position.shape[0] > MAX_POSITION_BYTES:
            logger.warning(
                "the position of fit's input takes %d MiB, most of it a shuffle buffer, and is not saved: a resume "
                "reads the input up to where it was, which is in the same order only if every shuffle has a seed",
                position.shape[0] >> 20,
            )
            return nothing
        self._can_save = True
        return position

    def draw(self, counters: Mapping[str, int]) -> None:
        """Draws orders until the next iterator will get the one after those of `counters`."""
        newest = None
        for _ in range(counters["made"]):
            newest = self._make()
        self._draw_below(counters["used"], _fresh_position(newest))
        self.made, self.used, self.pulled = counters["made"], counters["used"], 0

    def go_on(self, counters: Mapping[str, int], position: Bytes | None, *, is_carried: bool) -> Any:
        """A new iterator that is where the newest one of `counters` was. `is_carried`: it serves several epochs."""
        for _ in range(counters["made"] - 1):
            self._make()
        self.bring(self._make(), counters, position, is_carried=is_carried)
        return self.iterator

    def bring(self, iterator: Any, counters: Mapping[str, int], position: Bytes | None, *, is_carried: bool) -> None:
        """Like `go_on`, where as many iterators have been made, and `iterator` is the newest."""
        self.iterator = iterator
        self.made, self.used, self.pulled = counters["made"], counters["used"], counters["pulled"]
        fresh = _fresh_position(iterator)
        if position is None or not position.size or not fresh:
            self._read(fresh)
            return
        is_whole = position.tobytes().count(_MARK) >= len(self._shuffles)
        if is_carried and not is_whole and all(map(_has_seed, self._shuffles)):
            self._read(fresh)  # an iterator that repeats its dataset is right at the end of it
            return
        drawn = [(self._make, fresh), *self._draw_below(self.used, fresh)]
        taken = position.tobytes()
        # Another number of shards is no harm: the place in the whole input is the same.
        if why := IteratorBundle(iterator).changed(taken, passing_over="Shard") or _refusal(self._make(), taken):
            logger.warning(
                "the input of fit is not the one that the checkpoint was made with; it is read up to batch %d, which "
                "may not be where it was (%s)",
                self.pulled,
                why,
            )
            self._read(None)
            return
        _take(iterator, taken)
        for make, own in drawn if not is_whole and not is_carried else ():
            _take(make(), own)  # what has come to its end may have drawn more in the taking over: back to where it was

    def _read(self, fresh: bytes | None) -> None:
        self._draw_below(self.used - 1, fresh)
        for _ in range(self.pulled):
            try:
                next(self.iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                return

    def _draw_below(self, count: int, fresh: bytes | None) -> list[tuple[Callable[[], Any], bytes]]:
        """Draws for those shuffles that do so only once they are read: they have no mark in a fresh position.

        Returns what makes an iterator over each of them alone, and the fresh position of the last one.
        """
        found = []
        for shuffle in self._shuffles[fresh.count(_MARK) if fresh else 1 :]:
            last = None
            for _ in range(count):
                last = iter(shuffle)
            own = _fresh_position(last)
            if own:
                found.append((shuffle.__iter__, own))
        return found


def _fresh_position(iterator: Any) -> bytes | None:
    if kind_of(iterator) is not Kind.ITERATOR:
        return None
    try:
        return bytes(IteratorBundle(iterator).read()["position"].numpy())
    except (tf.errors.OpError, AttributeError, NotImplementedError):
        return None


def _take(iterator: Any, position: bytes) -> None:
    IteratorBundle(iterator).write({"position": np.array(position, dtype=object)})


def _refusal(iterator: Any, position: bytes) -> str:
    """Why an iterator, which is of no use any more then, does not take a position; empty where it does."""
    try:
        _take(iterator, position)
    except tf.errors.OpError as error:
        return str(error.message).splitlines()[0]
    return ""


def _shuffles_in(dataset: Any) -> Iterator[Any]:
    """Every `shuffle` that the dataset is made of, the last one first."""
    if isinstance(dataset, ShuffleDataset):
        yield dataset
    for part in inputs_of(dataset) if isinstance(dataset, tf.data.Dataset) else ():
        yield from _shuffles_in(part)


def _has_seed(shuffle: Any) -> bool:
    return any(map(int, seeds_of(shuffle)))
