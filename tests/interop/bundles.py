"""TensorFlow's checkpoints by their bytes: an index taken apart, changed, and put together with right checksums."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import crc32c

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_HANDLES_BYTES = 40


def masked_crc(data: bytes) -> int:
    """crc32c as TensorFlow stores it."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1


@dataclass
class Index:
    """An index: its entries, and what its framing says where that is to be other than the truth."""

    entries: dict[bytes, bytes]
    block_type: int = 0  # 1: packed by snappy
    raw_block: bytes | None = None
    index_handle: tuple[int, int] | None = None
    data_handle: tuple[int, int] | None = None
    restarts: tuple[int, ...] = (0,)
    lengths: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)  # of an entry: shared, own, value

    def to_bytes(self) -> bytes:
        block = self.raw_block if self.raw_block is not None else self._block(sorted(self.entries.items()))
        data = _sealed(block, self.block_type)
        handle = self.data_handle or (0, len(block))
        index = self._block([(b"\xff" * 8, varint(handle[0]) + varint(handle[1]))])
        meta = self._block([])
        places = (len(data), len(meta)), self.index_handle or (len(data) + len(meta) + 5, len(index))
        handles = b"".join(varint(number) for place in places for number in place)
        footer = handles.ljust(_HANDLES_BYTES, b"\0")[:_HANDLES_BYTES] + _MAGIC
        return data + _sealed(meta, 0) + _sealed(index, 0) + footer

    def _block(self, entries: Iterable[tuple[bytes, bytes]]) -> bytes:
        out = b""
        for key, value in entries:
            shared, own, size = self.lengths.get(key, (0, len(key), len(value)))
            out += varint(shared) + varint(own) + varint(size) + key + value
        return out + struct.pack(f"<{len(self.restarts) + 1}I", *self.restarts, len(self.restarts))


def _sealed(block: bytes, kind: int) -> bytes:
    return block + bytes([kind]) + struct.pack("<I", masked_crc(block + bytes([kind])))


def parse(data: bytes) -> Index:
    """The index that TensorFlow wrote."""
    at = len(data) - len(_MAGIC) - _HANDLES_BYTES
    numbers = []
    for _ in range(4):
        number, at = _read_varint(data, at)
        numbers.append(number)
    entries: dict[bytes, bytes] = {}
    for _, handle in _entries(data[numbers[2] : numbers[2] + numbers[3]]):
        start, after = _read_varint(handle, 0)
        size, _ = _read_varint(handle, after)
        entries.update(_entries(data[start : start + size]))
    return Index(entries)


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    found, at, key = [], 0, b""
    while at < end:
        shared, at = _read_varint(block, at)
        own, at = _read_varint(block, at)
        size, at = _read_varint(block, at)
        key = key[:shared] + block[at : at + own]
        found.append((key, block[at + own : at + own + size]))
        at += own + size
    return found
