"""Archives that nobody vouches for: a `.tar.gz` of a folder, both ways; zips, by way of `zips`."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from ckptflow.errors import CkptflowError, CorruptCheckpointError, ObjectExistsError, UsageError
from ckptflow.interop.untrusted.zips import CHUNK_BYTES, MAX_BYTES, MAX_MEMBERS, MAX_RATIO, bound_of, check_zip
from ckptflow.storage.faults import from_os_error
from ckptflow.storage.store import check_key

__all__ = ["MAX_BYTES", "MAX_MEMBERS", "MAX_RATIO", "check_zip", "pack_tar", "read_member", "unpack_tar"]

_HEADERS_BYTES = 2**26  # of all members, with their padding
_BLOCK_BYTES = 512
_GZIP = b"\x1f\x8b"
_WRONG = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError, RecursionError)


def pack_tar(folder: str, tar_gz_path: str) -> None:
    """Packs what is in `folder` into a new `.tar.gz`: the same bytes for the same files, whoever packs them and when.

    Members are sorted, without owner or time. Raises `UsageError` for a link or device, `StorageError`, and leaves no
    half of a file behind.
    """
    try:
        with open(tar_gz_path, "xb") as file:
            try:
                with (
                    gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed,
                    tarfile.TarFile(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
                ):
                    for name in _names_below(folder):
                        _add(tar, os.path.join(folder, name), name)
            except BaseException:
                os.unlink(tar_gz_path)
                raise
    except OSError as error:
        if isinstance(error, CkptflowError):
            raise
        raise from_os_error(error, "pack", error.filename or tar_gz_path) from error


def _names_below(folder: str) -> list[str]:
    names = []
    for above, folders, files in os.walk(folder):
        names += [os.path.relpath(os.path.join(above, name), folder) for name in (*folders, *files)]
    return sorted(names)


def _add(tar: tarfile.TarFile, path: str, name: str) -> None:
    member = tarfile.TarInfo(name)
    if os.path.isdir(path) and not os.path.islink(path):
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
    elif os.path.isfile(path) and not os.path.islink(path):
        member.size, member.mode = os.path.getsize(path), 0o644
        with open(path, "rb") as file:
            tar.addfile(member, file)
    else:
        raise UsageError(f"{path} is neither a file nor a folder, so it is not packed")


def unpack_tar(
    path: str,
    into: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
    max_ratio: float = MAX_RATIO,
) -> None:
    """Unpacks a tar, gzipped or not, into the new folder `into`; after an error there is no such folder.

    Only files and folders are taken, each name once and below `into`, at the length that its header says. Bytes are
    counted as they come, not as they are announced. Raises `CorruptCheckpointError` for anything else in it: a name
    that leaves the folder, a link, a device, damage, an end that is missing, more than `max_bytes` or `max_members`,
    or, beyond 256 MiB, more than `max_ratio` times what lies in the file. Raises `ObjectExistsError` where `into` is
    there, `ObjectNotFoundError`, `StorageError`.
    """
    try:
        with open(path, "rb") as file:
            try:
                os.mkdir(into)
            except FileExistsError as error:
                raise ObjectExistsError(f"{into} is there already; unpack into a new folder") from error
            try:
                with _damage_named(path):
                    bound = bound_of(os.fstat(file.fileno()).st_size, max_bytes, max_ratio)
                    for member, content in _members(file, path, bound, max_members):
                        _unpack(member, content, os.path.join(into, member.name), path)
            except BaseException:
                shutil.rmtree(into, ignore_errors=True)
                raise
    except OSError as error:
        if isinstance(error, CkptflowError):
            raise
        raise from_os_error(error, "unpack", error.filename or path) from error


def _unpack(member: tarfile.TarInfo, content: io.BufferedIOBase | None, target: str, where: str) -> None:
    try:
        if content is None:
            os.makedirs(target, exist_ok=True)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        out = open(target, "xb")  # noqa: SIM115 - its errors are not those of opening
    except (FileExistsError, NotADirectoryError) as error:
        raise CorruptCheckpointError(f"{where}: {member.name!r} is both a file and a folder") from error
    with out:
        shutil.copyfileobj(content, out, CHUNK_BYTES)


def read_member(file: BinaryIO, name: str, *, max_bytes: int, where: str) -> bytes | None:
    """The content of the member `name` of a tar, gzipped or not; None where there is none.

    Reads no further than that member. Raises `CorruptCheckpointError`, naming `where`, as `unpack_tar` does, and where
    it is longer than `max_bytes`.
    """
    with _damage_named(where):
        for member, content in _members(file, where, MAX_BYTES, MAX_MEMBERS):
            if member.name == name and content is not None:
                if member.size > max_bytes:
                    raise ValueError(f"{name!r} has {member.size:,} bytes, more than {max_bytes:,}")
                data = io.BytesIO()
                shutil.copyfileobj(content, data, CHUNK_BYTES)
                return data.getvalue()
    return None


@contextlib.contextmanager
def _damage_named(where: str) -> Iterator[None]:
    try:
        yield
    except _WRONG as error:
        if isinstance(error, CkptflowError):
            raise
        raise CorruptCheckpointError(f"{where} cannot be unpacked: {error or type(error).__name__}") from error


def _members(
    file: BinaryIO, where: str, max_bytes: int, max_members: int
) -> Iterator[tuple[tarfile.TarInfo, io.BufferedIOBase | None]]:
    """Each member with its content, None for a folder, its name made plain; then the end, which must be one."""
    is_packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb")) if is_packed else file
        stream = _Forward(inner, max_bytes)
        tar = stack.enter_context(tarfile.TarFile(fileobj=stream, mode="r", errorlevel=2))  # type: ignore[arg-type]
        names: set[str] = set()
        total_bytes = 0
        for count, member in enumerate(tar, 1):
            total_bytes += max(0, member.size)
            if count > max_members or total_bytes > max_bytes:
                raise CorruptCheckpointError(
                    f"{where} says that it unpacks to {total_bytes:,} bytes in {count:,} members or more; at most "
                    f"{max_bytes:,} in {max_members:,} are unpacked"
                )
            if not _is_taken(member, names, where):
                continue
            content = tar.extractfile(member) if member.isreg() else None
            yield member, content  # type: ignore[misc]
        # tarfile takes a damaged header, and an end that is missing, for the end.
        stream.seek(tar.offset)
        if stream.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise CorruptCheckpointError(f"{where} is damaged or cut short after {len(names)} members")
        while stream.read(CHUNK_BYTES):  # what follows is padding; gzip's checksum stands at the very end
            pass


def _is_taken(member: tarfile.TarInfo, names: set[str], where: str) -> bool:
    """Checks a member and makes its name plain; False for the folder itself. Raises `CorruptCheckpointError`."""
    shown = member.name
    if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
        raise CorruptCheckpointError(f"{where}: {shown!r} is a link, a device or sparse: neither a file nor a folder")
    name = shown
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    name = name.rstrip("/") if member.isdir() else name
    if name in ("", ".") and member.isdir():
        return False
    try:
        member.name = check_key(name)
        if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.11
            tarfile.data_filter(member, os.getcwd())
    except (ValueError, tarfile.TarError) as error:
        raise CorruptCheckpointError(f"{where}: {shown!r} is no name for a member: {error}") from error
    if name in names and not member.isdir():
        raise CorruptCheckpointError(f"{where}: {shown!r} stands in it twice")
    names.add(name)
    return True


class _Forward:
    """A stream of bytes as the file that tarfile wants: what was read last can be read again, nothing before it.

    Counts what really comes. A single read is never longer than a header may be, so that no length in a header takes
    memory.
    """

    def __init__(self, inner: BinaryIO | gzip.GzipFile, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._end = 0  # of what was read
        self._kept = b""  # the last of it
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        while position > self._end:
            if not self._take(min(CHUNK_BYTES, position - self._end)):
                break
        if position < self._end - len(self._kept):
            raise ValueError("its members do not follow one another")
        self._at = min(position, self._end)
        return self._at

    def read(self, size: int) -> bytes:
        if size > CHUNK_BYTES + _BLOCK_BYTES:
            raise ValueError(f"a header of {size:,} bytes is too long")
        again = self._kept[len(self._kept) - (self._end - self._at) :] if self._at < self._end else b""
        data = again[:size]
        if len(data) < size:
            data += self._take(size - len(data))
        self._at += len(data)
        return data

    def _take(self, size: int) -> bytes:
        data = self._inner.read(size)
        self._end += len(data)
        if self._end > self._max_bytes + _HEADERS_BYTES:
            raise ValueError(f"it unpacks to more than {self._max_bytes:,} bytes")
        self._kept = (self._kept + data)[-_BLOCK_BYTES:] if len(data) < _BLOCK_BYTES else data[-_BLOCK_BYTES:]
        return data
