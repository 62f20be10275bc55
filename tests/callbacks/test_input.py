"""The input of a fit, resumed at each batch of each epoch: the very elements, and the orders of the epochs after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckptflow.callbacks.input import Input

EPOCHS = 3


def numbers() -> Any:
    return tf.data.Dataset.range(9)


def shuffled(seed: int | None = 7) -> Any:
    return numbers().shuffle(9, seed=seed)


def files() -> Any:
    def lines(file: Any) -> Any:
        return tf.data.Dataset.range(3).map(lambda line: file * 3 + line)

    return tf.data.Dataset.range(4).shuffle(4, seed=1).interleave(lines, cycle_length=2).shuffle(5, seed=2)


PIPELINES: dict[str, Callable[[], Any]] = {
    "plain": lambda: numbers().batch(4),
    "shuffled": lambda: shuffled().batch(4),
    "prefetched": lambda: shuffled().batch(4).prefetch(2),
    "mapped": lambda: shuffled().map(lambda x: x + 0, num_parallel_calls=2).batch(3),
    "shuffled twice": lambda: shuffled().shuffle(4, seed=3).batch(5),
    "shuffled batches": lambda: shuffled().batch(2).shuffle(3, seed=3),
    "files": lambda: files().batch(5).prefetch(tf.data.AUTOTUNE),
    "cached": lambda: numbers().cache().shuffle(4, seed=3).batch(5),
    "one batch": lambda: shuffled().batch(9).prefetch(1),
}


def uninterrupted(dataset: Any, unused: int) -> tuple[list[list[Any]], list[list[tuple[dict[str, int], Any]]]]:
    """Each epoch's batches, and what is saved after each of them; `unused` more iterators are made after each epoch."""
    source = Input(dataset, lambda: iter(dataset))
    epochs, saved = [], []
    for _ in range(EPOCHS):
        source.iterator = iter(dataset)
        source.was_made()
        batches, points = [], []
        for batch in source.iterator:
            batches.append(batch.numpy().tolist())
            source.advance(1)
            points.append((source.counters(), source.position().numpy()))
        for _ in range(unused):
            iter(dataset)
            source.was_made()
        points.append((source.counters(), None))
        epochs.append(batches)
        saved.append(points)
    return epochs, saved


def rest(iterator: Any) -> list[Any]:
    return [batch.numpy().tolist() for batch in iterator]


@pytest.mark.parametrize(
    ("name", "unused"), [(name, number % 2) for number, name in enumerate(PIPELINES)], ids=lambda value: str(value)
)
def test_an_iterator_for_each_epoch(name: str, unused: int) -> None:
    make = PIPELINES[name]
    epochs, saved = uninterrupted(make(), unused)
    for epoch, points in enumerate(saved):
        for batch, (counters, position) in enumerate(points, 1):
            for has_position in (True, False) if position is not None else (False,):
                dataset = make()
                source = Input(dataset, lambda dataset=dataset: iter(dataset))  # type: ignore[misc]
                if position is None:  # between two epochs
                    source.draw(counters)
                else:
                    iterator = source.go_on(counters, position if has_position else None, is_carried=False)
                    assert rest(iterator) == epochs[epoch][batch:]
                    for _ in range(unused):
                        iter(dataset)
                for later in range(epoch + 1, EPOCHS):
                    assert rest(iter(dataset)) == epochs[later], (name, epoch, batch, later, has_position)
                    for _ in range(unused):
                        iter(dataset)


@pytest.mark.parametrize("name", PIPELINES)
def test_one_iterator_for_all_epochs(name: str) -> None:
    make = PIPELINES[name]
    dataset = make().repeat(2)
    source = Input(dataset, lambda: iter(dataset))
    iterator = source.iterator = iter(dataset)
    source.was_made()
    seen, points = [], []
    for batch in iterator:
        seen.append(batch.numpy().tolist())
        source.advance(1)
        points.append((source.counters(), source.position().numpy()))
    for batch, (counters, position) in enumerate(points, 1):
        for given in (position, None):
            dataset = make().repeat(2)
            source = Input(dataset, lambda dataset=dataset: iter(dataset))  # type: ignore[misc]
            assert rest(source.go_on(counters, given, is_carried=True)) == seen[batch:], (name, batch)


