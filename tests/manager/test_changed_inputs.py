"""An input pipeline, a table or a vocabulary that has changed since: refused by name before any value is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager, StateMismatchError
from ckptflow.state.bundles import bundle_of
from ckptflow.state.private.tensorflow import to_tensors
from tests.manager.states import Weights
from tests.waiting import HANG_S, until

ITERATORS_ARE_TUNED = True  # see tests.untuned

Make = Callable[[], Any]


def numbers() -> Any:
    return tf.data.Dataset.range(12)


PIPELINES: dict[str, tuple[Make, Make]] = {
    "shuffle removed": (lambda: numbers().shuffle(5, seed=1).repeat(), lambda: numbers().repeat()),
    "shuffle added": (lambda: numbers().repeat(), lambda: numbers().shuffle(5, seed=1).repeat()),
    "batch added": (lambda: numbers().shuffle(5, seed=1), lambda: numbers().shuffle(5, seed=1).batch(2)),
    "batch removed": (lambda: numbers().batch(2), numbers),
    "order changed": (lambda: numbers().batch(2).repeat(), lambda: numbers().repeat().batch(2)),
    "map added": (numbers, lambda: numbers().map(lambda number: number + 1)),
    "cache added": (lambda: numbers().shuffle(5, seed=1), lambda: numbers().shuffle(5, seed=1).cache()),
    "interleaved": (numbers, lambda: numbers().interleave(lambda n: tf.data.Dataset.from_tensors(n), 2)),
    "zipped": (numbers, lambda: tf.data.Dataset.zip(numbers().shuffle(5, seed=1).repeat(), numbers().repeat())),
    "larger shuffle": (lambda: numbers().shuffle(4, seed=1).repeat(), lambda: numbers().shuffle(9, seed=1).repeat()),
    "smaller shuffle": (lambda: numbers().shuffle(9, seed=1), lambda: numbers().shuffle(4, seed=1)),
    "another source": (numbers, lambda: tf.data.Dataset.from_tensor_slices(np.arange(12)).shuffle(5, seed=1)),
}


# The elements that were fetched ahead are in the position: TensorFlow tells only when they are drawn.
OF_OTHER_ELEMENTS: dict[str, tuple[Make, Make]] = {
    "batch size": (lambda: numbers().batch(2, drop_remainder=True), lambda: numbers().batch(3, drop_remainder=True)),
    "dtype": (lambda: slices(np.int64), lambda: slices(np.int32)),
    "mapped to a dtype": (
        lambda: numbers().map(lambda number: number + 1),
        lambda: numbers().map(lambda number: tf.cast(number, tf.float32)),
    ),
    "fewer parts": (lambda: tf.data.Dataset.zip(*[numbers()] * 3), lambda: tf.data.Dataset.zip(*[numbers()] * 2)),
}


def slices(dtype: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(np.arange(12, dtype=dtype))


def drawn(iterator: Any, count: int) -> list[Any]:
    return [tf.nest.map_structure(lambda part: np.asarray(part).tolist(), next(iterator)) for _ in range(count)]


def iterator_of(make: Make, taken: int) -> Any:
    iterator = iter(make())
    drawn(iterator, taken)
    return iterator


def position_of(iterator: Any) -> bytes:
    bundle = bundle_of(iterator, "input")
    assert bundle is not None
    return bytes(bundle.read()["position"].numpy())


@pytest.fixture
def weights() -> Weights:
    return Weights()


def save(root: Path, weights: Weights, obj: Any) -> None:
    with CheckpointManager(root, {"w": weights, "input": obj}) as manager:
        weights.fill(3)
        manager.save(3)
    weights.fill(1)


def refuses(root: Path, weights: Weights, obj: Any, why: str) -> None:
    """A strict restore names the object and changes nothing, neither here nor in the root."""
    files = sorted(root.rglob("*"))
    for read_only in (True, False):
        with CheckpointManager(root, {"w": weights, "input": obj}, read_only=read_only) as manager:
            with pytest.raises(StateMismatchError, match="no value was changed") as caught:
                manager.restore_latest()
        assert "  input: " in str(caught.value)
        assert why in str(caught.value)
        assert "mixture" not in str(caught.value)
        assert weights.value() == 1
    assert sorted(root.rglob("*")) == files  # no claim either


def warm_starts(root: Path, weights: Weights, obj: Any, log: pytest.LogCaptureFixture) -> None:
    """A warm start takes the rest, and says what it left."""
    for read_only in (True, False):
        weights.fill(1)
        log.clear()
        with CheckpointManager(root, {"w": weights, "input": obj}, read_only=read_only) as manager:
            assert manager.restore_latest(partial=True) is not None
        assert weights.value() == 3
        assert "left as it was: input: " in log.text
        assert "left as they were: input/" in log.text


@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("change", PIPELINES)
def test_a_changed_pipeline(
    tmp_path: Path, weights: Weights, caplog: pytest.LogCaptureFixture, change: str, taken: int
) -> None:
    before, after = PIPELINES[change]
    save(tmp_path, weights, iterator_of(before, 4))
    expected = drawn(iterator_of(after, taken), 3)
    iterator = iterator_of(after, taken)
    refuses(tmp_path, weights, iterator, "another pipeline")
    warm_starts(tmp_path, weights, iterator, caplog)
    assert drawn(iterator, 3) == expected  # as it was made, and the seeds that come after, too


def shuffled_twice(size: int) -> Any:
    return tf.data.Dataset.range(60).shuffle(size, seed=1).batch(2).shuffle(2, seed=2)


def test_a_changed_shuffle_below_another(tmp_path: Path, weights: Weights, caplog: pytest.LogCaptureFixture) -> None:
    """Before the first element is drawn the outer one has not made it: it is not in the position of a new iterator."""
    save(tmp_path, weights, iterator_of(lambda: shuffled_twice(5), 4))
    iterator = iterator_of(lambda: shuffled_twice(6), 0)
    refuses(tmp_path, weights, iterator, "buffer_size=5 there, 6 here")
    warm_starts(tmp_path, weights, iterator, caplog)
    assert sorted(np.concatenate(drawn(iterator, 30)).tolist()) == list(range(60))


@pytest.mark.parametrize("change", OF_OTHER_ELEMENTS)
def test_elements_that_were_fetched_ahead(
    tmp_path: Path, weights: Weights, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    before, after = OF_OTHER_ELEMENTS[change]
    saved = iterator_of(before, 1)
    until(lambda: bool(re.search(rb"(Prefetch::|results\[)0", position_of(saved))), HANG_S)
    save(tmp_path, weights, saved)
    iterator = iterator_of(after, 0)
    refuses(tmp_path, weights, iterator, "another pipeline")
    warm_starts(tmp_path, weights, iterator, caplog)
    assert drawn(iterator, 3) == drawn(iterator_of(after, 0), 3)


@pytest.mark.parametrize("change", OF_OTHER_ELEMENTS)
def test_a_position_that_tensorflow_alone_has_written(change: str) -> None:
    """It does not say of which pipeline it is."""
    before, after = OF_OTHER_ELEMENTS[change]
    saved, made, again = iterator_of(before, 1), iterator_of(after, 0), iterator_of(before, 0)
    until(lambda: bool(re.search(rb"(Prefetch::|results\[)0", position_of(saved))), HANG_S)
    (state,) = to_tensors(saved).values()
    parts = {"position": np.array(tf.io.serialize_tensor(state).numpy(), object)}
    other, same = bundle_of(made, "input"), bundle_of(again, "input")
    assert other is not None
    assert same is not None
    assert "other dtypes or shapes" in other.misfit(parts)
    assert same.misfit(parts) == ""
    assert drawn(made, 3) == drawn(iterator_of(after, 0), 3)


SAME: dict[str, Make] = {
    "shuffled": PIPELINES["shuffle removed"][0],
    "shuffled twice": lambda: shuffled_twice(5).repeat(),
    "of an unknown size": lambda: numbers().shuffle(tf.data.UNKNOWN_CARDINALITY, seed=1).repeat(),
    "one after another": lambda: numbers().shuffle(2, seed=1).concatenate(numbers().shuffle(7, seed=2)),
    "with an error to come": lambda: numbers().map(lambda n: 84 // (n - 4)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_pipeline_goes_on_where_it_was(tmp_path: Path, weights: Weights, name: str) -> None:
    def rest(iterator: Any) -> list[Any]:
        found: list[Any] = []
        for _ in range(30):
            try:
                found += drawn(iterator, 1)
            except (StopIteration, tf.errors.InvalidArgumentError) as error:
                found.append(type(error))
        return found

    iterator = iterator_of(SAME[name], 4)
    save(tmp_path, weights, iterator)
    expected = rest(iterator)
    again = iterator_of(SAME[name], 1)
    with CheckpointManager(tmp_path, {"w": weights, "input": again}) as manager:
        manager.restore_latest()
    assert rest(again) == expected


def table(default: Any, keys: Any = (), values: Any = (), key_dtype: Any = tf.int64) -> Any:
    made = tf.lookup.experimental.MutableHashTable(key_dtype, tf.as_dtype(np.asarray(default).dtype), default)
    if len(keys):
        made.insert(tf.constant(keys, key_dtype), tf.constant(values))
    return made


def dense(empty: int, keys: Any = (), values: Any = ()) -> Any:
    made = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, -1.0, empty, empty - 1)
    if len(keys):
        made.insert(tf.constant(keys, tf.int64), tf.constant(values, tf.float32))
    return made


VECTOR, ZEROS = np.zeros(2, np.float32), np.float32(0)
TABLES: dict[str, tuple[Make, Make, str]] = {
    "value shape": (lambda: table(VECTOR, [1, 2], [[1.0, 2.0], [3.0, 4.0]]), lambda: table(ZEROS), "shape"),
    "wider values": (lambda: table(VECTOR, [1], [[1.0, 2.0]]), lambda: table(np.zeros(3, np.float32)), "shape"),
    "scalar values": (lambda: table(ZEROS, [1], [1.0]), lambda: table(VECTOR), "shape"),
    "a key that cannot be held": (lambda: table(ZEROS, [7, 8], [1.0, 2.0]), lambda: dense(7), "empty_key"),
    "another empty key": (lambda: dense(-5, [7, 8], [1.0, 2.0]), lambda: dense(8), "empty_key"),
}


@pytest.mark.parametrize("change", TABLES)
def test_a_changed_table(tmp_path: Path, weights: Weights, caplog: pytest.LogCaptureFixture, change: str) -> None:
    before, after, why = TABLES[change]
    save(tmp_path, weights, before())
    made = after()
    refuses(tmp_path, weights, made, why)
    warm_starts(tmp_path, weights, made, caplog)
    assert int(made.size()) == 0


def test_a_table_of_other_dtypes(tmp_path: Path, weights: Weights) -> None:
    save(tmp_path, weights, table(ZEROS, [1], [1.0]))
    for made in (table(np.int32(0)), table(ZEROS, key_dtype=tf.string)):
        with CheckpointManager(tmp_path, {"w": weights, "input": made}) as manager:
            with pytest.raises(StateMismatchError, match=r"input/(keys|values): dtype"):
                manager.restore_latest()
        assert weights.value() == 1


WORDS = ["a", "b", "c", "d"]


def lookup(module: Any, **options: Any) -> Any:
    return module.layers.StringLookup(**options)


VOCABULARIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fewer tokens": ({}, {"max_tokens": 3}),
    "more out of vocabulary": ({}, {"num_oov_indices": 3}),
    "none to one": ({"num_oov_indices": 0}, {"num_oov_indices": 1, "max_tokens": 4}),
    "a mask": ({}, {"mask_token": "a"}),
}


@pytest.mark.parametrize("module", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("change", VOCABULARIES)
def test_a_changed_vocabulary(
    tmp_path: Path, weights: Weights, caplog: pytest.LogCaptureFixture, change: str, module: Any
) -> None:
    before, after = VOCABULARIES[change]
    saved = lookup(module, **before)
    saved.set_vocabulary(WORDS)
    save(tmp_path, weights, saved)
    made = lookup(module, **after)
    made.set_vocabulary(["x"])
    words = made.get_vocabulary()
    refuses(tmp_path, weights, made, "")
    warm_starts(tmp_path, weights, made, caplog)
    assert made.get_vocabulary() == words


@pytest.mark.parametrize("module", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_vocabulary_whose_size_is_fixed_by_a_call(tmp_path: Path, weights: Weights, module: Any) -> None:
    saved = lookup(module, output_mode="multi_hot")
    saved.set_vocabulary(WORDS)
    save(tmp_path, weights, saved)
    made = lookup(module, output_mode="multi_hot", vocabulary=["x"])
    made(tf.constant([["x"]]))
    refuses(tmp_path, weights, made, "size")
    assert made.get_vocabulary()[-1] == "x"
    fitting = lookup(module, output_mode="multi_hot")
    with CheckpointManager(tmp_path, {"w": weights, "input": fitting}) as manager:
        manager.restore_latest()
    assert fitting.get_vocabulary() == saved.get_vocabulary()


def test_a_generator_of_another_algorithm(tmp_path: Path, weights: Weights) -> None:
    save(tmp_path, weights, tf.random.Generator.from_seed(1, alg="philox"))
    other = tf.random.Generator.from_seed(2, alg="threefry")
    with CheckpointManager(tmp_path, {"w": weights, "input": other}) as manager:
        with pytest.raises(StateMismatchError, match="input/state_var: shape"):
            manager.restore_latest()
    assert weights.value() == 1
