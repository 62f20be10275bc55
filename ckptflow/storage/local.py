"""A folder on a disk, durable past power loss: direct I/O, fsync of file and folders, create by hard link."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ckptflow.errors import StorageError
from ckptflow.storage.faults import closed_error, from_os_error, os_errors
from ckptflow.storage.local_calls import RESERVED as RESERVED
from ckptflow.storage.local_calls import (
    change,
    clear_direct,
    drop_cached,
    filled_bytes,
    is_there,
    looked_up_anew,
    opened_folder,
    remove,
)
from ckptflow.storage.local_folders import ANEW, DurableFolders, not_durable
from ckptflow.storage.local_listing import LEFTOVER_NAME as LEFTOVER_NAME
from ckptflow.storage.local_listing import check_no_link, is_record, version_of, walk
from ckptflow.storage.local_names import NO_LINKS, check_age, check_version, rename_under_lock, taken
from ckptflow.storage.positional import read_at, write_at
from ckptflow.storage.store import Entry, check_key, check_prefix

PAGE_BYTES = 4096
DIRECT_MIN_BYTES = 256 * 1024  # below this a direct write costs more than it saves
# Changed before they are listed, so that a network client cannot answer from its cache.
_REFRESHED_PREFIXES = {"lineage/", "pins/"}
_NO_DIRECT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_SWEPT = {errno.ENOENT}  # the folder or our temporary file was pruned under us


class LocalStore:
    """Files under one folder. Whole or absent for every reader, and on the disk when a call returns.

    Each object is written under a temporary name beside its own (`O_DIRECT` where memory and file system allow, else
    through the page cache), fsynced, and then linked (`create`) or renamed (`put`) to its name; then the folder is
    fsynced, and every folder above it up to the root's parent, whoever made them. A process that dies in between leaves
    at most a temporary file, which is never listed and goes when the rest of its folder is deleted. A folder that holds
    no object is listed by one name, `.ckptflow-leftover`, which is there only to be deleted.

    The root may be a link. Below it none is followed, also one that comes while a verb is at work: every file is opened
    in its folder's descriptor. A link, a pipe or the like in the place of an object is listed as empty and read so.

    A copy is a hard link: another name of the same file, which no verb ever writes to. Its version is the file's inode,
    size and time of last change. What was written more than a week ago is not copied, as the link would be as old.

    Where the file system has no hard links, nothing is copied once the first `copy` or `create` has found that out.
    From the first `create` on that takes `.ckptflow-lock-NAME` by `O_EXCL`, looks, renames, and gives it back: as
    exclusive, but a crash just there leaves the lock. It blocks no other name; `create` of that same name then raises
    `StorageUnavailableError` naming the lock, until a person, or the deletion of the folder, removes it.
    """

    is_create_only = True
    is_object_store = False

    def __init__(self, path: str) -> None:
        self._root = os.path.abspath(os.path.expanduser(path))
        self._has_direct = True
        self._has_links = self._has_copies = True
        self._folders = DurableFolders(self._root)
        self._is_closed = False

    @property
    def url(self) -> str:
        return self._root

    @property
    def can_copy(self) -> bool:
        return self._has_links and self._has_copies

    def put(self, key: str, data: memoryview) -> str | None:
        return self._write(key, data, _replace)

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        source, path = self._path(source_key), self._path(key)
        temporary = f"{RESERVED}tmp-{secrets.token_hex(12)}"
        try:
            self._folders.check_root()
            with opened_folder(self._root, _above(source_key)) as above:
                status = check_version(os.path.basename(source), above, version, source)
                self._folders.make(os.path.dirname(path))
                with self._folders.opened(os.path.dirname(path)) as folder:
                    try:
                        self._link_file(os.path.basename(source), above, status, temporary, folder)
                        # Of what was linked, whatever came between.
                        check_age(check_version(temporary, folder, version, source), source)
                        _replace(folder, temporary, path)
                    finally:
                        remove(temporary, folder)  # a rename to another name of the same file leaves it
            self._folders.fsync(os.path.dirname(path))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise from_os_error(error, f"copy {source}", path) from error
        return version

    def create(self, key: str, data: memoryview) -> None:
        self._write(key, data, self._link)

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        path = self._path(key)
        view = _flat(into)
        try:
            return looked_up_anew(functools.partial(self._read, key, view, start))
        except StorageError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP and os.path.islink(path):
                return 0  # as it is listed
            raise from_os_error(error, "read", path) from error

    def list(self, prefix: str = "") -> list[Entry]:
        self._check_open()
        folder = os.path.join(self._root, check_prefix(prefix))
        if prefix in _REFRESHED_PREFIXES:
            with contextlib.suppress(OSError), opened_folder(self._root, prefix[:-1]) as descriptor:
                change(descriptor)
        try:
            self._folders.check_root()
            if prefix and os.path.realpath(folder) != os.path.join(os.path.realpath(self._root), prefix[:-1]):
                check_no_link(os.path.join(self._root, prefix.partition("/")[0]))
                return []  # a link to a folder elsewhere: not in the root's own listing either
            return list(walk(self._root, prefix))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise from_os_error(error, "list", error.filename or folder) from error

    def list_partly(self) -> tuple[Sequence[Entry], dict[str, StorageError]]:
        """All that can be listed, and the folders below the root that cannot, each with why."""
        self._check_open()
        refused: dict[str, StorageError] = {}
        with os_errors("list", self._root):
            self._folders.check_root()
            return [*walk(self._root, "", refused)], refused

    def delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key, is_leftover=key.endswith("/" + LEFTOVER_NAME)) for key in keys]
        failed: list[OSError] = []
        for above, some in itertools.groupby(keys, _above):
            try:
                names = [os.path.basename(key) for key in some]
                failed += looked_up_anew(functools.partial(_unlink_all, self._root, above, names))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                failed.append(error)
        try:
            # Deepest first; durable before the call returns: a manifest must not outlive the shards deleted after it.
            for path in sorted({os.path.dirname(path) for path in paths}, key=len, reverse=True):
                self._folders.settle(path)
        except OSError as error:
            failed.append(error)
        if failed:
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            if isinstance(failed[0], StorageError):
                raise failed[0]
            raise from_os_error(failed[0], "delete" + more, failed[0].filename or self._root) from failed[0]

    def close(self) -> None:
        self._is_closed = True

    def renew(self, key: str) -> None:
        """What is read of `key` next is not what the page cache holds."""
        with contextlib.suppress(OSError), opened_folder(self._root, _above(key)) as folder:
            drop_cached(os.path.basename(key), folder)

    def filled_bytes(self, key: str) -> int:
        """How much of an object was ever written: the rest of it are holes."""
        path = self._path(key)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with os_errors("read", path), opened_folder(self._root, _above(key)) as folder:
            with open(os.open(os.path.basename(key), flags, dir_fd=folder), "rb") as file:
                return filled_bytes(file.fileno())

    def raw(self) -> RawDisk:
        """Files alone, for measurements."""
        return RawDisk(self)

    # ---- names

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error(self._root)

    def _path(self, key: str, *, is_leftover: bool = False) -> str:
        self._check_open()
        if f"/{RESERVED}" in f"/{check_key(key)}" and not is_leftover:
            raise ValueError(f"not a storage key: {key!r} ({RESERVED}… names are this store's own)")
        return os.path.join(self._root, key)

    # ---- writing

    def _write(self, key: str, data: memoryview, publish: Callable[[int, str, str], None]) -> str:
        path = self._path(key)
        view = _flat(data)
        attempts, attempt = 3, 0
        while True:
            attempt += 1
            try:
                return self._write_once(path, view, publish)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                # A failed fsync says nothing about its file's bytes, not even when repeated: only a new file does.
                again = 2 if error.errno in ANEW else attempts if error.errno in _SWEPT else 1
                if attempt >= again:
                    raise _write_error(error, path) from error

    def _write_once(self, path: str, view: memoryview, publish: Callable[[int, str, str], None]) -> str:
        self._folders.check_root()
        self._folders.make(os.path.dirname(path))
        with self._folders.opened(os.path.dirname(path)) as folder:
            temporary = f"{RESERVED}tmp-{secrets.token_hex(12)}"
            try:
                version = self._write_file(temporary, folder, view)
                publish(folder, temporary, path)
            finally:
                remove(temporary, folder)
        try:
            self._folders.fsync(os.path.dirname(path))
        except OSError as error:
            if isinstance(error, StorageError) or publish is _replace:
                raise
            raise not_durable(error, path) from error  # not tried again: it would meet itself, and nothing be changed
        return version

    def _write_file(self, temporary: str, folder: int, view: memoryview) -> str:
        direct_bytes = self._direct_bytes(view, 0)
        descriptor = self._open(temporary, folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL, direct=direct_bytes > 0)
        try:
            end = 0
            if direct_bytes and self._has_direct:
                end = self._transfer(lambda at, part: os.pwrite(descriptor, part, at), view[:direct_bytes], 0)
            if direct_bytes:
                clear_direct(descriptor)
            write_at(descriptor, view[end:], end)
            os.fsync(descriptor)
            if not direct_bytes and len(view) >= DIRECT_MIN_BYTES:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # clean now, and nobody reads it back soon
            return version_of(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _link_file(self, source: str, above: int, status: os.stat_result, new: str, folder: int) -> None:
        try:
            os.link(source, new, src_dir_fd=above, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno in NO_LINKS and status.st_nlink == 1 and status.st_uid == os.geteuid():
                self._has_copies = False  # our own file, which has no other name; or it alone is protected
            raise

    def _link(self, folder: int, temporary: str, path: str) -> None:
        name = os.path.basename(path)
        if self._has_links:
            try:
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                return
            except FileExistsError as error:
                raise taken(path) from error
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if is_there(name, folder):
                    raise taken(path) from error
                self._has_links = False
        rename_under_lock(folder, temporary, path)

    # ---- direct I/O

    def _direct_bytes(self, view: memoryview, start: int) -> int:
        """How many leading bytes of `view` may go past the page cache: whole pages of page-aligned memory and file."""
        if not self._has_direct or len(view) < DIRECT_MIN_BYTES or start % PAGE_BYTES:
            return 0
        address: int = np.frombuffer(view, np.uint8).ctypes.data
        return 0 if address % PAGE_BYTES else len(view) // PAGE_BYTES * PAGE_BYTES

    def _open(self, name: str, folder: int, flags: int, *, direct: bool) -> int:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        if direct and self._has_direct:
            try:
                return os.open(name, flags | os.O_DIRECT, 0o666, dir_fd=folder)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                self._has_direct = False  # tmpfs and some network and FUSE file systems
                if flags & os.O_EXCL:
                    remove(name, folder)  # the file is made before O_DIRECT is refused
        return os.open(name, flags, 0o666, dir_fd=folder)

    def _transfer(self, move: Callable[[int, memoryview], int], view: memoryview, start: int) -> int:
        """Moves whole pages with `move(offset, part)` until `view`, the file or alignment ends; returns the count."""
        done = 0
        while done < len(view):
            try:
                count = move(start + done, view[done:])
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                self._has_direct = False  # opened, but refused on the first transfer
                break
            done += count
            if count == 0 or count % PAGE_BYTES:
                break
        return done

    def _read(self, key: str, view: memoryview, start: int) -> int:
        direct_bytes = self._direct_bytes(view, start)
        with opened_folder(self._root, _above(key)) as folder:
            # Not to wait for a writer, where a pipe is in the place of a file.
            flags = os.O_RDONLY | os.O_NONBLOCK
            try:
                descriptor = self._open(os.path.basename(key), folder, flags, direct=direct_bytes > 0)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a socket, or a device without a driver: nothing to read either
                    return 0
                raise
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) and (not stat.S_ISDIR(mode) or is_record(key)):
                return 0  # as it is listed
            done = 0
            if direct_bytes and self._has_direct:
                done = self._transfer(lambda at, part: os.preadv(descriptor, [part], at), view[:direct_bytes], start)
            if direct_bytes:
                clear_direct(descriptor)
            elif len(view) >= DIRECT_MIN_BYTES:
                os.posix_fadvise(descriptor, start, len(view), os.POSIX_FADV_SEQUENTIAL)
            return done + read_at(descriptor, view[done:], start + done)
        finally:
            os.close(descriptor)


class RawDisk:
    """Direct writes and fsync; through the page cache where the file system refuses direct ones."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        return f"{'direct' if self._store._has_direct else 'buffered'} writes + fsync"

    def put(self, key: str, data: memoryview) -> None:
        with self._opened(key, os.O_WRONLY | os.O_CREAT) as descriptor:
            write_at(descriptor, data, 0)
            os.fsync(descriptor)

    def get(self, key: str, into: memoryview) -> None:
        with self._opened(key, os.O_RDONLY) as descriptor:
            if read_at(descriptor, into, 0) != len(into):
                raise OSError(f"{key}: a short read")

    @contextlib.contextmanager
    def _opened(self, key: str, flags: int) -> Iterator[int]:
        with opened_folder(self._store.url, _above(key)) as folder:
            descriptor = self._store._open(os.path.basename(key), folder, flags, direct=True)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _above(key: str) -> str:
    """The folder that a key is in, below the root."""
    return key.rpartition("/")[0]


def _replace(folder: int, temporary: str, path: str) -> None:
    os.replace(temporary, os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)


def _unlink_all(root: str, above: str, names: Sequence[str]) -> list[OSError]:
    """Deletes what is there of these names in the folder `above` below a root; why it could not."""
    failed: list[OSError] = []
    with opened_folder(root, above) as folder:
        for name in names:
            try:
                os.unlink(name, dir_fd=folder)
            except (FileNotFoundError, IsADirectoryError):
                pass
            except OSError as error:
                error.filename = os.path.join(root, above, name)
                if error.errno == errno.ESTALE:  # all of the folder
                    raise
                failed.append(error)
    return failed


def _flat(data: memoryview) -> memoryview:
    return data.cast("B") if data.nbytes else memoryview(bytearray())


def _write_error(error: OSError, path: str) -> StorageError:
    if error.errno in _SWEPT:
        return StorageError(f"{path}: cannot write: its directory cannot be created, or was removed each time")
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return StorageError(
            f"{path}: cannot write: a directory was found where a file was expected, or a file where a directory was"
        )
    return from_os_error(error, "write", path)
