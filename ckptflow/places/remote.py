"""Whole files on remote storage: found, downloaded in ranges, uploaded in parts, each part tried again by itself."""

from __future__ import annotations

import io
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeVar

from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    UsageError,
)
from ckptflow.places.names import exists, in_steps, is_in_group, not_found
from ckptflow.places.range_file import RangeFile
from ckptflow.places.room import check_room
from ckptflow.printable import printable
from ckptflow.storage import faults, redaction
from ckptflow.storage.by_fsspec import FsspecStore
from ckptflow.storage.clients import split_options
from ckptflow.storage.positional import write_at
from ckptflow.storage.replies import StrangeReplyError
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.stalls import retry_time_s
from ckptflow.storage.store import Entry, check_key

logger = logging.getLogger("ckptflow.storage")

PART_BYTES = 16 * 2**20  # in memory at once, twice, in each thread; a file that is not longer is one request
MAX_FILES = 100_000
_READ_BYTES = 256 * 2**10  # asked for at once where a file is read here and there
_THREADS = 4
_MAX_PARTS = 10_000  # of one S3 object
_TEMPORARY = "ckptflow-"  # what temporary folders' names begin with
_Result = TypeVar("_Result")
_VERSION = ("ETag", "etag", "generation", "LastModified", "mtime", "updated", "created")


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies at one URL: its kind, None for nothing, and its objects by their keys beside the URL's last part."""

    kind: Literal["file", "folder", "group"] | None
    entries: tuple[Entry, ...] = ()


