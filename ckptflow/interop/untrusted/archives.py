"""Untrusted archives: a `.tar.gz` of a folder, both ways. Zips: see `zips`."""

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
from ckptflow.interop.untrusted.tars import Member, members
from ckptflow.interop.untrusted.zips import CHUNK_BYTES, MAX_MEMBERS, bound_of
from ckptflow.storage.faults import from_os_error

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


def unpack_tar(path: str, into: str) -> None:
    """Unpacks a tar, gzipped or not, into the new folder `into`; after an error there is no such folder.

    Only files and folders are taken, each name once and below `into`, at the length that its header says. Bytes are
    counted as they come, not as they are announced. Raises `CorruptCheckpointError` for anything else in it: a name
    that leaves the folder, a link, a device, damage, an end that is missing, more than `MAX_BYTES` or `MAX_MEMBERS`,
    or, beyond 256 MiB, more than `MAX_RATIO` times what lies in the file. Raises `ObjectExistsError` where `into` is
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
                    bound = bound_of(os.fstat(file.fileno()).st_size)
                    for member, content in members(file, path, bound, MAX_MEMBERS):
                        _unpack(member, content, os.path.join(into, member.name), path)
            except BaseException:
                shutil.rmtree(into, ignore_errors=True)
                raise
    except OSError as error:
        if isinstance(error, CkptflowError):
            raise
        raise from_os_error(error, "unpack", error.filename or path) from error


def _unpack(member: Member, content: io.BufferedIOBase | None, target: str, where: str) -> None:
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

    Reads no further than that member, and no more than `unpack_tar` would unpack. Raises `CorruptCheckpointError`,
    naming `where`, as `unpack_tar` does, and where it is longer than `max_bytes`.
    """
    with _damage_named(where):
        bound = bound_of(file.seek(0, os.SEEK_END))
        file.seek(0)
        for member, content in members(file, where, bound, MAX_MEMBERS):
            if member.name == name and content is not None:
                if member.size_bytes > max_bytes:
                    raise ValueError(f"{name!r} has {member.size_bytes:,} bytes, more than {max_bytes:,}")
                return content.read()
    return None


@contextlib.contextmanager
def _damage_named(where: str) -> Iterator[None]:
    try:
        yield
    except _WRONG as error:
        if isinstance(error, CkptflowError):
            raise
        raise CorruptCheckpointError(f"{where} cannot be unpacked: {error or type(error).__name__}") from error
