"""A dict's key becomes a name only if it reads the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.state.tree import walk


class Color(Enum):
    RED = 1


@dataclass(frozen=True)
class Tagged:
    tags: Any


class Readable:
    """Nobody knows what it puts into its text."""

    def __str__(self) -> str:
        return "readable"


SAME_KEYS: list[Any] = [
    1, 1.5, True, None, "a", b"a", np.int64(1), Color.RED, tf.float32, np.dtype("int8"), Enum, PurePath("a"),
    date(2026, 1, 2), ("a", (1, None)), Tagged("a"), Tagged((1, Color.RED)),
]  # fmt: skip


@pytest.mark.parametrize("key", SAME_KEYS, ids=repr)
def test_a_key_that_reads_the_same_in_every_process(key: Any) -> None:
    assert [leaf.name for leaf in walk({"m": {key: tf.Variable(0.0)}}).leaves] == [f"m/{key}"]


@pytest.mark.parametrize(("key", "kind"), [(Tagged(frozenset("ab")), "frozenset"), (Readable(), "Readable")], ids=str)
def test_a_key_that_may_not(key: Any, kind: str) -> None:
    with pytest.raises(UnsupportedStateError, match=f"m holds a ResourceVariable .* key of type {kind}"):
        walk({"m": {key: tf.Variable(0.0)}})
