"""What a manifest and a receipt are made of: shards, slices, tensors, and what each must be for itself."""

from __future__ import annotations

import math
import re
from typing import Literal

from ckptflow.format import boxes, dtypes, layout
from ckptflow.format.record import (
    MAX_NUMBER,
    MAX_RANK,
    Crc32c,
    Record,
    Seconds,
    Shape,
    ShortText,
    Size,
    TensorName,
)

_CONTENT = re.compile(r"[0-9a-f]{32}", re.ASCII)


class ShardRecord(Record, frozen=True, kw_only=True, gc=False):
    """One shard file: its name in the folder, its size, and the crc32c of all its bytes, header included.

    Where a later save may copy it instead of writing it again: `version` is what the storage called the object when it
    was written, `content` the xxh3-128 of all its bytes in hexadecimal digits. `copied_from`, for people, is the shard
    that it was copied from: "FOLDER/NAME".
    """

    name: ShortText
    size_bytes: Size
    crc32c: Crc32c
    version: ShortText | None = None
    content: ShortText | None = None
    copied_from: ShortText | None = None


class SliceRecord(Record, frozen=True, kw_only=True, gc=False):
    """One slice: where its bytes lie (`shard` counts in the list of shards, `offset` from the start of the file), which
    box of its tensor it is, and the crc32c of those bytes."""

    shard: Size
    offset: Size
    start: Shape
    shape: Shape
    crc32c: Crc32c


class TensorRecord(Record, frozen=True, kw_only=True, gc=False):
    """One tensor: its global shape and the slices that cover it exactly once, in row-major order within each slice.

    `encoded_bytes` is set for dtypes whose size does not follow from the shape (strings): the slices are then boxes of
    that one-dimensional byte sequence. `components` is set where the first axis counts one component for each worker
    of a variable that is kept per replica: they are summed, averaged, or the first is taken, when reading.
    `metric` marks variables that a restore may do without (Keras resets them each epoch).
    """

    name: TensorName
    dtype: ShortText
    shape: Shape
    slices: tuple[SliceRecord, ...]
    encoded_bytes: Size | None = None
    components: Literal["sum", "mean", "first"] | None = None
    aliases: tuple[TensorName, ...] = ()
    metric: bool = False

    @property
    def size_bytes(self) -> int:
        """The tensor's bytes in storage."""
        if self.encoded_bytes is not None:
            return self.encoded_bytes
        return boxes.volume(self.shape) * dtypes.item_size_bytes(self.dtype)

    @property
    def storage_shape(self) -> tuple[int, ...]:
        """The shape that the slices are boxes of."""
        return self.shape if self.encoded_bytes is None else (self.encoded_bytes,)


class Timing(Record, frozen=True, kw_only=True, gc=False):
    """How long a save took one worker, for people: `save` held its training thread for `blocked_s` seconds, and its
    shards were durable `write_s` seconds after `save` was called."""

    blocked_s: Seconds
    write_s: Seconds


def check_shards(shards: tuple[ShardRecord, ...], own_folder: str, world_size: int, worker: int | None = None) -> None:
    """Raises ValueError unless each shard's name is one of a save by so many workers, and of that worker, and what is
    said of copies can be so."""
    for shard in shards:
        parsed = layout.parse_shard_name(shard.name)
        if parsed is None or parsed[1] != world_size or worker not in (None, parsed[0]):
            raise ValueError(f"{shard.name!r} is not the name of one of its shards")
        if shard.content is not None and _CONTENT.fullmatch(shard.content) is None:
            raise ValueError(f"{shard.name}: {shard.content!r} is not 32 hexadecimal digits")
        if shard.copied_from is not None:
            folder, _, name = shard.copied_from.partition("/")
            if layout.parse_folder(folder) is None or folder == own_folder or layout.parse_shard_name(name) is None:
                raise ValueError(f"{shard.name} is said to be copied from {shard.copied_from!r}")
    if len({shard.name for shard in shards}) != len(shards):
        raise ValueError("it names a shard twice")


def check_tensor(tensor: TensorRecord) -> None:
    """Raises ValueError unless the dtype is known and the slices cover the tensor exactly once."""
    shape = tensor.shape
    if (tensor.encoded_bytes is not None) != dtypes.is_encoded(tensor.dtype):
        raise ValueError(f"dtype {tensor.dtype!r} and encoded_bytes={tensor.encoded_bytes} do not go together")
    if len(shape) > MAX_RANK:
        raise ValueError(f"has {len(shape)} axes, more than {MAX_RANK}")
    # Axes of no length count as one here: no library makes an array of shape (2**62, 2**62, 0).
    if math.prod(shape if all(shape) else [n or 1 for n in shape]) * dtypes.item_size_bytes(tensor.dtype) > MAX_NUMBER:
        raise ValueError("is larger than any storage")
    if tensor.components is not None and (not shape or tensor.encoded_bytes is not None):
        raise ValueError("has components and no axis for them")
    slices = tensor.slices
    if tensor.encoded_bytes is not None:
        shape = (tensor.encoded_bytes,)
    if len(slices) != 1 or slices[0].shape != shape or slices[0].start != (0,) * len(shape):
        boxes.check_cover(shape, [(piece.start, piece.shape) for piece in slices])
