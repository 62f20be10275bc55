"""An untrusted tar, gzipped or not: read forward, member by member, with nothing kept of what went by.

Only single headers are given to `tarfile`. Its own way through an archive keeps each member, copies what a global
header says into all of them, and, before Python 3.11.10, takes time in the square of a header's length.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.untrusted.zips import CHUNK_BYTES
from ckptflow.storage.store import MAX_KEY_BYTES, check_key

_HEADERS_BYTES = 2**26  # of all members, with their padding and what is behind the end
_BLOCK_BYTES = 512
_MAX_EXTENSION_BYTES = 2**16  # a name takes 900 bytes; of attributes, which are not taken, others write some more
_EXTENSIONS_BYTES = 2**24  # of all members
_SIZE_DIGITS = 20
_SHOWN = 80  # characters of a name
_GZIP = b"\x1f\x8b"
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of an archive. `name` is a key: it stays below the folder that it is unpacked into."""

    name: str
    size_bytes: int
    is_folder: bool


def members(
    file: BinaryIO, where: str, max_bytes: int, max_members: int
) -> Iterator[tuple[Member, io.BufferedIOBase | None]]:
    """Each member with its content, which is read before the next one is asked for, or not; None for a folder.

    Raises `CorruptCheckpointError`, naming `where`, for what is neither a file nor a folder, a name that stands twice
    or leaves the folder, more members, or folders that they need, than `max_members`, or more than `max_bytes` that
    they say they have, or have; ValueError, EOFError and zlib's and tarfile's errors for damage.
    """
    is_packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    inner = gzip.GzipFile(fileobj=file, mode="rb") if is_packed else file
    stream = _Counted(inner, max_bytes + _HEADERS_BYTES, max_bytes)
    names = _Names(where)
    total_bytes = 0
    for count, header in enumerate(_headers(stream, where), 1):
        total_bytes += header.size_bytes
        member = names.take(header)
        most = max(count, names.count)
        if most > max_members or total_bytes > max_bytes:
            raise CorruptCheckpointError(
                f"{where} says that it unpacks to {total_bytes:,} bytes in {most:,} members or more; at most "
                f"{max_bytes:,} in {max_members:,} are unpacked"
            )
        content = None if header.is_folder else _Content(stream, header.size_bytes)
        if member is not None:
            yield member, content
        if content is not None:
            content.skip()
    while stream.read(CHUNK_BYTES):  # what follows is padding; gzip's checksum stands at the very end
        pass


def _headers(stream: _Counted, where: str) -> Iterator[Member]:
    """What each member's headers say of it, together, as it is written there; its content is read in between.

    Ends behind the block that ends an archive, and raises where there is none.
    """
    count = extensions_bytes = 0
    said: dict[str, str] = {}
    while True:
        block = stream.read(_BLOCK_BYTES)
        if len(block) < _BLOCK_BYTES or (said and not any(block)):
            raise CorruptCheckpointError(f"{where} is damaged or cut short after {count} members")
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise CorruptCheckpointError(f"{where} is damaged or cut short after {count} members: {error}") from error
        if header.type in _EXTENSIONS:
            extensions_bytes += header.size
            if not 0 <= header.size <= _MAX_EXTENSION_BYTES:
                raise ValueError(f"a header of {header.size:,} bytes is too long")
            if extensions_bytes > _EXTENSIONS_BYTES:
                raise ValueError(f"headers of {extensions_bytes:,} bytes together are too long")
            content = _Content(stream, header.size)
            said |= _said_by(header.type, content.read())
            content.skip()
            continue
        if (header.type not in _FILES and header.type != tarfile.DIRTYPE) or header.size < 0:
            raise CorruptCheckpointError(
                f"{where}: {header.name!r} is a link, a device or sparse: neither a file nor a folder"
            )
        is_folder = header.type == tarfile.DIRTYPE
        size_bytes = 0 if is_folder else _number(said["size"]) if "size" in said else header.size
        yield Member(said.get("path", header.name), size_bytes, is_folder)
        count += 1
        said = {}