class RemotePlace:
    """One URL on remote storage: what is there, brought to this disk, or put there. Always by fsspec."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        scheme, _, rest = url.partition("://")
        above, _, self.name = rest.rstrip("/").rpartition("/")
        if not above and scheme != "memory":
            above, self.name = self.name, ""  # a bucket
        if self.name:
            check_key(self.name)
        self.parts = tuple(rest.rstrip("/").split("/"))
        self.url = redaction.redact_url(url).rstrip("/")
        options, _, limit_s = split_options(storage_options)
        self._files = _Files(f"{scheme}://{above}", options, limit_s)
        self._store = RetryingStore(self._files, max_wait_s=retry_time_s(limit_s))

    def close(self) -> None:
        self._store.close()

    def find(self) -> Contents:
        """What is here: the object of this very name, else what is below it, else the group of files it begins."""
        file = self._file()
        if file:
            return Contents("file", file)
        below = self._below()
        if below:
            return Contents("folder", below)
        group = self._group()
        return Contents("group", group) if any(entry.key == self.name + ".index" for entry in group) else Contents(None)

    def all(self) -> dict[str, int]:
        """Every object that is here, in whichever form: key and size in bytes."""
        return {entry.key: entry.size_bytes for entry in (*self._file(), *self._below(), *self._group())}

    def open(self) -> BinaryIO:
        """The object of this very name, read in ranges as it is asked for. Raises `ObjectNotFoundError`."""
        stamp = self._stamp(self.name) if self.name else None
        if stamp is None:
            raise not_found(self.url)

        def read_into(view: memoryview, offset: int) -> int:
            count = self._store.get(self.name, view, offset)
            if count < len(view):
                raise StorageError(f"{self._store.url}/{self.name} was replaced while it was read; fetch it again")
            return count

        return io.BufferedReader(RangeFile(stamp[0], read_into), _READ_BYTES)

    def _file(self) -> tuple[Entry, ...]:
        stamp = self._stamp(self.name) if self.name else None
        return (Entry(self.name, stamp[0]),) if stamp else ()

    def _below(self) -> tuple[Entry, ...]:
        return tuple(self._store.list(f"{self.name}/" if self.name else ""))

    def _group(self) -> tuple[Entry, ...]:
        if not self.name:
            return ()
        start = self.name + "."
        names = self._store.run("list", start, lambda: self._files.list_names(start))
        return tuple(entry for entry in names if is_in_group(entry.key, self.name))

    def _stamp(self, key: str) -> tuple[int, str] | None:
        return self._store.run("get", key, lambda: self._files.stamp(key))

    # ---- bringing

    def download(self, folder: str, max_bytes: int) -> str:
        """Brings what is here into `folder`; returns its path there, for a group the path that its files begin with.

        Raises `ObjectNotFoundError`, `CorruptCheckpointError` for names that no folder can hold, and `UsageError` or
        `StorageFullError` for more bytes than `max_bytes` or than are free, before any is read.
        """
        found = self.find()
        if found.kind is None:
            raise not_found(self.url)
        _check_names(self.url, found.entries)
        check_room(self.url, sum(entry.size_bytes for entry in found.entries), max_bytes, folder)
        base = folder if self.name else os.path.join(folder, "root")
        large = [entry.key for entry in found.entries if entry.size_bytes > PART_BYTES]
        stamps = [self._stamp(key) for key in large]
        _in_threads(job for entry in found.entries for job in self._parts(entry, os.path.join(base, entry.key)))
        for key, stamp in zip(large, stamps, strict=True):
            if self._stamp(key) != stamp:
                raise self._replaced(key)
        return os.path.join(folder, self.name or "root")

    def _parts(self, entry: Entry, path: str) -> Iterator[Callable[[], None]]:
        """The jobs that bring one file."""
        with faults.os_errors("write", path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "xb").close()
        for start in range(0, max(1, entry.size_bytes), PART_BYTES):
            yield lambda start=start: self._bring(entry, path, start)  # type: ignore[misc]

    def _bring(self, entry: Entry, path: str, start: int) -> None:
        expected = min(PART_BYTES, entry.size_bytes - start)
        is_end = start + expected == entry.size_bytes
        buffer = memoryview(bytearray(expected + is_end))  # at the end one byte more: is there one?
        if self._store.get(entry.key, buffer, start) != expected:
            raise self._replaced(entry.key)
        with faults.os_errors("write", path), open(path, "r+b", buffering=0) as file:
            write_at(file.fileno(), buffer[:expected], start)

    def _replaced(self, key: str) -> StorageError:
        return StorageError(f"{self._store.url}/{key} was replaced while it was read; fetch it again")

    # ---- putting

    @contextmanager
    def staging(self) -> Iterator[str]:
        """A private folder to write to before `publish`."""
        with temporary_folder() as folder:
            yield folder

    def publish(self, folder: str, sizes: dict[str, int], *, overwrite: bool) -> None:
        """Uploads the files of `folder` under their names there, what makes the others readable last.

        Without `overwrite`, an object that is here raises `ObjectExistsError`. After an error what was uploaded is
        deleted. With it, objects here that the new ones do not replace are deleted at the end; where files are
        several, what makes the old ones readable is deleted first, so that nobody ever reads a mixture.
        """
        here = self.all()
        if here and not overwrite:
            raise exists(self.url)
        is_group = all(is_in_group(key, self.name) for key in sizes)
        old = {key for key in here if is_in_group(key, self.name) == is_group}
        in_the_way: list[str] = []
        clashes = bool(old) and (self.name in old) != (self.name in sizes)
        if clashes:
            in_the_way = sorted(
                old
            )  # a file where a directory was expected, or the reverse: not all storages allow both
        elif len(sizes) > 1:
            in_the_way = [key for step in reversed(in_steps(old)[1:]) for key in step]
        done: list[str] = []
        try:
            self._store.delete(in_the_way)
            if clashes and not self._files.is_flat:
                self._store.run("delete", self.name, lambda: self._files.clear(self.name))
            for step in in_steps(sizes):
                _in_threads(self._upload(folder, key, sizes[key], overwrite, done) for key in step)
        except BaseException as error:
            self._undo(done, old, in_the_way, error)
            raise
        stale = sorted(old - set(in_the_way) - sizes.keys())
        try:
            self._store.delete(stale)
        except StorageError as error:
            logger.warning("%s is complete; what it replaced could not all be deleted: %s", self.url, str(error))

    def _upload(self, folder: str, key: str, size_bytes: int, overwrite: bool, done: list[str]) -> Callable[[], None]:
        def upload() -> None:
            path = os.path.join(folder, key)
            if size_bytes > PART_BYTES:
                self._files.upload(key, path, size_bytes, self._store, is_new=not overwrite)
            else:
                with open(path, "rb") as file:
                    data = file.read()
                if overwrite:
                    self._store.put(key, memoryview(data))
                else:
                    self._create(key, data)
            done.append(key)

        return upload

    def _create(self, key: str, data: bytes) -> None:
        try:
            self._store.create(key, memoryview(data))
        except ObjectExistsError:
            buffer = memoryview(bytearray(len(data) + 1))
            count = self._store.get(key, buffer)
            if buffer[:count] != data:  # else by a try of ours whose reply was lost
                raise exists(self.url) from None

    def _undo(self, done: list[str], old: set[str], in_the_way: list[str], error: BaseException) -> None:
        try:
            self._store.delete(done)
        except StorageError as second:
            error.add_note(f"what was uploaded by then could not be deleted: {second}")
        if in_the_way or old.intersection(done):
            error.add_note(f"what was at {printable(self.url)} before was being replaced and can no longer be read")


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder of this user's alone, where TMPDIR says; removed at the end, whatever happens."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as folder:
        yield folder


def _check_names(url: str, entries: Sequence[Entry]) -> None:
    if len(entries) > MAX_FILES:
        raise UsageError(f"{url} holds {len(entries):,} objects; at most {MAX_FILES:,} are fetched")
    keys = {entry.key for entry in entries}
    try:
        for key in keys:
            check_key(key)
            for above in itertools.accumulate(key.split("/")[:-1], "{}/{}".format):
                if above in keys:
                    raise ValueError(f"{above!r} is both an object and a folder")
    except ValueError as error:
        raise CorruptCheckpointError(f"{url} cannot be brought to a disk: {error}") from error


def _in_threads(jobs: Iterable[Callable[[], _Result]]) -> list[_Result]:
    """What the jobs return, done by a few threads. The first error keeps the rest from beginning, and is raised."""
    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            futures = [threads.submit(job) for job in jobs]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in futures if future in done]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


class _Files(FsspecStore):
    """fsspec's store with what whole files need beside its verbs. What they raise is not tried again here."""

    @property
    def is_flat(self) -> bool:
        """Whether an object may have the name of a folder."""
        return self._is_s3 or self._is_gcs

    def stamp(self, key: str) -> tuple[int, str] | None:
        """An object's size, and a text that is another one after it was replaced; None where there is no object."""
        try:
            with self._mapped("look for", key):
                info = self._fs.info(self._path(key))
        except ObjectNotFoundError:
            return None
        if info.get("type") != "file":
            return None
        return int(info["size"]), repr([info.get(word) for word in _VERSION])

    def list_names(self, start: str) -> list[Entry]:
        """The objects directly in the root whose keys begin with `start`."""
        with self._mapped("list", start):
            if self.is_flat:
                found = self._find(self._base + start)
            else:
                infos = self._in_folder(self._lead + self._base.rstrip("/"))
                found = [(info["name"].lstrip("/"), int(info["size"] or 0)) for info in infos]
        entries = [Entry(name[len(self._base) :], size_bytes) for name, size_bytes in found]
        return [entry for entry in entries if entry.key.startswith(start) and "/" not in entry.key]

    def clear(self, key: str) -> None:
        """Removes folders without files, where there are such things."""
        with self._mapped("delete", key), suppress(FileNotFoundError):
            self._fs.rm(self._path(key), recursive=True)

    def upload(self, key: str, path: str, size_bytes: int, again: RetryingStore, *, is_new: bool) -> None:
        """Uploads a large file, in parts where the storage can: then the object appears with the last, or not at all.

        With `is_new`, looks once more before that; raises `ObjectExistsError`.
        """
        if self._is_s3:
            self._upload_parts(key, path, size_bytes, again, is_new)
        else:
            if is_new and again.run("get", key, lambda: self.stamp(key)):
                raise exists(f"{self._url}/{key}")
            again.run("put", key, lambda: self._upload_whole(key, path))

    def _upload_whole(self, key: str, path: str) -> None:
        target = self._path(key)
        with self._mapped("write", key):
            if self._is_gcs:  # a resumable upload
                self._fs.put_file(path, target, chunksize=PART_BYTES)
                return
            try:
                self._make_folder(target)
                self._fs.put_file(path, target)
            except BaseException:
                with suppress(Exception):
                    self._fs.rm_file(target)
                raise

    def _upload_parts(self, key: str, path: str, size_bytes: int, again: RetryingStore, is_new: bool) -> None:
        bucket, _, name = self._path(key).partition("/")

        def call(verb: str, **words: Any) -> Any:
            def once() -> Any:
                with self._mapped("write", key):
                    reply = self._fs.call_s3(verb, Bucket=bucket, Key=name, **words)
                    if verb != "abort_multipart_upload" and not reply.keys() & {"UploadId", "ETag"}:
                        raise StrangeReplyError("the reply is not one to a write, and nothing may have been written")
                    return reply

            return again.run("put", key, once)

        part_bytes = max(PART_BYTES, -(-size_bytes // _MAX_PARTS))
        upload = call("create_multipart_upload")["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), part_bytes, number * part_bytes)
            reply = call("upload_part", UploadId=upload, PartNumber=number + 1, Body=data)
            return {"PartNumber": number + 1, "ETag": reply["ETag"]}

        def stamp() -> tuple[int, str] | None:
            return again.run("get", key, lambda: self.stamp(key))

        try:
            numbers = range(-(-size_bytes // part_bytes))
            parts = _in_threads((lambda number=number: send(number)) for number in numbers)  # type: ignore[misc]
            if is_new and stamp():
                raise exists(f"{self._url}/{key}")
            try:
                call("complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
            except ObjectNotFoundError:  # no such upload any more: was it a try whose reply was lost?
                if (stamp() or (-1,))[0] != size_bytes:
                    raise
        except BaseException:
            try:
                call("abort_multipart_upload", UploadId=upload)
            except ObjectNotFoundError:
                pass
            except StorageError as error:
                logger.warning("parts of a failed upload are left until it is aborted by hand: %s", str(error))
            raise
