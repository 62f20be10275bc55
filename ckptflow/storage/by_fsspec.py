"""Every scheme but a local path: s3, gs, memory and whatever else fsspec knows, one request per object."""

from __future__ import annotations

import base64
import errno
import functools
import inspect
import logging
import secrets
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import crc32c
import fsspec
import fsspec.asyn
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

from ckptflow.storage import faults
from ckptflow.storage.clients import (
    GCS_SCHEMES,
    S3_SCHEMES,
    open_file_system,
    parse_listings_quickly,
    wants_checksum,
)
from ckptflow.storage.credentials import opening
from ckptflow.storage.local_calls import RESERVED
from ckptflow.storage.remote import RemoteStore
from ckptflow.storage.replies import (
    StrangeReplyError,
    check_delete,
    check_put,
    check_range,
    copy_gcs,
    copy_s3,
    delete_s3,
    list_gcs,
    list_s3,
    put_gcs,
)
from ckptflow.storage.stalls import STALL_TIMEOUT_S
from ckptflow.storage.wanted import check_wanted

_log = logging.getLogger("ckptflow.storage")

_POOLED = ("hdfs", "arrow_hdfs", "webhdfs", "webHDFS", "smb")  # of what has folders: safe for several threads
_RENEW_PAUSE_S = 0.25  # what answers wrong may be about to be replaced