def _said_by(kind: bytes, data: bytes) -> dict[str, str]:
    """The name and size that an extension gives the member behind it. Raises ValueError for one that may not be."""
    if kind == tarfile.GNUTYPE_LONGLINK:  # of a link, which is refused
        return {}
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(data.partition(b"\0")[0])}
    records = _records(data)
    if kind == tarfile.XGLTYPE:
        if records.keys() - {b"comment"}:  # git writes one of these
            raise ValueError("it has a header for all members, which is not taken")
        return {}
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise ValueError("a member of it is sparse")
    return {key.decode(): _text(records[key]) for key in (b"path", b"size") if key in records}


def _records(data: bytes) -> dict[bytes, bytes]:
    """What a pax header says: records of a length, a key and a value. In the time that its length takes."""
    found = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + _SIZE_DIGITS)
        digits = data[at:blank]
        end = at + int(digits) if blank > 0 and digits.isdigit() else 0
        key, is_there, value = data[blank + 1 : end].partition(b"=")
        if not is_there or end > len(data) or not value.endswith(b"\n"):
            raise ValueError("a header of it cannot be read")
        found[key] = value[:-1]
        at = end
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _SIZE_DIGITS):
        raise ValueError("a member's size is no number")
    return int(text)


class _Names:
    """The names that were taken, and the folders that they need, `count` together."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._files: set[str] = set()
        self._folders: set[str] = set()

    @property
    def count(self) -> int:
        return len(self._files) + len(self._folders)

    def take(self, member: Member) -> Member | None:
        """The member under its plain name; None for the folder itself. Raises `CorruptCheckpointError`."""
        name = member.name
        if len(name) > 2 * MAX_KEY_BYTES:
            raise CorruptCheckpointError(f"{self._where}: {name[:_SHOWN]!r}… is no name for a member: it is too long")
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        name = name.rstrip("/") if member.is_folder else name
        if name in ("", ".") and member.is_folder:
            return None
        try:
            check_key(name)
        except ValueError as error:
            raise CorruptCheckpointError(f"{self._where}: {member.name!r} is no name for a member: {error}") from error
        if name in self._files and not member.is_folder:
            raise CorruptCheckpointError(f"{self._where}: {member.name!r} stands in it twice")
        if not member.is_folder:
            self._files.add(name)
        folder = name if member.is_folder else name.rpartition("/")[0]
        while folder and folder not in self._folders:
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]
        return replace(member, name=name)


class _Counted:
    """A stream that is read forward and counts what really comes."""

    def __init__(self, inner: BinaryIO | gzip.GzipFile, most_bytes: int, shown_bytes: int) -> None:
        self._inner = inner
        self._left_bytes = most_bytes
        self._shown_bytes = shown_bytes

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end of the stream."""
        data = self._inner.read(size)
        while 0 < len(data) < size and (more := self._inner.read(size - len(data))):
            data += more
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise ValueError(f"it unpacks to more than {self._shown_bytes:,} bytes")
        return data


class _Content(io.BufferedIOBase):
    """The bytes of one member, as a file to copy from."""

    def __init__(self, stream: _Counted, size_bytes: int) -> None:
        self._stream = stream
        self._left_bytes = size_bytes
        self._padding_bytes = -size_bytes % _BLOCK_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left_bytes if size is None or size < 0 else min(size, self._left_bytes)
        data = self._stream.read(wanted) if wanted else b""
        if len(data) < wanted:
            raise ValueError("it is cut short within a member")
        self._left_bytes -= wanted
        return data

    def skip(self) -> None:
        """Goes to the header behind it."""
        while self._left_bytes:
            self.read(CHUNK_BYTES)
        if len(self._stream.read(self._padding_bytes)) < self._padding_bytes:
            raise ValueError("it is cut short within a member")
        self._padding_bytes = 0
