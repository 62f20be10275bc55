"""A dict's key becomes a name only if it reads the same in every process."""

from __future__ import annotations

import ipaddress
import re
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


class Tags(Enum):
    BOTH = frozenset("ab")


class Plain:
    """Its text has an address in it."""


class Readable:
    """Has a text of its own."""

    def __str__(self) -> str:
        return "readable"


SAME_KEYS: list[Any] = [
    1, 1.5, True, None, "a", b"a", np.int64(1), Color.RED, tf.float32, np.dtype("int8"), Enum, PurePath("a"),
    date(2026, 1, 2), ("a", (1, None)), Tagged("a"), Tagged((1, Color.RED)), Tags.BOTH,
    Readable(), tf.TensorShape([3, 4]), tf.TensorSpec([3], tf.float32), range(3), re.compile("a"),
    ipaddress.ip_address("1.2.3.4"), ("0xabcdef12", 1),
]  # fmt: skip


@pytest.mark.parametrize("key", SAME_KEYS, ids=str)
def test_a_key_that_reads_the_same_in_every_process(key: Any) -> None:
    assert [leaf.name for leaf in walk({"m": {key: tf.Variable(0.0)}}).leaves] == [f"m/{key}"]


OTHER_KEYS: dict[str, tuple[Any, str]] = {
    "set": (frozenset("ab"), "frozenset"),
    "dataclass with a set": (Tagged(frozenset("ab")), "Tagged"),
    "dataclass in a tuple": ((1, Tagged(frozenset("ab"))), "Tagged"),
    "set further inside": (Tagged((1, Tagged(frozenset("ab")))), "Tagged"),
    "enum of a set in a dataclass": (Tagged(Tags.BOTH), "Tagged"),
    "enum of a set in a tuple": ((1, Tags.BOTH), "tuple"),
    "address": (Plain(), "Plain"),
    "address in a dataclass": (Tagged(Plain()), "Tagged"),
}


@pytest.mark.parametrize("case", OTHER_KEYS)
def test_a_key_that_may_not(case: str) -> None:
    key, kind = OTHER_KEYS[case]
    with pytest.raises(UnsupportedStateError, match=f"m holds a ResourceVariable .* key of type {kind}"):
        walk({"m": {key: tf.Variable(0.0)}})


def test_keys_that_tell_variables_by_what_was_made_before_are_refused() -> None:
    variables = [tf.Variable(0.0, name="w") for _ in range(2)]
    kept = {each._unique_id: tf.Variable(1.0) for each in variables}
    with pytest.raises(UnsupportedStateError, match=r"module/kept: its keys, as .*_unique_id.* make them names"):
        walk({"variables": variables, "module": {"kept": kept}})
    assert walk({"module": {"kept": kept}}).leaves  # of no variable here


def test_keys_that_only_look_so_are_names() -> None:
    of_one = tf.Variable(0.0, name="w")
    state = {"one": of_one, "kept": {of_one._unique_id: tf.Variable(1.0)}}
    state["counted"] = {f"w_{number}": tf.Variable(0.0, name="w") for number in range(20)}
    assert len(walk(state).leaves) == 22
