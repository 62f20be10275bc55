"""Pipelines of many kinds, each made of some data, and changes of such that TensorFlow takes without a word.

Run as a program with a folder, it saves a position in each: in the root `same`, and, before the change, in `changed`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow import CheckpointManager

Dataset = tf.data.Dataset
Make = Callable[[], Any]
AUTO = tf.data.AUTOTUNE
TAKEN = 3


def numbers(count: int = 40) -> Any:
    return Dataset.range(count)


def several(x: Any) -> Any:
    return Dataset.from_tensors(x).repeat(20)


def written(folder: Path, count: int, lines: int) -> list[str]:
    """Files of lines and, beside them, the same as records."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(folder / f"{file}.txt") for file in range(count)]
    for file, name in enumerate(names):
        texts = [f"{file}-{line}" for line in range(lines)]
        Path(name).write_text("\n".join(texts))
        with tf.io.TFRecordWriter(f"{name}.records") as writer:
            for text in texts:
                writer.write(text)
    return names


def same(folder: Path, more: int = 0) -> dict[str, Make]:
    """With `more` there are other data, and more of them, and other seeds."""
    files = written(folder / f"files-{more}", 4 + more, 9 + more)
    records = [f"{name}.records" for name in files]
    array = np.arange(40.0 + more).reshape(-1, 1) + more
    seed = 1 + more

    def lines() -> Any:
        return Dataset.from_tensor_slices(files)

    def labelled() -> Any:
        return Dataset.from_tensor_slices({"x": array, "y": [str(each) for each in array]})

    def with_options() -> Any:
        options = tf.data.Options()
        options.deterministic, options.threading.private_threadpool_size = True, 1 + more
        return numbers().map(lambda x: x + 1, num_parallel_calls=2).with_options(options)

    words = [f"{each % 7}" for each in range(40 + more)]
    lengths = numbers().map(lambda x: tf.range(x % 7 + more))
    return {
        "range": lambda: numbers(40 + more),
        "range from": lambda: Dataset.range(more, 100 + more, 2),
        "slices": lambda: Dataset.from_tensor_slices(array),
        "dict": labelled,
        "tensors": lambda: Dataset.from_tensors(array).repeat(5 + more),
        "shuffled": lambda: numbers(40 + more).shuffle(10, seed=seed).repeat(),
        "shuffled without a seed": lambda: numbers(40 + more).shuffle(10),
        "batches": lambda: Dataset.from_tensor_slices(array).batch(4, drop_remainder=True),
        "parallel batches": lambda: numbers(40 + more).batch(4, num_parallel_calls=2),
        "padded batches": lambda: lengths.padded_batch(4),
        "ragged batches": lambda: lengths.ragged_batch(4),
        "mapped": lambda: labelled().map(lambda row: (row["x"] * seed, row["y"])),
        "mapped in parallel": lambda: numbers().map(lambda x: x * seed, num_parallel_calls=AUTO).prefetch(AUTO),
        "mapped by a condition": lambda: numbers().map(lambda x: tf.cond(x > 3, lambda: x + seed, lambda: x)),
        "filtered": lambda: numbers().filter(lambda x: x % 2 == 0),
        "interleaved": lambda: lines().interleave(tf.data.TextLineDataset, cycle_length=4),
        "interleaved in parallel": lambda: lines().interleave(
            tf.data.TextLineDataset, cycle_length=2, num_parallel_calls=2, deterministic=True
        ),
        "flat map": lambda: lines().flat_map(lambda name: tf.data.TextLineDataset(name).skip(more).batch(2)),
        "text lines": lambda: tf.data.TextLineDataset(files),
        "records": lambda: tf.data.TFRecordDataset(records),
        "records in parallel": lambda: tf.data.TFRecordDataset(records, num_parallel_reads=2),
        "files": lambda: Dataset.list_files(files, shuffle=False),
        "zip": lambda: Dataset.zip(numbers(40 + more), labelled()),
        "concatenated": lambda: numbers(2 + more).concatenate(numbers(9)),
        "sampled": lambda: Dataset.sample_from_datasets([numbers(50), numbers(50 + more)], [0.5, 0.5], seed=seed),
        "chosen": lambda: Dataset.choose_from_datasets([numbers(9 + more), numbers(9)], Dataset.range(2).repeat()),
        "scan": lambda: numbers().scan(tf.constant(more, tf.int64), lambda total, x: (total + x, total)),
        "windows": lambda: numbers(40 + more).window(4, 2).flat_map(lambda window: window.batch(4)),
        "groups": lambda: numbers(40 + more).group_by_window(lambda x: x % 3, lambda key, each: each.batch(4), 4),
        "buckets": lambda: lengths.bucket_by_sequence_length(tf.size, [3, 6], [2, 2, 2]),
        "unbatched": lambda: numbers(40 + more).batch(4).unbatch(),
        "rebatched": lambda: numbers(40 + more).batch(4).rebatch(3),
        "part": lambda: numbers(40 + more).skip(more).take(20 + more).repeat(2 + more),
        "cached": lambda: numbers(40 + more).cache().repeat(),
        "enumerated": lambda: labelled().enumerate(),
        "shard": lambda: numbers(40 + more).shard(4, more),
        "unique": lambda: Dataset.from_tensor_slices(words).unique(),
        "while": lambda: numbers().take_while(lambda x: x < 30 + more),
        "options": with_options,
        "of TensorFlow 1": lambda: tf.compat.v1.data.Dataset.range(40 + more).batch(2),
    }