def test_another_pipeline_is_read_up_to_the_place(caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow takes the position, and its next element never comes."""

    def interleaved(cycle_length: int) -> Any:
        numbers = tf.data.Dataset.range(4)
        return numbers.interleave(lambda number: tf.data.Dataset.from_tensors(number).repeat(3), cycle_length)

    dataset, changed = interleaved(4), interleaved(2)
    source = Input(dataset, lambda: iter(dataset))
    source.iterator = iter(dataset)
    source.was_made()
    for _ in range(5):
        next(source.iterator)
        source.advance(1)
    counters, position = source.counters(), source.position().numpy()
    iterator = Input(changed, lambda: iter(changed)).go_on(counters, position, is_carried=False)
    assert "cycle_length=4, block_length=1) " in caplog.text
    assert rest(iterator) == rest(iter(interleaved(2)))[5:]


@pytest.mark.parametrize("change", ["batch size", "prefetch", "shards"])
def test_a_change_that_keeps_the_place(change: str) -> None:
    """TensorFlow takes the position exactly: read by number of batches, other elements would come."""
    numbers = tf.data.Dataset.range(40)
    before, after = {
        "batch size": (numbers.batch(2), numbers.batch(4)),
        "prefetch": (numbers.batch(2), numbers.batch(2).prefetch(2)),
        "shards": (numbers.shard(2, 0), numbers.shard(4, 0)),
    }[change]
    source = Input(before, lambda: iter(before))
    source.iterator = iter(before)
    source.was_made()
    for _ in range(4):
        next(source.iterator)
        source.advance(1)
    counters, position = source.counters(), source.position().numpy()
    iterator = Input(after, lambda: iter(after)).go_on(counters, position, is_carried=False)
    assert np.ravel(next(iterator))[0] == 8


def test_without_a_seed_no_element_is_lost_or_repeated() -> None:
    dataset = shuffled(seed=None).batch(5)
    source = Input(dataset, lambda: iter(dataset))
    source.iterator = iter(dataset)
    source.was_made()
    first = next(source.iterator).numpy().tolist()
    source.advance(1)
    counters, position = source.counters(), source.position().numpy()
    again = shuffled(seed=None).batch(5)
    left = rest(Input(again, lambda: iter(again)).go_on(counters, position, is_carried=False))
    assert sorted(sum(left, first)) == list(range(9))


def test_another_pipeline_is_read_up_to_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    dataset = shuffled().batch(5)
    source = Input(dataset, lambda: iter(dataset))
    source.iterator = iter(dataset)
    source.was_made()
    next(source.iterator)
    source.advance(1)
    counters, position = source.counters(), source.position().numpy()
    other = numbers().map(lambda x: x + 0).window(5).flat_map(lambda window: window.batch(5))
    assert rest(Input(other, lambda: iter(other)).go_on(counters, position, is_carried=False)) == [
        [5, 6, 7, 8],
    ]
    assert "not the one that the checkpoint was made with" in caplog.text


def test_what_has_no_position_is_read(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    generated = tf.data.Dataset.from_generator(lambda: iter(range(6)), output_signature=tf.TensorSpec((), tf.int64))
    source = Input(generated, lambda: iter(generated))
    source.iterator = iter(generated)
    source.was_made()
    next(source.iterator)
    source.advance(1)
    position = source.position().numpy()
    assert position.size == 0
    left = Input(generated, lambda: iter(generated)).go_on(source.counters(), position, is_carried=False)
    assert [int(number) for number in left] == [1, 2, 3, 4, 5]
    monkeypatch.setattr("ckptflow.callbacks.input.MAX_POSITION_BYTES", 1000)
    large = tf.data.Dataset.from_tensor_slices(np.zeros((64, 100))).shuffle(64, seed=1)
    source = Input(large, lambda: iter(large))
    source.iterator = iter(large)
    next(source.iterator)
    assert source.position().shape == [0]
    assert "is not saved" in caplog.text
