"""Iterators of tf.data that end at once.

An iterator has a thread that tunes it. What drops an iterator (a garbage collection, the end of a `fit`) waits for that
thread, which sleeps for as long as the iterator has lived, up to a minute: `Model::OptimizeLoop`
(tensorflow/core/framework/model.cc) is woken up before it can see that it is to end. Untuned iterators have no thread.
They save other positions than tuned ones, though: TensorFlow adds no prefetch and no parallel map to them. So where
positions go to another process or to another pipeline, a module says `ITERATORS_ARE_TUNED = True`.
"""

from __future__ import annotations

from typing import Any

import pytest


def leave_untuned(patch: pytest.MonkeyPatch) -> None:
    """No iterator that is made from here on is tuned."""
    from tensorflow.python.data.ops import dataset_ops, iterator_ops, options

    without = options.Options()
    without.autotune.enabled = False
    create = iterator_ops.OwnedIterator._create_iterator

    def create_untuned(iterator: Any, dataset: object) -> None:
        create(iterator, dataset)
        iterator._dataset = dataset  # as its user has made it

    patch.setattr(
        dataset_ops.DatasetV2, "_apply_debug_options", lambda dataset: dataset_ops._OptionsDataset(dataset, without)
    )
    patch.setattr(iterator_ops.OwnedIterator, "_create_iterator", create_untuned)
