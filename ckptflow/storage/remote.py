"""Every scheme but a local path: s3, gs, memory and whatever else fsspec knows, one request per object."""

from __future__ import annotations

import base64
import errno
import functools
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import crc32c
import fsspec
import fsspec.asyn

from ckptflow.errors import LEAVING, ObjectNotFoundError, StorageError, UsageError
from ckptflow.events import Tell, tell_nobody
from ckptflow.storage import faults, redaction
from ckptflow.storage.clients import (
    GCS_SCHEMES,
    S3_SCHEMES,
    open_file_system,
    parse_listings_quickly,
    split_options,
    wants_checksum,
)
from ckptflow.storage.credentials import may_be_chained, opening, secrets_of
from ckptflow.storage.replies import (
    StrangeReplyError,
    check_delete,
    check_put,
    check_range,
    delete_s3,
    list_gcs,
    list_s3,
)
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.stalls import STALL_TIMEOUT_S, StalledError, retry_time_s
from ckptflow.storage.store import Entry, Store, check_key, check_prefix
from ckptflow.threads import at_once

_log = logging.getLogger("ckptflow.storage")

_DELETE_BATCH = 1000  # what one S3 DeleteObjects may hold
_RENEW_PAUSE_S = 0.25  # what answers wrong may be about to be replaced


def open_remote_store(url: str, storage_options: dict[str, Any], tell: Tell = tell_nobody) -> Store:
    """The store for a URL with a scheme, its verbs retried where that may help.

    `s3://` and `gs://` go through obstore where it is installed and understands every option given, else through s3fs
    and gcsfs; `storage_options={"client": "obstore"}` or `"fsspec"` decides. A request in which no byte moves for
    `storage_options={"stall_timeout_s": 30.0}` is given up and tried again; None is no limit. Raises ValueError for a
    scheme that is not known, ImportError naming the package that is missing. Nothing is read or written.
    """
    options, client, stall_timeout_s = split_options(storage_options)
    scheme = url.partition("://")[0]
    store: Store | None = None
    if client != "fsspec":
        from ckptflow.storage.fast import open_fast_store

        store = open_fast_store(url, scheme, options, stall_timeout_s, is_required=client == "obstore")
    store = store or FsspecStore(url, options, stall_timeout_s)
    return RetryingStore(store, max_wait_s=retry_time_s(stall_timeout_s), tell=tell)


