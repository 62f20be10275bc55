"""Every dtype's size and names, and the encoding of strings, against hostile bytes too."""

from __future__ import annotations

import contextlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.format import dtypes


@pytest.mark.parametrize("name", sorted(dtypes.names()))  # one order in every test process
def test_each_dtype_is_known_throughout(name: str) -> None:
    dtype = dtypes.numpy_dtype(name)
    assert dtypes.safetensors_name(name)
    if dtypes.is_encoded(name):
        assert (dtypes.item_size_bytes(name), dtype) == (1, np.dtype(object))
    else:
        assert dtypes.item_size_bytes(name) == dtype.itemsize
        assert dtype.name == name


def test_an_unknown_dtype_is_refused_by_name() -> None:
    for call in (dtypes.item_size_bytes, dtypes.numpy_dtype, dtypes.safetensors_name):
        with pytest.raises(ValueError, match="'qint8'"):
            call("qint8")
    assert not dtypes.is_encoded("qint8")


def test_safetensors_names_are_those_that_the_package_writes() -> None:
    for name in ("bool", "int32", "uint64", "float16", "float64", "complex64", "bfloat16", "float8_e4m3fn"):
        data = safetensors.numpy.save({"x": np.zeros(2, dtypes.numpy_dtype(name))})
        assert f'"dtype":"{dtypes.safetensors_name(name)}"'.encode() in data


def test_small_integers_take_one_byte() -> None:
    assert np.dtype(ml_dtypes.int4).itemsize == dtypes.item_size_bytes("int4") == 1


strings = st.lists(st.binary(max_size=20), max_size=30)


@given(strings)
def test_strings_come_back(items: list[bytes]) -> None:
    values = np.empty(len(items), dtype=object)
    values[:] = items
    data = dtypes.encode_strings(values)
    assert data.dtype == np.uint8
    assert data.ndim == 1
    assert dtypes.decode_strings(data, (len(items),)).tolist() == items


def test_the_encoding_is_the_one_that_is_specified() -> None:
    data = dtypes.encode_strings(np.array([[b"ab", b""]], dtype=object))
    assert data.tobytes() == bytes([2, *[0] * 7, 2, *[0] * 7, *[0] * 8]) + b"ab"
    decoded = dtypes.decode_strings(data, (1, 2))
    assert decoded.shape == (1, 2)
    assert decoded.tolist() == [[b"ab", b""]]


def test_a_scalar_string() -> None:
    data = dtypes.encode_strings(np.array(b"x", dtype=object))
    assert dtypes.decode_strings(data, ()).shape == ()
    assert dtypes.decode_strings(data, ()).item() == b"x"


def test_only_bytes_are_encoded() -> None:
    with pytest.raises(TypeError, match="str"):
        dtypes.encode_strings(np.array(["text"], dtype=object))


def _hostile(*numbers: int, rest: bytes = b"") -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(np.array(numbers, "<i8").tobytes() + rest, np.uint8)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (np.zeros(0, np.uint8), ()),
        (np.zeros(7, np.uint8), ()),
        (_hostile(2**62), (2**62,)),
        (_hostile(-1), (0,)),
        (_hostile(1, -1), (1,)),
        (_hostile(1, 2**62), (1,)),
        (_hostile(2, 2**63 - 1, 2**63 - 1, rest=b"abc"), (2,)),
        (_hostile(2, 2, 2, rest=b"abc"), (2,)),
        (_hostile(1, 2, rest=b"abc"), (1,)),
        (_hostile(1, 3, rest=b"abc"), (2,)),
        (_hostile(0, rest=b"a"), (0,)),
    ],
)
def test_bytes_that_nobody_encoded_are_refused(data: dtypes.Bytes1D, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="encoded strings"):
        dtypes.decode_strings(data, shape)


@given(strings, st.data())
def test_a_changed_byte_never_gives_the_same_strings_or_a_crash(items: list[bytes], draw: st.DataObject) -> None:
    values = np.empty(len(items), dtype=object)
    values[:] = items
    data = dtypes.encode_strings(values).copy()
    data[draw.draw(st.integers(0, data.size - 1))] ^= draw.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        assert dtypes.decode_strings(data, (len(items),)).tolist() != items