def batches_of(size: int) -> Make:
    return lambda: numbers().map(lambda x: tf.range(x % 5)).padded_batch(size)


# TensorFlow goes on with these exactly: in the first pipeline, and in the second one, from the same place.
EQUAL: dict[str, tuple[Make, Make]] = {
    "map in parallel": (
        lambda: numbers().map(lambda x: x + 1),
        lambda: numbers().map(lambda x: x + 1, num_parallel_calls=AUTO),
    ),
    "map no longer in parallel": (
        lambda: numbers().map(lambda x: x + 1, num_parallel_calls=2).batch(2),
        lambda: numbers().map(lambda x: x + 1).batch(2),
    ),
    "prefetch added": (lambda: numbers().batch(2), lambda: numbers().batch(2).prefetch(AUTO)),
    "prefetch removed": (lambda: numbers().batch(2).prefetch(AUTO), lambda: numbers().batch(2)),
    "repeat once": (lambda: numbers().batch(2), lambda: numbers().repeat(1).batch(2)),
    "take all": (lambda: numbers().batch(2), lambda: numbers().take(-1).batch(2)),
    "skip none": (lambda: numbers().skip(0).batch(2), lambda: numbers().batch(2)),
    "one shard": (lambda: numbers().batch(2), lambda: numbers().shard(1, 0).batch(2)),
    "one shard less": (lambda: numbers().shard(1, 0).batch(2), lambda: numbers().batch(2)),
    "calls of a parallel batch": (
        lambda: numbers().batch(2, num_parallel_calls=2),
        lambda: numbers().batch(2, num_parallel_calls=3),
    ),
    "repeat once in a flat map": (
        lambda: numbers(6).flat_map(lambda x: numbers(7)),
        lambda: numbers(6).flat_map(lambda x: numbers(7).repeat(1)),
    ),
}

# And with these too, in batches of the new size.
BATCHED: dict[str, tuple[Make, Make]] = {
    "larger batches": (lambda: numbers().batch(2), lambda: numbers().batch(4)),
    "larger batches of a shuffle": (
        lambda: numbers().shuffle(9, seed=1).batch(2),
        lambda: numbers().shuffle(9, seed=1).batch(4),
    ),
    "smaller padded batches": (batches_of(4), batches_of(2)),
    "smaller batches of groups": (
        lambda: numbers().group_by_window(lambda x: x % 3, lambda key, each: each.batch(4), 8),
        lambda: numbers().group_by_window(lambda x: x % 3, lambda key, each: each.batch(2), 8),
    ),
    "smaller batches in a flat map": (
        lambda: numbers(6).flat_map(lambda x: numbers(16).batch(4)),
        lambda: numbers(6).flat_map(lambda x: numbers(16).batch(2)),
    ),
}