class RemoteStore:
    """What the stores on object storage share: no secrets in messages, missing buckets told from missing objects.

    Not usable in a forked child: threads and connections do not survive a fork; open another store there.
    """

    is_object_store = True

    def __init__(
        self, url: str, root: str, storage_options: dict[str, Any], stall_timeout_s: float | None = STALL_TIMEOUT_S
    ) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._url = redaction.redact_url(url).rstrip("/")
        self._root = root  # "bucket/run-7", or "" for the root of a file system without buckets
        self._secrets = list(secrets_of(url, storage_options))
        self._is_root_known = False  # whether any call has proved that the bucket exists
        self._is_closed = False
        self._process = os.getpid()

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        self._is_closed = True

    def _check_usable(self) -> None:
        if self._is_closed:
            raise faults.closed_error(self._url)
        if self._process != os.getpid():
            raise UsageError(f"{self._url}: opened before a fork; open another store in the forked process")

    @contextmanager
    def _mapped(self, doing: str, key: str = "") -> Iterator[None]:
        """Runs one client call with its errors mapped; a call that gets through proves that the bucket is there."""
        self._check_usable()
        where = f"{self._url}/{key}" if key else self._url
        try:
            yield
        except (StorageError, UsageError, *LEAVING):
            raise
        except BaseException as error:  # a panic of obstore is no Exception
            shown, limit_s = error, self._stall_timeout_s
            if limit_s is not None and faults.is_stall(error):
                text = faults.text_of(error, self._secrets)
                shown = StalledError(f"no byte was sent or received for {limit_s:g} s, so it was given up ({text})")
            mapped = faults.from_client_error(shown, doing, where, self._secrets)
            # The client's own error helps, unless it shows what must not be seen.
            raise mapped from (error if may_be_chained(error, self._secrets) else None)
        self._is_root_known = True

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}" if self._root else check_key(key)

    def _check_bucket(self, key: str) -> None:
        """After "nothing there" for `key`: raises where it is the bucket that is missing. At most one request, once."""
        if not self._is_root_known:
            self.list(key + "/")

    def list(self, prefix: str = "") -> list[Entry]:
        raise NotImplementedError

    def _no_bucket(self, doing: str) -> StorageError:
        return StorageError(f"{self._url}: cannot {doing}: no such bucket or container; make it, or check the URL")


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
        super().__init__(url, root.strip("/"), storage_options, stall_timeout_s)
        # What has folders and no buckets has absolute paths: others are below whatever folder the login begins in.
        self._lead = "/" if root.startswith("/") else ""
        self._is_s3, self._is_gcs = self._scheme in S3_SCHEMES, self._scheme in GCS_SCHEMES
        self.is_create_only = self._is_s3 or self._is_gcs or self._scheme == "memory"
        self._has_folders = not (self.is_create_only or self._scheme in ("abfs", "az", "oss", "oci", "r2"))
        self._has_bulk_delete = self._is_s3  # until the server refuses it
        self._sends_checksum = self._is_s3 and wants_checksum(storage_options)

    def put(self, key: str, data: memoryview) -> None:
        self._write(key, data, "overwrite")

    def create(self, key: str, data: memoryview) -> None:
        self._write(key, data, "create")

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        path = self._path(key)
        if not into.nbytes:
            return 0
        try:
            with self._mapped("read", key):
                try:
                    return self._read_s3(path, into, start) if self._is_s3 else self._read(path, into, start)
                except Exception as error:
                    if not is_past_end(error):
                        raise
                    return 0
        except ObjectNotFoundError:
            self._check_bucket(key)
            raise

    def list(self, prefix: str = "") -> list[Entry]:
        check_prefix(prefix)
        base = f"{self._root}/" if self._root else ""
        try:
            with self._mapped("list", prefix):
                found = self._find(base + prefix)
        except ObjectNotFoundError as error:
            raise self._no_bucket("list") from error
        return [
            Entry(name[len(base) :], size_bytes)
            for name, size_bytes in found
            if name.startswith(base + prefix) and not name.endswith("/")  # else a folder's marker
        ]

    def delete(self, keys: Sequence[str]) -> None:
        pairs = [(key, self._path(key)) for key in keys]
        self._check_usable()
        for first in range(0, len(pairs), _DELETE_BATCH):
            batch = pairs[first : first + _DELETE_BATCH]
            if not (self._has_bulk_delete and self._delete_in_bulk([path for _, path in batch])):
                at_once(8, lambda pair: self._delete_one(*pair), batch)
                self._has_bulk_delete = False

    def _path(self, key: str) -> str:
        return self._lead + super()._path(key)

    # ---- how each kind of file system is asked

    def _read(self, path: str, into: memoryview, start: int) -> int:
        data = self._fs.cat_file(path, start=start, end=start + into.nbytes)
        if len(data) > into.nbytes:
            raise StrangeReplyError(f"asked for {into.nbytes:,} bytes, got {len(data):,}")
        into.cast("B")[: len(data)] = data
        return len(data)

    def _read_s3(self, path: str, into: memoryview, start: int) -> int:
        """The body goes to `into` as it comes in: `cat_file` would collect it, join it, and have it copied here."""
        fs = self._fs  # and no other one before the body is read
        bucket, _, name = path.partition("/")
        wanted = f"bytes={start}-{start + into.nbytes - 1}"
        reply = fs.call_s3("get_object", Bucket=bucket, Key=name, Range=wanted)
        about, size_bytes = reply["ResponseMetadata"], reply.get("ContentLength", -1)
        try:
            check_range(about["HTTPStatusCode"], about["HTTPHeaders"], size_bytes, start, into.nbytes)
        except StrangeReplyError:
            reply["Body"].close()
            raise
        count: int = fsspec.asyn.sync(fs.loop, _read_body, reply["Body"], into.cast("B"))
        if count != size_bytes:
            raise StrangeReplyError(f"{size_bytes:,} bytes were announced, and {count:,} came")
        return count

    def _write(self, key: str, data: memoryview, mode: str) -> None:
        path = self._path(key)
        doing = "create" if mode == "create" else "write"
        try:
            with self._mapped(doing, key):
                if self._is_s3 and mode == "create":
                    self._create_s3(path, data)
                else:
                    self._send(path, data, mode)
        except ObjectNotFoundError as error:
            raise self._no_bucket(doing) from error

    def _create_s3(self, path: str, data: memoryview) -> None:
        """By the server's own condition; if it knows none, looks first, then writes, and `is_create_only` says so."""
        for _ in range(2 if self.is_create_only else 0):  # twice: one answer is no proof
            try:
                self._send(path, data, "create")
            except Exception as error:
                if not faults.is_refused_condition(error):
                    raise
            else:
                return
        self.is_create_only = False
        with _create_lock(f"{self._scheme}://{path}"):
            if any(name == path for name, _ in self._find(path)):
                raise FileExistsError("something is there")
            self._send(path, data, "overwrite")

    def _send(self, path: str, data: memoryview, mode: str) -> None:
        """One object, written in one request; `mode` is "create" or "overwrite"."""
        if self._is_s3:
            self._send_s3(path, data, is_new=mode == "create")
        elif self._is_gcs:
            self._fs.pipe_file(path, data, mode=mode, chunksize=data.nbytes + 1)
        else:
            with _create_lock(f"{self._scheme}://{path}"):
                if mode == "create" and self._is_there(path):
                    raise FileExistsError("something is there")
                if self._has_folders:
                    self._fs.makedirs(self._fs._parent(path), exist_ok=True)
                takes_mode = "mode" in inspect.signature(self._fs.pipe_file).parameters
                self._fs.pipe_file(path, bytes(data), **({"mode": mode} if takes_mode else {}))

    def _is_there(self, path: str) -> bool:
        """Unlike fsspec's `exists`, which says no whatever went wrong; not all classes ask by themselves, either."""
        try:
            self._fs.info(path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _send_s3(self, path: str, data: memoryview, *, is_new: bool) -> None:
        bucket, _, name = path.partition("/")
        options = {"IfNoneMatch": "*"} if is_new else {}
        if self._sends_checksum:
            options["ChecksumCRC32C"] = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
        check_put(self._fs.call_s3("put_object", Bucket=bucket, Key=name, Body=bytes(data), **options))

    def _find(self, prefix: str) -> Iterable[tuple[str, int]]:
        """The full name and the size of each file whose name begins with `prefix`."""
        if self._is_s3 or self._is_gcs:
            bucket, _, inner = prefix.partition("/")
            if self._is_s3:
                parse_listings_quickly(self._fs, bucket)
            found = list_s3(self._fs.call_s3, bucket, inner) if self._is_s3 else list_gcs(self._fs.call, bucket, inner)
            return [(f"{bucket}/{name}", size_bytes) for name, size_bytes in found]
        try:
            files = self._fs.find(self._lead + prefix.rstrip("/"), detail=True, on_error="raise")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [(name.lstrip("/"), int(info["size"])) for name, info in files.items()]

    def _delete_in_bulk(self, paths: Sequence[str]) -> bool:
        """Deletes all in one request; False if the server takes no such request, or only with a Content-MD5."""
        bucket = self._root.partition("/")[0]
        with self._mapped("delete"):
            try:
                delete_s3(self._fs.call_s3, bucket, [path.partition("/")[2] for path in paths])
            except Exception as error:
                if not faults.is_refused_request(error):
                    raise
                why = faults.text_of(error, self._secrets)
                _log.info("%s: objects are deleted one by one, the server refuses DeleteObjects: %s", self._url, why)
                return False
        return True

    def _delete_one(self, key: str, path: str) -> None:
        for _ in range(2):  # that it is not there is asked again: one answer is no proof
            with suppress(ObjectNotFoundError), self._mapped("delete", key):
                if self._is_s3:
                    bucket, _, name = path.partition("/")
                    check_delete(self._fs.call_s3("delete_object", Bucket=bucket, Key=name))
                else:
                    self._fs.rm_file(path)
                return

    def renew(self, key: str) -> None:
        """Another client, with connections of its own, takes over; from here on it asks past caches."""
        time.sleep(_RENEW_PAUSE_S)
        with suppress(Exception):  # then the old one asks again
            self._fs = self._open(past_caches=True)[0]


async def _read_body(body: Any, into: memoryview) -> int:
    """Reads aiobotocore's body to its end; the count is one too many where `into` does not hold it."""
    count = 0
    try:
        while count < into.nbytes:
            read = await body.readinto(into[count:])
            if not read:
                return count
            count += read
        return count + len(await body.read(1))  # at the end it has its length checked
    finally:
        body.close()


def is_past_end(error: BaseException) -> bool:
    codes = {code for link in faults.chain(error) for code in faults.codes_of(link)}
    return bool(codes & {"416", "InvalidRange"})


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
