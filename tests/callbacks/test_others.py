"""What the other callbacks of a fit know, packed and given back."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.callbacks.others import Others
from tests.callbacks.jobs import keras_of
from tests.callbacks.test_fit import Interrupt


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


def stopper(keras: Any, weights: Any) -> Any:
    found = keras.callbacks.EarlyStopping(restore_best_weights=True)
    found.best_weights = weights
    return found


def arrays() -> list[Any]:
    words = np.array([b"a", b"", "ü".encode() * 99], dtype=object)
    some = np.random.default_rng(1).standard_normal(6).reshape(2, 3)
    half = some.astype(tf.bfloat16.as_numpy_dtype)
    empty = np.zeros((0, 3), np.float32), np.zeros(0, object)
    return [some.astype(np.float32), words, np.array([True]), half, np.float64(3.0) * np.ones(()), *empty, some.T]


def same(found: Any, expected: Any) -> None:
    assert [array.dtype for array in found] == [array.dtype for array in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_of_every_kind_come_back(keras: Any) -> None:
    lists = [arrays(), [np.arange(3)], tuple(arrays()), []]
    there = Others([*(stopper(keras, weights) for weights in lists), stopper(keras, None)])
    states, packed = there.states(), np.asarray(there.pack())
    back = [stopper(keras, None) for _ in range(5)]
    Others(back).restore(states, packed)
    for callback, expected in zip(back, [arrays(), [np.arange(3)], arrays(), [], None], strict=True):
        if expected is None:
            assert callback.best_weights is None
        else:
            same(callback.best_weights, expected)
    same(lists[0], arrays())
    assert there.pack() is there.pack()


def test_best_weights_are_held_once(keras: Any) -> None:
    """Keras's arrays and what is saved of them share their memory, and no more is held while they are packed."""
    size_bytes, count = 2**20, 32
    tracemalloc.start()
    try:
        callback = stopper(keras, [np.ones(size_bytes, np.uint8) for _ in range(count)])
        others = Others([callback])
        tracemalloc.reset_peak()
        packed = others.pack()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert packed.shape == (size_bytes * count,)
    assert held < 1.1 * size_bytes * count
    assert peak < 2.1 * size_bytes * count  # address space: pages are taken as arrays go into them
    assert np.asarray(packed).all()


def test_a_model_of_text_is_stopped_early(tmp_path: Path) -> None:
    keras = keras_of(True)
    texts = tf.constant([["a b"], ["c"], ["b c"], ["a"]])
    labels = np.array([[1.0], [0.0], [1.0], [0.0]], np.float32)

    def life(*callbacks: Any) -> tuple[Any, Any]:
        keras.utils.set_random_seed(3)
        vectors = keras.layers.TextVectorization(output_sequence_length=2)
        vectors.adapt(texts)
        layers = [vectors, keras.layers.Embedding(9, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((1,), dtype=tf.string), *layers])
        model.compile("sgd", "mse")
        early = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=9.0, restore_best_weights=True)
        with ckptflow.CheckpointManager(tmp_path, {"model": model}) as manager:
            ours = ckptflow.CheckpointCallback(manager, every_epochs=1)
            model.fit(texts, labels, epochs=9, verbose=0, callbacks=[early, ours, *callbacks])
            return early.best_weights, early.stopped_epoch

    def interrupt(epoch: int, logs: Any) -> None:
        if epoch == 1:
            raise Interrupt

    with pytest.raises(Interrupt):
        life(keras.callbacks.LambdaCallback(on_epoch_end=interrupt))
    best, stopped = life()
    assert stopped == 1
    assert sorted(best[0].tolist()) == [b"a", b"b", b"c"]
