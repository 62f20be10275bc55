"""Shards: what stock safetensors makes of them, keys that cannot collide, headers that lie, checksums put together."""

from __future__ import annotations

import json
import math
from typing import Any

import crc32c
import msgspec
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.format import dtypes
from ckptflow.format.boxes import whole
from ckptflow.format.shard import (
    EMPTY_HEADER_ROOM_BYTES,
    MAX_HEADER_BYTES,
    ShardEntry,
    crc32c_combine,
    header_room_bytes,
    header_size_bytes,
    layout_shard,
    parse_header,
    slice_key,
)

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(
    ["__metadata__", "a", "a]", "a[0:1]", "a[]", "[]", "a[0:1][0:1]", 'quote"', "back\\slash", "a/b"]
)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def entries(draw: st.DrawFn) -> ShardEntry:
    shape = draw(shapes)
    start = tuple(draw(st.integers(0, max(n - 1, 0))) for n in shape)
    extents = tuple(draw(st.integers(0, n - at)) for n, at in zip(shape, start, strict=True))
    if draw(st.booleans()):
        start, extents = whole(shape)
    return ShardEntry(draw(names), draw(st.sampled_from(dtypes.names())), shape, start, extents)


def one_shape_per_name(found: list[ShardEntry]) -> list[ShardEntry]:
    """As in a checkpoint: a name stands for one tensor, a slice is there once."""
    first: dict[str, ShardEntry] = {}
    kept: dict[tuple[Any, ...], ShardEntry] = {}
    for entry in found:
        known = first.setdefault(entry.name, entry)
        if (known.shape, known.dtype) == (entry.shape, entry.dtype):
            kept[entry.name, entry.start, entry.extents] = entry
    return list(kept.values())


shards = st.lists(entries(), max_size=8).map(one_shape_per_name)


def fill(parts: list[ShardEntry], seed: int = 0) -> tuple[bytes, tuple[int, ...]]:
    layout = layout_shard(parts)
    body = np.random.default_rng(seed).integers(0, 2, layout.size_bytes - len(layout.header), dtype=np.uint8)
    return layout.header + body.tobytes(), layout.offsets


@given(shards)
def test_keys_never_collide_and_everything_is_aligned(parts: list[ShardEntry]) -> None:
    layout = layout_shard(parts)  # raises where two keys are equal
    assert len({entry.key for entry in parts} | {"__metadata__"}) == len(parts) + 1
    assert len(layout.header) % 64 == 0
    for entry, offset in zip(parts, layout.offsets, strict=True):
        assert offset % dtypes.item_size_bytes(entry.dtype) == 0
        assert offset % math.gcd(64, entry.size_bytes or 64) == 0
    room = EMPTY_HEADER_ROOM_BYTES + sum(map(header_room_bytes, parts))
    assert len(layout.header) <= room


@given(shards)
def test_the_strict_reader_reads_what_was_laid_out(parts: list[ShardEntry]) -> None:
    data, offsets = fill(parts)
    found = {entry.key: entry for entry in parse_header(data, len(data))}
    assert set(found) == {entry.key for entry in parts}
    for entry, offset in zip(parts, offsets, strict=True):
        read = found[entry.key]
        assert (read.begin, read.end) == (offset, offset + entry.size_bytes)
        assert read.dtype == dtypes.safetensors_name(entry.dtype)
        assert read.shape == dtypes.safetensors_shape(entry.dtype, entry.extents)


@given(shards)
def test_stock_safetensors_opens_every_shard(parts: list[ShardEntry]) -> None:
    data, offsets = fill(parts)
    found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert set(found) == {entry.key for entry in parts}
    for entry, offset in zip(parts, offsets, strict=True):
        assert bytes(found[entry.key]["data"]) == data[offset : offset + entry.size_bytes]


def test_arrays_come_out_of_stock_safetensors() -> None:
    parts = [
        ShardEntry("model/kernel", "float32", (4, 3), (2, 0), (2, 3)),
        ShardEntry("model/bias", "float16", (5,), (0,), (5,)),
        ShardEntry("model/phase", "complex128", (2,), (0,), (2,)),
    ]
    data, offsets = fill(parts)
    found = safetensors.numpy.load(data)
    assert found["model/kernel[2:4,0:3]"].shape == (2, 3)
    assert found["model/bias"].dtype == np.dtype(np.float16)
    phase = np.ascontiguousarray(found["model/phase"]).view(np.complex128)
    assert phase.tobytes() == data[offsets[2] : offsets[2] + 32]


