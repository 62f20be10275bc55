"""Checkpoints of TensorFlow's that lie, by the thousand: each number gives another one, with right checksums."""

from __future__ import annotations

import random
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2

from tests.interop.bundles import Index, masked_crc, parse, varint

SIZES = (
    0,
    1,
    2,
    3,
    7,
    64,
    255,
    2**16,
    2**20,
    2**28,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -1,
    -2,
    -(2**63),
)
INDEX, DATA = ".index", ".data-00000-of-00001"


def sound(folder: Path) -> tuple[bytes, bytes]:
    """The index and the data of a checkpoint with numbers, texts, a table and an object graph."""
    module = tf.Module()
    module.w, module.s = tf.Variable(tf.reshape(tf.range(32.0), [4, 8])), tf.Variable(["a", "bcd", ""])
    module.b, module.z = tf.Variable(tf.ones([3], tf.bfloat16)), tf.Variable(tf.zeros([0, 2]))
    prefix = tf.train.Checkpoint(m=module).write(str(folder / "sound"))
    return Path(prefix + INDEX).read_bytes(), Path(prefix + DATA).read_bytes()


def mutated(number: int, index_bytes: bytes, data: bytes) -> tuple[bytes, bytes]:
    """One that lies in one to three places."""
    chance, index, content = random.Random(number), parse(index_bytes), bytearray(data)
    for _ in range(chance.randint(1, 3)):
        chance.choice((_entry, _entry, _entry, _header, _framing, _lengths, _content, _raw, _key, _texts))(
            chance, index, content
        )
    return index.to_bytes(), bytes(content)


def _keys(index: Index) -> list[bytes]:
    return [key for key in index.entries if key]


def _entry(chance: random.Random, index: Index, content: bytearray) -> None:
    """What an entry says of its tensor."""
    key = chance.choice(_keys(index))
    entry = tensor_bundle_pb2.BundleEntryProto()
    try:
        entry.ParseFromString(index.entries[key])
    except DecodeError:
        return
    size = chance.choice(SIZES)
    match chance.randrange(9):
        case 0:
            entry.dtype = chance.choice((*range(30), 101, 2**31 - 1))
        case 1 if entry.shape.dim:
            chance.choice(entry.shape.dim).size = size
        case 2:
            for _ in range(chance.choice((1, 2, 3, 250, 255, 300))):
                entry.shape.dim.add(size=chance.choice((1, 1, size)))
        case 3:
            entry.shape.unknown_rank = True
        case 4:
            entry.shard_id = max(-(2**31), min(size, 2**31 - 1))
        case 5:
            entry.offset = size
        case 6:
            entry.size = size
        case 7:
            extent = entry.slices.add().extent.add(start=chance.choice(SIZES))
            if chance.random() < 0.7:
                extent.length = size
        case _:
            entry.size = chance.randrange(len(content) + 1)
            entry.offset = chance.randrange(len(content) + 1)
            entry.crc32c = masked_crc(bytes(content[entry.offset : entry.offset + entry.size]))
    index.entries[key] = entry.SerializeToString()


def _header(chance: random.Random, index: Index, content: bytearray) -> None:
    header = tensor_bundle_pb2.BundleHeaderProto()
    header.num_shards = chance.choice((0, 1, -1, 2, 2**20, 2**31 - 1))
    header.endianness = chance.choice((0, 1))
    header.version.producer = chance.choice((0, 1, 2, 2**31 - 1))
    header.version.min_consumer = chance.choice((0, 0, 0, 2))
    index.entries[b""] = header.SerializeToString()


def _framing(chance: random.Random, index: Index, content: bytearray) -> None:
    size = abs(chance.choice(SIZES))
    match chance.randrange(5):
        case 0:
            index.index_handle = (chance.choice((0, 8, size)), size)
        case 1:
            index.data_handle = (chance.choice((0, 8, size)), size)
        case 2:
            index.restarts = tuple(chance.choice((0, 1, 2**31, 2**32 - 1)) for _ in range(chance.choice((0, 1, 5))))
        case 3:
            index.block_type = chance.choice((1, 2, 255))
        case _:  # packed, and said to be as long as one likes
            index.block_type, index.raw_block = 1, varint(min(size, 2**32 - 1)) + bytes(chance.randrange(60))


def _lengths(chance: random.Random, index: Index, content: bytearray) -> None:
    """Of a key or a value in the index."""
    key = chance.choice(list(index.entries))
    numbers = [0, len(key), len(index.entries[key])]
    numbers[chance.randrange(3)] = chance.choice([abs(size) % 2**32 for size in SIZES])
    index.lengths[key] = (numbers[0], numbers[1], numbers[2])


def _key(chance: random.Random, index: Index, content: bytearray) -> None:
    key = chance.choice(_keys(index))
    other = chance.choice(
        (b"x" * 70_000, b"\xff\xfe", b"a\0b", b"_CHECKPOINTABLE_OBJECT_GRAPH", b"../../x", key + b"/")
    )
    index.entries[other] = index.entries[key] if chance.random() < 0.5 else index.entries.pop(key)


def _raw(chance: random.Random, index: Index, content: bytearray) -> None:
    """Any bytes of an entry."""
    key = chance.choice(list(index.entries))
    value = bytearray(index.entries[key] or b"\0")
    for _ in range(chance.randint(1, 4)):
        value[chance.randrange(len(value))] = chance.randrange(256)
    index.entries[key] = bytes(value)


def _content(chance: random.Random, index: Index, content: bytearray) -> None:
    """Any bytes of a tensor, the object graph among them, with its checksum."""
    key = chance.choice(_keys(index))
    entry = tensor_bundle_pb2.BundleEntryProto()
    try:
        entry.ParseFromString(index.entries[key])
    except DecodeError:
        return
    end = entry.offset + entry.size
    if not 0 <= entry.offset < end <= len(content):
        return
    for _ in range(chance.randint(1, 6)):
        content[chance.randrange(entry.offset, end)] = chance.randrange(256)
    entry.crc32c = masked_crc(bytes(content[entry.offset : end]))
    index.entries[key] = entry.SerializeToString()


def _texts(chance: random.Random, index: Index, content: bytearray) -> None:
    """A tensor of texts whose lengths are any."""
    lengths = [abs(chance.choice(SIZES)) for _ in range(chance.choice((1, 2, 5)))]
    fixed = b"".join(length.to_bytes(4 if length < 2**32 else 8, "little") for length in lengths)
    seal = masked_crc(fixed).to_bytes(4, "little")
    texts = bytes(chance.randrange(50))
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=7, offset=len(content))
    entry.shape.dim.add(size=len(lengths))
    entry.crc32c = masked_crc(fixed + seal + texts)
    content += b"".join(map(varint, lengths)) + seal + texts
    entry.size = len(content) - entry.offset
    index.entries[b"texts"] = entry.SerializeToString()