class FsspecStore(RemoteStore):
    """Any fsspec file system. Whole-buffer requests, no listings cache, an instance of its own.

    `create` is exclusive where the service is asked to (S3: `If-None-Match: *`, GCS: `ifGenerationMatch=0`) and within
    this process for `memory://`. For any other file system it is exists-then-write, and `is_create_only` says so; on an
    S3 that refuses the condition as well, from the first `create` on.
    """

    def __init__(
        self, url: str, storage_options: dict[str, Any], stall_timeout_s: float | None = STALL_TIMEOUT_S
    ) -> None:
        self._scheme = url.partition("://")[0]
        self._open = functools.partial(
            open_file_system, url, self._scheme, dict(storage_options), stall_timeout_s=stall_timeout_s
        )
        with opening(url, storage_options):
            self._fs, root = self._open()
        super().__init__(url, root, storage_options, stall_timeout_s)
        self._is_s3, self._is_gcs = self._scheme in S3_SCHEMES, self._scheme in GCS_SCHEMES
        self.is_create_only = self._is_s3 or self._is_gcs or self._scheme == "memory"
        self.can_copy = self._is_s3 or self._is_gcs
        self._impossible_version = "1" if self._is_gcs else "0" * 32
        self._has_folders = not (self.is_create_only or self._scheme in ("abfs", "az", "oss", "oci", "r2"))
        # Threads' commands would mix on the one connection of ftp:// or sftp://, which nobody opens again, either.
        self._has_one_connection = self._has_folders and not self._fs.async_impl and self._scheme not in _POOLED
        self._turn = threading.RLock()
        self._is_broken = False
        self._begun: set[str] = set()  # names of creates that failed, and may have left a part
        self._has_bulk_delete = self._is_s3  # until the server refuses it
        self._strange_deletes = 0  # replies in a row: a page of something between comes once
        self._sends_checksum = self._is_s3 and wants_checksum(storage_options)
        self._asks_for_checksum = self._is_s3 and wants_checksum(storage_options, "response_checksum_validation")

    def _sends_checksum_to(self, doing: str) -> bool | None:
        if doing == "read":
            return self._asks_for_checksum or None
        return self._sends_checksum if self._is_s3 and doing in ("write", "create") else None

    @contextmanager
    def _mapped(self, doing: str, key: str = "") -> Iterator[None]:
        """One call at a time where a file system has one connection, and after an error over another one."""
        if not self._has_one_connection:
            with super()._mapped(doing, key):
                yield
            return
        with self._turn, super()._mapped(doing, key):
            if self._is_broken:
                self._fs = self._open()[0]
                self._is_broken = False
            try:
                yield
            except (FileNotFoundError, FileExistsError, PermissionError):
                raise
            except BaseException:
                self._is_broken = True
                raise

    def renew(self, key: str) -> None:
        """Another client, with connections of its own, takes over; from here on it asks past caches."""
        time.sleep(_RENEW_PAUSE_S)
        with suppress(Exception):  # then the old one asks again
            self._fs = self._open(past_caches=True)[0]

    # ---- reading

    def _read(self, path: str, into: memoryview, start: int) -> int:
        if self._is_s3:
            return self._read_s3(path, into, start)
        data = self._fs.cat_file(path, start=start, end=start + len(into))
        if len(data) > len(into):
            raise StrangeReplyError(f"asked for {len(into):,} bytes, got {len(data):,}")
        into[: len(data)] = data
        return len(data)

    def _read_s3(self, path: str, into: memoryview, start: int) -> int:
        """The body goes to `into` as it comes in: `cat_file` would collect it, join it, and have it copied here."""
        fs = self._fs  # and no other one before the body is read
        bucket, _, name = path.partition("/")
        reply = fs.call_s3("get_object", Bucket=bucket, Key=name, Range=f"bytes={start}-{start + len(into) - 1}")
        count: int = fsspec.asyn.sync(fs.loop, _read_reply, reply, into, start)
        if count != reply["ContentLength"]:
            raise StrangeReplyError(f"{reply['ContentLength']:,} bytes were announced, and {count:,} came")
        return count

    # ---- writing

    def _send(self, path: str, data: memoryview, *, is_new: bool) -> str | None:
        if self._is_s3 and is_new:
            return self._create_s3(path, data)
        return self._send_once(path, data, is_new=is_new)

    def _create_s3(self, path: str, data: memoryview) -> str | None:
        """By the server's own condition; if it knows none, looks first, then writes, and `is_create_only` says so."""
        for _ in range(2 if self.is_create_only else 0):  # twice: one answer is no proof
            try:
                return self._send_once(path, data, is_new=True)
            except Exception as error:
                if not faults.is_refused_condition(error):
                    raise
        self.is_create_only = False
        with _create_lock(f"{self._scheme}://{path}"):
            if any(name == path for name, _ in self._find(path)):
                raise FileExistsError("something is there")
            return self._send_once(path, data, is_new=False)

    def _send_once(self, path: str, data: memoryview, *, is_new: bool) -> str | None:
        """One object, written in one request."""
        if self._is_s3:
            return self._send_s3(path, data, is_new=is_new)
        if self._is_gcs:
            bucket, _, name = path.partition("/")
            return put_gcs(self._fs.call, self._fs._location, bucket, name, data, is_new=is_new)
        with _create_lock(f"{self._scheme}://{path}"):
            if is_new:
                self._create_by_looking(path, data)
            else:
                self._pipe(path, data, "overwrite")
        return None

    def _create_by_looking(self, path: str, data: memoryview) -> None:
        """Writes where nothing is, whole or not at all: by another name, where the class can rename.

        Else what a try that failed has left is its beginning, and is written over by the next.
        """
        is_there = self._kind_at(path) is not None
        if is_there and not self._is_begun(path, data):
            raise FileExistsError("something is there")
        if not self._has_folders or type(self._fs).mv is AbstractFileSystem.mv:
            self._begun.add(path)
            self._pipe(path, data, "overwrite" if is_there else "create")
            self._begun.discard(path)
            return
        temporary = f"{self._fs._parent(path)}/{RESERVED}tmp-{secrets.token_hex(12)}"
        try:
            self._pipe(temporary, data, "create")
            self._fs.mv(temporary, path)
            if self._kind_at(temporary):  # not all say that they have not renamed
                raise FileExistsError("something is there")
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def _is_begun(self, path: str, data: memoryview) -> bool:
        """Whether what is there is the beginning of what is to be written, and a try of ours has failed."""
        if path not in self._begun:
            return False
        found = self._fs.cat_file(path, start=0, end=data.nbytes)
        return len(found) < data.nbytes and bytes(data[: len(found)]) == found

    def _pipe(self, path: str, data: memoryview, mode: str) -> None:
        self._make_folder(path)
        takes_mode = "mode" in inspect.signature(self._fs.pipe_file).parameters
        self._fs.pipe_file(path, bytes(data), **({"mode": mode} if takes_mode else {}))

    def _make_folder(self, path: str) -> None:
        """Makes the folder that an object is to lie in, where there are such things."""
        if self._has_folders:
            self._fs.makedirs(self._fs._parent(path), exist_ok=True)

    def _kind_at(self, path: str) -> str | None:
        """What is there; None for nothing. fsspec's `exists` says that whatever went wrong; not all classes ask."""
        try:
            return str(self._fs.info(path)["type"])
        except OSError as error:
            if not _is_missing(error):
                raise
            return None

    def _send_s3(self, path: str, data: memoryview, *, is_new: bool) -> str | None:
        bucket, _, name = path.partition("/")
        options = {"IfNoneMatch": "*"} if is_new else {}
        if self._sends_checksum:
            options["ChecksumCRC32C"] = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
        return check_put(self._fs.call_s3("put_object", Bucket=bucket, Key=name, Body=bytes(data), **options))

    def _copy_inside(self, source: str, path: str, version: str) -> str | None:
        bucket, _, name = path.partition("/")
        call = self._fs.call_s3 if self._is_s3 else self._fs.call
        return (copy_s3 if self._is_s3 else copy_gcs)(call, bucket, source.partition("/")[2], name, version)

    # ---- listing

    def _find(self, prefix: str) -> Iterable[tuple[str, int]]:
        if self._is_s3 or self._is_gcs:
            bucket, _, inner = prefix.partition("/")
            if self._is_s3:
                parse_listings_quickly(self._fs, bucket)
            found = list_s3(self._fs.call_s3, bucket, inner) if self._is_s3 else list_gcs(self._fs.call, bucket, inner)
            return [(f"{bucket}/{name}", size_bytes) for name, size_bytes in found]
        path = self._lead + prefix.rstrip("/")
        if not _finds_by_itself(type(self._fs)):
            return [(info["name"].lstrip("/"), int(info["size"])) for info in self._walk(path)]
        try:
            files = self._fs.find(path, detail=True, on_error="raise")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [(name.lstrip("/"), int(info["size"])) for name, info in files.items()]

    def _walk(self, path: str) -> Iterator[dict[str, Any]]:
        """Every file below a folder. fsspec's own walk leaves out each folder below the first that it cannot list."""
        pending = [path]
        while pending:
            path = pending.pop()
            for info in self._in_folder(path):
                if info["type"] != "directory":
                    yield info
                elif info["name"].rstrip("/") != path.rstrip("/"):
                    pending.append(info["name"])

    def _in_folder(self, path: str) -> list[dict[str, Any]]:
        """What is in a folder; nothing only where another look says as well that there is none."""
        for _ in range(2):
            try:
                found: list[dict[str, Any]] = self._fs.ls(path, detail=True)
            except OSError as error:
                if not _is_missing(error):
                    raise
                if self._kind_at(path) != "directory":
                    return []
            else:
                return found
        raise StrangeReplyError(f"{path!r} is there, and was said not to be when it was listed")

    # ---- deleting

    def _remove(self, path: str) -> None:
        if self._is_s3:
            bucket, _, name = path.partition("/")
            check_delete(self._fs.call_s3("delete_object", Bucket=bucket, Key=name))
        else:
            self._fs.rm_file(path)

    def _remove_all(self, paths: Sequence[str]) -> bool:
        bucket = self._base.partition("/")[0]
        try:
            delete_s3(self._fs.call_s3, bucket, [path.partition("/")[2] for path in paths])
        except Exception as error:
            # Refused, or only without a Content-MD5; or answered, twice, without saying what became of each.
            self._strange_deletes += isinstance(error, StrangeReplyError)
            if not (faults.is_refused_request(error) or self._strange_deletes > 1):
                raise
            why = faults.text_of(error, self._secrets)
            _log.info("%s: objects are deleted one by one, not by DeleteObjects: %s", self._url, why)
            return False
        self._strange_deletes = 0
        return True

    # ---- measuring

    @property
    def _client_name(self) -> str:
        return type(self._fs).__module__.partition(".")[0]

    def _put_raw(self, path: str, data: memoryview) -> None:
        chunks = {"chunksize": 5 * 2**30} if self._is_s3 or self._is_gcs else {}
        self._fs.pipe_file(path, bytes(data), **chunks)

    def _get_raw(self, path: str, length: int) -> Any:
        return self._fs.cat_file(path, start=0, end=length)


