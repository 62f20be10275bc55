"""Plain Python state comes back equal and of the same types, through real JSON; anything else is refused by place."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptflow.errors import CorruptCheckpointError, UnsupportedStateError
from ckptflow.format.values import MAX_DEPTH, check_room, from_json, to_json

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from(["$", "$$", "$int", "$tuple", "$$dict", "\ud800", "é"])
    | st.binary(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["$int", "$", "$$"]), inner, max_size=4)
        | st.dictionaries(scalars, inner, max_size=4)
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types throughout, with order, signs of zero and NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(p, q) and same(a[p], b[q]) for p, q in zip(a, b, strict=True))
    return bool(a == b)


@given(values)
def test_values_come_back(value: Any) -> None:
    told = to_json(value, "state")
    assert same(from_json(msgspec.json.decode(msgspec.json.encode(told))), value)
    assert same(from_json(json.loads(json.dumps(told, allow_nan=False))), value)


@given(values)
def test_the_form_is_stable(value: Any) -> None:
    encoded = msgspec.json.encode(to_json(value, "state"))
    assert msgspec.json.encode(msgspec.json.decode(encoded)) == encoded
    assert msgspec.json.encode(to_json(from_json(msgspec.json.decode(encoded)), "state")) == encoded


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2**53, 2**53),
        (2**53 + 1, {"$int": "0x20000000000001"}),
        (-(2**64), {"$int": "-0x10000000000000000"}),
        (float("-inf"), {"$float": "-inf"}),
        (b"\x00\xff", {"$bytes": "AP8="}),
        ((1, [2]), {"$tuple": [1, [2]]}),
        ({"$tuple": 1, "a": 2}, {"$$tuple": 1, "a": 2}),
        ({1: 2, None: "x"}, {"$dict": [[1, 2], [None, "x"]]}),
        ({}, {}),
    ],
)
def test_the_specified_forms(value: Any, told: Any) -> None:
    assert to_json(value, "state") == told
    assert same(from_json(told), value)


def test_numbers_of_any_size() -> None:
    value = 10**5000  # more digits than Python's int() and str() take
    assert from_json(to_json({value: [value]}, "state")) == {value: [value]}
    with pytest.raises(UnsupportedStateError, match=r"state\[0x"):
        to_json({value: object()}, "state")


def test_numpy_scalars_become_pythons() -> None:
    told = to_json({"a": np.float32(0.5), np.int64(3): np.bool_(True), "s": np.str_("x")}, "state")
    assert same(from_json(told), {"a": 0.5, 3: True, "s": "x"})
    small = [ml_dtypes.bfloat16(0.5), np.float16(0.5), ml_dtypes.int4(3), np.uint64(2**64 - 1)]
    assert same(from_json(to_json(small, "state")), [0.5, 0.5, 3, 2**64 - 1])
    ends = {np.str_("x\0"): np.bytes_(b"x\0")}
    assert same(from_json(to_json(ends, "state")), {"x\0": b"x\0"})


class Colour(IntEnum):
    RED = 1


NOT_OF_PYTHON = [
    np.longdouble(1),
    np.complex64(1),
    np.datetime64(1, "s"),
    np.datetime64(1, "ns"),
    np.datetime64("NaT"),
    np.timedelta64(1, "ns"),
    np.timedelta64("NaT"),
]
RECORDS = [np.void(b"ab"), np.array([(1, 2.0)], "i4,f4")[0]]


@pytest.mark.parametrize(
    "value",
    [object(), {1}, np.zeros(3), complex(1), OrderedDict(a=1), Colour.RED, *NOT_OF_PYTHON, *RECORDS],
)
def test_what_has_no_exact_form_is_refused_by_its_place(value: object) -> None:
    with pytest.raises(UnsupportedStateError, match=r"loader\['epochs'\]\[1\].*None, bool, int"):
        to_json({"epochs": [0, value]}, "loader")


@pytest.mark.parametrize("key", [Colour.RED, *NOT_OF_PYTHON])
def test_a_key_that_has_no_exact_form_is_refused(key: object) -> None:
    with pytest.raises(UnsupportedStateError, match=f"a key of type {type(key).__name__}"):
        to_json({key: 3}, "state")


def test_a_key_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(UnsupportedStateError, match="key of type tuple"):
        to_json({(1, 2): 3}, "state")


def test_nesting_is_bounded() -> None:
    value: Any = 0
    for _ in range(MAX_DEPTH):
        value = [value]
    assert same(from_json(to_json(value, "state")), value)
    with pytest.raises(UnsupportedStateError, match="nested"):
        to_json([value], "state")
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(UnsupportedStateError, match="contains itself"):
        to_json(ring, "state")
    with pytest.raises(CorruptCheckpointError, match="nested"):
        from_json([[value]])


@pytest.mark.parametrize(
    "told",
    [
        {"$int": 5},
        {"$int": "xyz"},
        {"$float": "1.0"},
        {"$float": []},
        {"$bytes": "%%%"},
        {"$tuple": {}},
        {"$dict": [[1]]},
        {"$dict": [[[1], 2]]},
        {"$dict": 3},
        {"$dict": [5]},
        {"$unknown": 1},
        {"$int": "0x1", "a": 1},
        {"$": 1},
        {"$str": "gA=="},
    ],
)
def test_a_form_that_was_never_written_is_refused(told: Any) -> None:
    with pytest.raises(CorruptCheckpointError):
        from_json(told)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "$$b", "$tuple", "$dict", "$int", "$bytes"]), inner, max_size=2),
    ),
)


@pytest.mark.parametrize("around", [lambda v: [v], lambda v: {"a": v}, lambda v: {"$tuple": [v]}, None])
@settings(max_examples=30)
@given(JSON, st.integers(MAX_DEPTH - 3, MAX_DEPTH + 3))
def test_whatever_is_read_can_be_written_again(around: Callable[[Any], Any] | None, value: Any, depth: int) -> None:
    """Else one forged record, once read, would break what shows it with others."""
    for _ in range(depth if around is not None else 0):
        value = around(value)  # type: ignore[misc]
    try:
        read = from_json(value)
    except CorruptCheckpointError:
        return
    assert same(from_json(to_json(read, "state")), read)


def test_names_take_room_as_what_they_name_does() -> None:
    check_room({"a": "x" * 900}, 1000)
    check_room({"n" * 900: "x"}, 1000)
    with pytest.raises(UnsupportedStateError, match=r"nnn.* takes 1,0.. bytes"):
        check_room({"n" * 1000: "x"}, 1000)
    with pytest.raises(UnsupportedStateError, match="bytes of JSON"):
        check_room({f"{number:03}" + "n" * 50: 0 for number in range(20)}, 1000)