def test_the_specified_keys() -> None:
    assert slice_key("a/b", (4, 3), (0, 0), (4, 3)) == "a/b"
    assert slice_key("a/b", (4, 3), (2, 0), (2, 3)) == "a/b[2:4,0:3]"
    assert slice_key("a[0:4]", (4,), (0,), (4,)) == "a[0:4][0:4]"
    assert slice_key("a]", (), (), ()) == "a][]"
    assert slice_key("__metadata__", (4,), (0,), (4,)) == "__metadata__[0:4]"


def test_a_slice_stands_once() -> None:
    entry = ShardEntry("a", "int8", (4,), (0,), (4,))
    with pytest.raises(ValueError, match="twice"):
        layout_shard([entry, entry])


def header_of(members: dict[str, Any] | str, data_bytes: int) -> tuple[bytes, int]:
    text = members.encode() if isinstance(members, str) else msgspec.json.encode(members)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + data_bytes


def entry(begin: int, end: int, dtype: str = "I8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("members", "data_bytes"),
    [
        ({"a": entry(0, 4)}, 5),  # bytes after the last
        ({"a": entry(0, 4)}, 3),  # bytes missing
        ({"a": entry(1, 5)}, 5),  # a hole in front
        ({"a": entry(0, 2), "b": entry(3, 5)}, 5),
        ({"a": entry(0, 3), "b": entry(2, 5)}, 5),  # overlap
        ({"a": entry(0, 5), "b": entry(0, 5)}, 5),
        ({"a": entry(0, 4, "F32", [2])}, 4),
        ({"a": entry(0, 4, "F31", [1])}, 4),
        ({"a": entry(0, 4, "I8", [-4])}, 4),
        ({"a": entry(0, 4, "I8", [-2, -2])}, 4),
        ({"a": entry(0, 0, "I8", [2**62, 2**62])}, 0),
        ({"a": entry(0, 4) | {"more": 1}}, 4),
        ({"a": {"dtype": "I8", "shape": [4]}}, 4),
        ({"a": [0, 4]}, 4),
        ({"a": entry(0, 4, "I8", [4.0])}, 4),  # type: ignore[list-item]
        (json.dumps({"a": entry(0, 4), "b": entry(0, 4)}).replace('"b"', '"a"'), 4),
        ('{"__metadata__":{"a":"1","a":"2"}}', 0),
        ("[1]", 0),
        ("[" * 100_000, 0),
        ('{"a":' * 100_000, 0),
        ('{"a":' + "9" * 5000 + "}", 0),
        ("{", 0),
        ("", 0),
    ],
)
def test_headers_that_lie_are_refused(members: dict[str, Any] | str, data_bytes: int) -> None:
    head, size = header_of(members, data_bytes)
    with pytest.raises(ValueError):
        parse_header(head, size)


def test_lengths_are_bounded_before_anything_is_read() -> None:
    for length, size in ((2**63, 2**62), (MAX_HEADER_BYTES + 1, 2**40), (93, 100), (2**64 - 1, 100)):
        with pytest.raises(ValueError, match="does not fit"):
            header_size_bytes(length.to_bytes(8, "little"), size)
    with pytest.raises(ValueError, match="does not fit"):
        header_size_bytes(b"\0" * 7, 100)
    with pytest.raises(ValueError, match="cut short"):
        parse_header((50).to_bytes(8, "little") + b"{}", 100)


@given(st.data())
def test_no_changed_byte_of_a_header_crashes_the_reader(data: st.DataObject) -> None:
    shard, _ = fill([ShardEntry("a", "float32", (4, 2), (0, 0), (4, 2)), ShardEntry("b", "int8", (), (), ())])
    changed = bytearray(shard)
    size = header_size_bytes(shard[:8], len(shard))
    changed[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = parse_header(bytes(changed), len(changed))
    except ValueError:
        return
    assert sum(entry.end - entry.begin for entry in read) == len(changed) - header_size_bytes(
        bytes(changed[:8]), len(changed)
    )


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_checksums_combine(first: bytes, second: bytes) -> None:
    combined = crc32c_combine(crc32c.crc32c(first), crc32c.crc32c(second), len(second))
    assert combined == crc32c.crc32c(first + second)


@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 7_654_321])
def test_checksums_of_large_parts_combine(size: int) -> None:
    second = np.random.default_rng(size).bytes(size)
    assert crc32c_combine(crc32c.crc32c(b"first"), crc32c.crc32c(second), size) == crc32c.crc32c(b"first" + second)


def test_empty_parts_change_no_checksum() -> None:
    assert crc32c_combine(0x1234, 0, 0) == 0x1234
    assert crc32c_combine(0, 0x1234, 2**40) == 0x1234