CHANGED: dict[str, tuple[Make, Make]] = {
    "interleave: fewer at once": (
        lambda: numbers(6).interleave(several, cycle_length=4),
        lambda: numbers(6).interleave(several, cycle_length=2),
    ),
    "interleave: more at once": (
        lambda: numbers(6).interleave(several, cycle_length=2),
        lambda: numbers(6).interleave(several, cycle_length=4),
    ),
    "interleave: longer blocks": (
        lambda: numbers(6).interleave(several, cycle_length=2, block_length=4),
        lambda: numbers(6).interleave(several, cycle_length=2, block_length=1),
    ),
    "a larger parallel batch": (
        lambda: numbers().batch(4, num_parallel_calls=2, drop_remainder=True).unbatch(),
        lambda: numbers().batch(8, num_parallel_calls=2, drop_remainder=True).unbatch(),
    ),
    "another dtype below a batch": (
        lambda: numbers().map(lambda x: x * 1, num_parallel_calls=3).batch(2),
        lambda: numbers().map(lambda x: tf.cast(x, tf.float32), num_parallel_calls=3).batch(2),
    ),
    "another dtype below a map": (
        lambda: numbers().shuffle(5, seed=1).map(lambda x: x + 1),
        lambda: numbers().map(lambda x: tf.cast(x, tf.int32)).shuffle(5, seed=1).map(lambda x: tf.cast(x, tf.int64)),
    ),
    "fewer to sample": (
        lambda: Dataset.sample_from_datasets([numbers(), numbers(), numbers(9)], seed=1),
        lambda: Dataset.sample_from_datasets([numbers(), numbers()], seed=1),
    ),
    "fewer to choose from": (
        lambda: Dataset.choose_from_datasets([numbers(), numbers(), numbers()], Dataset.range(3).repeat()),
        lambda: Dataset.choose_from_datasets([numbers(), numbers()], Dataset.range(2).repeat()),
    ),
    "a scan of another dtype": (
        lambda: numbers().scan(tf.constant(0, tf.int64), lambda total, x: (total + x, total)),
        lambda: numbers().scan(tf.constant(0.0), lambda total, x: (total + 1.0, tf.cast(total, tf.int64))),
    ),
    "a scan of another rank": (
        lambda: numbers().scan(tf.constant(0, tf.int64), lambda total, x: (total + x, total)),
        lambda: numbers().scan(tf.constant([0, 0], tf.int64), lambda total, x: (total + x, total[0])),
    ),
    "another window": (
        lambda: numbers().window(6, 1).flat_map(lambda window: window.batch(6)),
        lambda: numbers().window(2, 1).flat_map(lambda window: window.batch(2)),
    ),
    "another number of shards": (lambda: numbers().shard(2, 0), lambda: numbers().shard(4, 3)),
    "larger groups": (
        lambda: numbers().group_by_window(lambda x: x % 3, lambda key, each: each.batch(4), 4),
        lambda: numbers().group_by_window(lambda x: x % 3, lambda key, each: each.batch(4), 8),
    ),
    "an interleave in a flat map": (
        lambda: numbers(3).flat_map(lambda x: numbers(6).interleave(several, cycle_length=4)),
        lambda: numbers(3).flat_map(lambda x: numbers(6).interleave(several, cycle_length=2)),
    ),
    "other operations in a flat map": (
        lambda: numbers(6).flat_map(lambda x: numbers(5)),
        lambda: numbers(6).flat_map(lambda x: numbers(5).batch(2).unbatch()),
    ),
}


@tf.autograph.experimental.do_not_convert  # it takes long to read so many lambdas
def iterators(makes: dict[str, Make], taken: int = 0) -> dict[str, Any]:
    found = {name: iter(make()) for name, make in makes.items()}
    for iterator in found.values():
        for _ in range(taken):
            next(iterator)
    return found


def drawn(iterator: Any) -> list[list[str]]:
    """The next elements, as texts; none where it ends."""
    return [[_text(part) for part in tf.nest.flatten(next(iterator, ()))] for _ in range(2)]


def _text(part: Any) -> str:
    return str(part.to_list() if isinstance(part, tf.RaggedTensor) else np.asarray(part).tolist())


def main(folder: Path) -> None:
    numbers().map(lambda x: x + 1)  # TensorFlow numbers functions as they are made
    saved = iterators(same(folder), TAKEN)
    with CheckpointManager(folder / "same", saved) as manager:
        manager.save(1)
    (folder / "expected.json").write_text(json.dumps({name: drawn(each) for name, each in saved.items()}))
    with CheckpointManager(
        folder / "changed", iterators({n: before for n, (before, _) in CHANGED.items()}, 5)
    ) as manager:
        manager.save(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # TensorFlow takes long to end so many pipelines
