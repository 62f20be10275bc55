"""What every typed record is made of, and the bounds of its parts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

MAX_NAME_CHARACTERS = 4096
MAX_RANK = 64  # NumPy's
MAX_NUMBER = 2**62

Size = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Crc32c = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=MAX_RANK)]
TensorName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
ShortText = Annotated[str, Meta(max_length=4096)]


class Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a manifest or receipt."""