def _is_missing(error: OSError) -> bool:
    """Not all clients raise the class that goes with the number."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in (errno.ENOENT, errno.ENOTDIR)


def _finds_by_itself(kind: type) -> bool:
    """Whether a class lists all that is below a folder in its own way, and not folder by folder as fsspec does it."""
    own = getattr(kind, "_find", AsyncFileSystem._find)
    return getattr(kind, "find", None) is not AbstractFileSystem.find or own is not AsyncFileSystem._find


async def _read_reply(reply: Any, into: memoryview, start: int) -> int:
    """Reads aiobotocore's reply to its end; the count is one too many where `into` does not hold it.

    The body is closed here, in its loop: closed by another thread, its connection stays open until the loop wakes.
    """
    body, about, count = reply["Body"], reply["ResponseMetadata"], 0
    try:
        check_range(about["HTTPStatusCode"], about["HTTPHeaders"], reply.get("ContentLength", -1), start, len(into))
        while count < into.nbytes:
            read = await body.readinto(into[count:])
            if not read:
                return count
            check_wanted()
            count += read
        return count + len(await body.read(1))  # at the end it has its length checked
    finally:
        body.close()


# Generic file systems answer create by exists-then-write: exclusive at least among the threads of this process.
_locks: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_locks_guard = threading.Lock()


class _Lock(threading.Semaphore):
    """A lock that can be referenced weakly."""


def _create_lock(name: str) -> Any:
    """The lock of an object: of whichever store, since those of one place need not be known to be."""
    with _locks_guard:
        lock = _locks.get(name)
        if lock is None:
            lock = _locks[name] = _Lock(1)
        return lock
