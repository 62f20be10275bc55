"""Validates an untrusted zip before others open it."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.untrusted import budget
from ckptflow.storage.faults import from_os_error
from ckptflow.storage.store import check_key

MAX_BYTES = 2**40  # of all that an archive unpacks to
MAX_MEMBERS = 100_000
MAX_RATIO = 200.0  # weights stay below 2, graphs below 20
FREE_BYTES = 2**28  # what may be packed more tightly than that all the same: zeros, vocabularies
CHUNK_BYTES = 2**20
_END = struct.Struct("<4sHHHHIIH")  # of a zip's directory
_END64, _LOCATOR = struct.Struct("<4sQHHIIQQQQ"), struct.Struct("<4sIQI")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_DESCRIPTOR_BYTES = 24  # at most, behind a member whose sizes follow it
_ENCRYPTED, _LATER, _UTF8 = 0x2041, 0x8, 0x800  # bits of a member's flags; later: sizes follow the content
_WRONG = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError)


def check_zip(path: str) -> None:
    """Reads a zip through and raises `CorruptCheckpointError` unless every reader of it would find the same files.

    That is: names stay below the root, each stands once, none is a link; the directory at the end and the header before
    each member agree; members do not overlap; each unpacks to exactly the bytes, and the checksum, that it says; none
    is encrypted, or packed otherwise than by deflate; and all of it keeps to `MAX_BYTES`, `MAX_MEMBERS` and, beyond
    256 MiB, `MAX_RATIO` times the file. Memory is bounded whatever is in it. Raises `StorageError` where it cannot be
    read.
    """
    try:
        with open(path, "rb") as file:
            count = check_directory(file)
            with zipfile.ZipFile(file) as archive:
                if len(archive.infolist()) != count:
                    raise ValueError(f"it says that it has {count:,} members, and has {len(archive.infolist()):,}")
                _check_members(file, archive, bound_of(os.fstat(file.fileno()).st_size))
    except _WRONG as error:
        raise CorruptCheckpointError(f"{path} is not a valid zip: {error or type(error).__name__}") from error
    except OSError as error:
        raise from_os_error(error, "read", path) from error


def check_directory(file: BinaryIO) -> int:
    """Bounds the directory before `zipfile` reads it into memory; returns how many members it says there are.

    Raises ValueError.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 2**16))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise ValueError("it has no directory at its end")
    _, _, _, _, count, directory_bytes, _, _ = _END.unpack_from(tail, at)
    if count == 0xFFFF or directory_bytes == 0xFFFF_FFFF:
        if at < _LOCATOR.size + _END64.size:
            raise ValueError("its directory is cut short")
        signature, _, _, _, _, _, _, count, directory_bytes, _ = _END64.unpack_from(
            tail, at - _LOCATOR.size - _END64.size
        )
        if signature != b"PK\6\6":
            raise ValueError("its directory is not where it should be")
    if count > MAX_MEMBERS or directory_bytes > MAX_MEMBERS * 2**10:
        raise ValueError(f"it says that it has {count:,} members; at most {MAX_MEMBERS:,} are taken")
    return int(count)


def _check_members(file: BinaryIO, archive: zipfile.ZipFile, max_bytes: int) -> None:
    names: set[str] = set()
    end, left, gap = 0, max_bytes, 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        _check_entry(info, names)
        if not end <= info.header_offset <= end + gap:
            raise ValueError(f"{info.filename!r} does not follow the member before it: they overlap, or hide something")
        begin = _check_local_header(file, info)
        end = begin + info.compress_size
        gap = _DESCRIPTOR_BYTES if info.flag_bits & _LATER else 0
        left -= info.file_size
        if left < 0:
            raise ValueError(
                f"it says that it unpacks to more than {max_bytes:,} bytes; {budget.MEMORY_VARIABLE} allows more"
            )
        _check_content(file, info, begin)
    if not end <= archive.start_dir <= end + gap:
        raise ValueError("its directory does not follow the last member")
    for name in names:
        if any(above in names for above in itertools.accumulate(name.split("/")[:-1], "{}/{}".format)):
            raise ValueError(f"a part of {name!r} is both a file and a folder")


def _check_entry(info: zipfile.ZipInfo, names: set[str]) -> None:
    name = info.orig_filename
    mode = info.external_attr >> 16
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name!r} is encrypted")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{name!r} is a link or a device")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name!r} is packed by method {info.compress_type}; only deflate is taken")
    check_key(name.removesuffix("/"))
    if name in names or name != info.filename:
        raise ValueError(f"{name!r} stands in it twice, or under two names")
    if not name.endswith("/"):
        names.add(name)
    elif info.file_size:
        raise ValueError(f"the folder {name!r} has content")


def _check_local_header(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's content begins, its own header having said the same as the directory."""
    file.seek(info.header_offset)
    head = file.read(_LOCAL.size)
    signature, _, flags, method, _, _, crc, packed, unpacked, name_bytes, extra_bytes = _LOCAL.unpack(head)
    name, extra = file.read(name_bytes), file.read(extra_bytes)
    said = (signature, method, name.decode("utf-8" if flags & _UTF8 else "cp437"))
    if said != (b"PK\3\4", info.compress_type, info.orig_filename) or (flags ^ info.flag_bits) & (_ENCRYPTED | _LATER):
        raise ValueError(f"the directory says {info.orig_filename!r} of a member, its own header {said[2]!r}")
    if 0xFFFF_FFFF in (packed, unpacked):
        unpacked, packed = _zip64_sizes(extra)
    if not flags & _LATER and (crc, packed, unpacked) != (info.CRC, info.compress_size, info.file_size):
        raise ValueError(f"the directory and its own header give {info.orig_filename!r} different sizes or checksums")
    return info.header_offset + _LOCAL.size + int(name_bytes) + int(extra_bytes)


def _zip64_sizes(extra: bytes) -> tuple[int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            unpacked, packed = struct.unpack_from("<QQ", extra, at + 4)
            return unpacked, packed
        at += 4 + size
    raise ValueError("a member's size is missing")


def _check_content(file: BinaryIO, info: zipfile.ZipInfo, begin: int) -> None:
    """Unpacks a member to nowhere."""
    file.seek(begin)
    size = crc = 0
    for data in _content(file, info):
        size, crc = size + len(data), zlib.crc32(data, crc)
        if size > info.file_size:
            break
    if (size, crc) != (info.file_size, info.CRC):
        raise ValueError(
            f"{info.filename!r} does not unpack to the {info.file_size:,} bytes, or checksum, that it says"
        )


def _content(file: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    is_packed = info.compress_type == zipfile.ZIP_DEFLATED
    left = info.compress_size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        left -= len(chunk)
        if not chunk:
            raise ValueError(f"{info.filename!r} is cut short")
        if not is_packed:
            yield chunk
            continue
        while chunk:
            yield unpacker.decompress(chunk, CHUNK_BYTES)
            chunk = unpacker.unconsumed_tail
        if unpacker.unused_data:
            raise ValueError(f"{info.filename!r} ends before its last byte")
    if is_packed:
        yield unpacker.flush()
        if not unpacker.eof:
            raise ValueError(f"{info.filename!r} has no end")


def bound_of(size_bytes: int) -> int:
    """How many bytes an archive of so many may unpack to on the disk."""
    return min(MAX_BYTES, in_proportion(size_bytes))


def in_proportion(size_bytes: int) -> int:
    """How many bytes go with so many that were written, however large the file is."""
    return max(FREE_BYTES, int(size_bytes * MAX_RATIO), budget.chosen_bytes() or 0)
