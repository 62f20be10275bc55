"""The dtypes that a checkpoint can hold: TensorFlow's name ↔ NumPy's dtype ↔ the name in a safetensors header.

Every element is stored little-endian. A dtype that safetensors does not know is stored under one that it does:
complex128 as pairs of F64, dtypes of fewer than 8 bits in one byte per element, exactly as NumPy holds them. "string"
and "variant" have no fixed element size; such a tensor is stored as one sequence of bytes, `encode_strings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bytes1D = npt.NDArray[np.uint8]
ObjectArray = npt.NDArray[np.object_]

# TensorFlow's name -> (NumPy's dtype, safetensors' name)
_TABLE: dict[str, tuple[np.dtype[Any], str]] = {
    "bool": (np.dtype(np.bool_), "BOOL"),
    "int8": (np.dtype(np.int8), "I8"),
    "int16": (np.dtype("<i2"), "I16"),
    "int32": (np.dtype("<i4"), "I32"),
    "int64": (np.dtype("<i8"), "I64"),
    "uint8": (np.dtype(np.uint8), "U8"),
    "uint16": (np.dtype("<u2"), "U16"),
    "uint32": (np.dtype("<u4"), "U32"),
    "uint64": (np.dtype("<u8"), "U64"),
    "float16": (np.dtype("<f2"), "F16"),
    "float32": (np.dtype("<f4"), "F32"),
    "float64": (np.dtype("<f8"), "F64"),
    "complex64": (np.dtype("<c8"), "C64"),
    "complex128": (np.dtype("<c16"), "F64"),  # with one more axis of 2: real, imaginary
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), "BF16"),
    "float8_e4m3fn": (np.dtype(ml_dtypes.float8_e4m3fn), "F8_E4M3"),
    "float8_e5m2": (np.dtype(ml_dtypes.float8_e5m2), "F8_E5M2"),
    "float8_e4m3fnuz": (np.dtype(ml_dtypes.float8_e4m3fnuz), "F8_E4M3FNUZ"),
    "float8_e5m2fnuz": (np.dtype(ml_dtypes.float8_e5m2fnuz), "F8_E5M2FNUZ"),
    "float8_e4m3b11fnuz": (np.dtype(ml_dtypes.float8_e4m3b11fnuz), "U8"),
    "float4_e2m1fn": (np.dtype(ml_dtypes.float4_e2m1fn), "U8"),
    "int4": (np.dtype(ml_dtypes.int4), "I8"),
    "uint4": (np.dtype(ml_dtypes.uint4), "U8"),
    "int2": (np.dtype(ml_dtypes.int2), "I8"),
    "uint2": (np.dtype(ml_dtypes.uint2), "U8"),
}
_ENCODED = frozenset({"string", "variant"})
_ITEM_SIZE_BYTES = {name: dtype.itemsize for name, (dtype, _) in _TABLE.items()} | dict.fromkeys(_ENCODED, 1)
_LENGTH = np.dtype("<i8")


def names() -> tuple[str, ...]:
    """Every dtype name that a checkpoint can hold."""
    return tuple(_ITEM_SIZE_BYTES)


def is_encoded(dtype: str) -> bool:
    """Whether the elements have no fixed size ("string", "variant"), so that a tensor is stored as encoded bytes."""
    return dtype in _ENCODED


def item_size_bytes(dtype: str) -> int:
    """Bytes per element in storage; 1 for encoded dtypes. Raises ValueError for an unknown name."""
    try:
        return _ITEM_SIZE_BYTES[dtype]
    except KeyError:
        raise ValueError(f"dtype {dtype!r} is not one that a checkpoint can hold") from None


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """NumPy's dtype for the elements; `object` (of bytes) for encoded dtypes. Raises ValueError for an unknown name."""
    item_size_bytes(dtype)
    return np.dtype(object) if dtype in _ENCODED else _TABLE[dtype][0]


def safetensors_name(dtype: str) -> str:
    """The dtype under which safetensors holds the elements. Raises ValueError for an unknown name."""
    item_size_bytes(dtype)
    return "U8" if dtype in _ENCODED else _TABLE[dtype][1]


def safetensors_shape(dtype: str, shape: Iterable[int]) -> tuple[int, ...]:
    """A slice's shape in a safetensors header: with one more axis of 2 for complex128, else `shape` itself."""
    return (*shape, 2) if dtype == "complex128" else tuple(shape)


_WORDS: dict[int, npt.DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


def as_words(data: Bytes1D, item_size: int) -> npt.NDArray[Any]:
    """The same memory in elements of `item_size` bytes, to be moved bit by bit whatever dtype they are."""
    return data.view(_WORDS[item_size])


def encode_strings(values: npt.NDArray[Any]) -> Bytes1D:
    """The bytes that stand for an array of `bytes` objects, in row-major order; `decode_strings` is the inverse.

    int64 count, then `count` int64 lengths, then the bytes of every element without a gap; all little-endian. The
    shape is not in it. Raises TypeError for an element that is not bytes.
    """
    items: list[Any] = np.asarray(values, dtype=object).reshape(-1).tolist()
    for item in items:
        if not isinstance(item, bytes):
            raise TypeError(f"an element of a string tensor is {type(item).__name__}, not bytes")
    head = np.array([len(items), *map(len, items)], dtype=_LENGTH).tobytes()
    return np.frombuffer(b"".join([head, *items]), dtype=np.uint8)


def decode_strings(data: Bytes1D, shape: Sequence[int]) -> ObjectArray:
    """The array of `bytes` objects, of the given shape, that `encode_strings` made `data` of.

    Whatever `data` holds, no more than a small multiple of its size is allocated. Raises ValueError unless count,
    lengths and shape fit it exactly.
    """
    raw = np.ascontiguousarray(data, dtype=np.uint8).data.cast("B")
    if len(raw) < 8:
        raise ValueError("encoded strings are cut short: no count")
    count = int.from_bytes(raw[:8], "little", signed=True)
    room = len(raw) - 8 - 8 * count
    if count < 0 or room < 0:
        raise ValueError(f"encoded strings claim {count} elements, which {len(raw):,} bytes cannot")
    if count != math.prod(shape):
        raise ValueError(f"encoded strings hold {count} elements, the shape {tuple(shape)} asks for another number")
    lengths = np.frombuffer(raw[8 : 8 + 8 * count], dtype=_LENGTH)
    # Each length is at most `room`, so a sum that overflows int64 shows as a negative end before it can wrap further.
    ends = np.cumsum(lengths)
    if count and (lengths.min() < 0 or lengths.max() > room or ends.min() < 0):
        raise ValueError("encoded strings have a length that lies outside their bytes")
    if (int(ends[-1]) if count else 0) != room:
        raise ValueError("encoded strings do not fill their bytes exactly")
    body, values, begin = raw[8 + 8 * count :], np.empty(count, dtype=object), 0
    for index, end in enumerate(ends.tolist()):
        values[index] = bytes(body[begin:end])
        begin = end
    return values.reshape(tuple(shape))
