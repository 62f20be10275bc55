"""A folder on a disk, durable past power loss: direct I/O, fsync of file and folders, create by hard link."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Sequence

import numpy as np

from ckptflow.errors import ObjectExistsError, StorageError, StorageUnavailableError
from ckptflow.storage.faults import closed_error, from_os_error
from ckptflow.storage.local_calls import RESERVED as RESERVED
from ckptflow.storage.local_calls import change, clear_direct, drop_cached, fsync_path, remove
from ckptflow.storage.local_listing import LEFTOVER_NAME as LEFTOVER_NAME
from ckptflow.storage.local_listing import check_no_link, is_record, walk
from ckptflow.storage.store import Entry, check_key, check_prefix

PAGE_BYTES = 4096
DIRECT_MIN_BYTES = 256 * 1024  # below this a direct write costs more than it saves
_REFRESHED_PREFIX = "lineage/"  # changed before it is listed, so that a network client cannot answer from its cache
_LOCK_WAIT_S = 2.0
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_DIRECT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_ANEW = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}  # worth one more try, under another name
_SWEPT = {errno.ENOENT}  # the folder or our temporary file was pruned under us


class LocalStore:
    """Files under one folder. Whole or absent for every reader, and on the disk when a call returns.

    Each object is written under a temporary name beside its own (`O_DIRECT` where memory and file system allow, else
    through the page cache), fsynced, and then linked (`create`) or renamed (`put`) to its name; then the folder is
    fsynced, and every folder above it up to the root's parent, whoever made them. A process that dies in between leaves
    at most a temporary file, which is never listed and goes when the rest of its folder is deleted. A folder that holds
    no object is listed by one name, `.ckptflow-leftover`, which is there only to be deleted.

    Where the file system has no hard links, `create` takes `.ckptflow-lock-NAME` by `O_EXCL`, looks, renames, and gives
    it back: as exclusive, but a crash just there leaves the lock. It blocks no other name; `create` of that same name
    then raises `StorageUnavailableError` naming the lock, until a person, or the deletion of the folder, removes it.
    """

    is_create_only = True
    is_object_store = False

    def __init__(self, path: str) -> None:
        self._root = os.path.abspath(os.path.expanduser(path))
        self._has_direct = True
        self._has_links = True
        self._durable: dict[str, int] = {}  # folder -> inode whose entry in its parent has been fsynced by this process
        self._is_closed = False

    @property
    def url(self) -> str:
        return self._root

    def put(self, key: str, data: memoryview) -> None:
        path = self._path(key)
        self._write(path, data, lambda temporary: os.replace(temporary, path))

    def create(self, key: str, data: memoryview) -> None:
        path = self._path(key)
        self._write(path, data, lambda temporary: self._link(temporary, path))

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        path = self._path(key)
        view = _flat(into)
        try:
            try:
                return self._read(path, view, start)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                return self._read(path, view, start)  # the file was replaced on a network share: look it up anew
        except OSError as error:
            if error.errno == errno.ENOENT and os.path.islink(path):
                return 0  # the name is there, and listed; what it leads to is not
            raise from_os_error(error, "read", path) from error

    def list(self, prefix: str = "") -> list[Entry]:
        self._check_open()
        folder = os.path.join(self._root, check_prefix(prefix))
        if prefix == _REFRESHED_PREFIX:
            change(folder)
        try:
            self._check_root()
            if prefix and os.path.realpath(folder) != os.path.join(os.path.realpath(self._root), prefix[:-1]):
                check_no_link(os.path.join(self._root, prefix.partition("/")[0]))
                return []  # a link to a folder elsewhere: not in the root's own listing either
            return list(walk(folder, prefix))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise from_os_error(error, "list", error.filename or folder) from error

    def delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key, is_leftover=key.endswith("/" + LEFTOVER_NAME)) for key in keys]
        failed: list[OSError] = []
        for path in paths:
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass
            except OSError as error:
                failed.append(error)
        try:
            # Deepest first; durable before the call returns: a manifest must not outlive the shards deleted after it.
            for folder in sorted({os.path.dirname(path) for path in paths}, key=len, reverse=True):
                self._settle(folder)
        except OSError as error:
            failed.append(error)
        if failed:
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            raise from_os_error(failed[0], "delete" + more, failed[0].filename or self._root) from failed[0]

    def close(self) -> None:
        self._is_closed = True

    def renew(self, key: str) -> None:
        """What is read of `key` next is not what the page cache holds."""
        drop_cached(os.path.join(self._root, key))

    # ---- names

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error(self._root)

    def _check_root(self) -> None:
        """Raises where the root that this store has written to is gone or another folder: nothing is "empty" then."""
        known = self._durable.get(self._root)
        if known is not None:
            try:
                if os.stat(self._root).st_ino == known:
                    return
            except FileNotFoundError:
                pass
            raise StorageError(f"{self._root}: the folder was removed or unmounted while it was in use")

    def _path(self, key: str, *, is_leftover: bool = False) -> str:
        self._check_open()
        if f"/{RESERVED}" in f"/{check_key(key)}" and not is_leftover:
            raise ValueError(f"not a storage key: {key!r} ({RESERVED}… names are this store's own)")
        return os.path.join(self._root, key)

    # ---- writing

    def _write(self, path: str, data: memoryview, publish: Callable[[str], None]) -> None:
        view = _flat(data)
        attempts = 3
        for attempt in range(1, attempts + 1):
            try:
                self._write_once(path, view, publish)
                return
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                # A failed fsync says nothing about its file's bytes, not even when repeated: only a new file does.
                again = 2 if error.errno in _ANEW else attempts if error.errno in _SWEPT else 1
                if attempt >= again:
                    raise _write_error(error, path) from error

    def _write_once(self, path: str, view: memoryview, publish: Callable[[str], None]) -> None:
        folder = os.path.dirname(path)
        self._check_root()
        self._make_folder(folder)
        temporary = os.path.join(folder, f"{RESERVED}tmp-{secrets.token_hex(12)}")
        try:
            self._write_file(temporary, view)
            publish(temporary)
        finally:
            remove(temporary)
        self._fsync_folder(folder)

    def _write_file(self, temporary: str, view: memoryview) -> None:
        direct_bytes = self._direct_bytes(view, 0)
        descriptor = self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, direct=direct_bytes > 0)
        try:
            end = 0
            if direct_bytes and self._has_direct:
                end = self._transfer(lambda at, part: os.pwrite(descriptor, part, at), view[:direct_bytes], 0)
            if direct_bytes:
                clear_direct(descriptor)
            while end < len(view):
                end += os.pwrite(descriptor, view[end:], end)
            os.fsync(descriptor)
            if not direct_bytes and len(view) >= DIRECT_MIN_BYTES:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # clean now, and nobody reads it back soon
        finally:
            os.close(descriptor)

    def _link(self, temporary: str, path: str) -> None:
        if self._has_links:
            try:
                os.link(temporary, path)
                return
            except FileExistsError as error:
                raise from_os_error(error, "create", path) from error
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if os.path.lexists(path):
                    raise ObjectExistsError(f"{path}: cannot create: the name is taken") from error
                self._has_links = False
        self._rename_under_lock(temporary, path)

    def _rename_under_lock(self, temporary: str, path: str) -> None:
        folder, name = os.path.split(path)
        lock = os.path.join(folder, f"{RESERVED}lock-{name}")
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
                break
            except FileExistsError as error:
                if os.path.lexists(path):
                    raise ObjectExistsError(f"{path}: cannot create: the name is taken") from error
                if time.monotonic() > deadline:  # its holder needs microseconds, so it is dead or on a stalled share
                    raise StorageUnavailableError(
                        f"{path}: cannot create: {lock} was left by a crash; remove it if no other process writes here"
                    ) from error
                time.sleep(0.01)
        try:
            if os.path.lexists(path):
                raise ObjectExistsError(f"{path}: cannot create: the name is taken")
            os.rename(temporary, path)
        finally:
            remove(lock)

    # ---- direct I/O

    def _direct_bytes(self, view: memoryview, start: int) -> int:
        """How many leading bytes of `view` may go past the page cache: whole pages of page-aligned memory and file."""
        if not self._has_direct or len(view) < DIRECT_MIN_BYTES or start % PAGE_BYTES:
            return 0
        address: int = np.frombuffer(view, np.uint8).ctypes.data
        return 0 if address % PAGE_BYTES else len(view) // PAGE_BYTES * PAGE_BYTES

    def _open(self, path: str, flags: int, *, direct: bool) -> int:
        if direct and self._has_direct:
            try:
                return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT, 0o666)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                self._has_direct = False  # tmpfs and some network and FUSE file systems
                if flags & os.O_EXCL:
                    remove(path)  # the file is made before O_DIRECT is refused
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

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

    def _read(self, path: str, view: memoryview, start: int) -> int:
        direct_bytes = self._direct_bytes(view, start)
        # Not to wait for a writer, where a pipe is in the place of a file.
        descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK, direct=direct_bytes > 0)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) and (not stat.S_ISDIR(mode) or is_record(path)):
                return 0  # as it is listed
            done = 0
            if direct_bytes and self._has_direct:
                done = self._transfer(lambda at, part: os.preadv(descriptor, [part], at), view[:direct_bytes], start)
            if direct_bytes:
                clear_direct(descriptor)
            elif len(view) >= DIRECT_MIN_BYTES:
                os.posix_fadvise(descriptor, start, len(view), os.POSIX_FADV_SEQUENTIAL)
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], start + done)
                if count == 0:
                    break
                done += count
            return done
        finally:
            os.close(descriptor)

    # ---- folders

    def _make_folder(self, folder: str) -> None:
        """Makes `folder` and certain that its name, and each name up to the root's, survives a loss of power.

        Whoever made it: another worker may have, and not have fsynced yet.
        """
        try:
            if self._durable.get(folder) == os.stat(folder).st_ino:
                return
            is_new = False
        except FileNotFoundError:
            is_new = True
        parent = os.path.dirname(folder)
        if is_new:
            self._make_folder(parent)
            try:
                os.mkdir(folder)
            except FileExistsError:
                if not os.path.isdir(folder):
                    raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder should be", folder) from None
        elif folder.startswith(os.path.join(self._root, "")):
            self._make_folder(parent)
        elif folder != self._root:
            return  # above the root and not made by us
        try:
            fsync_path(parent)
        except PermissionError:
            if is_new:
                raise  # else: the root was there before us, in a folder that we may not open
        self._durable[folder] = os.stat(folder).st_ino

    def _fsync_folder(self, folder: str) -> None:
        try:
            fsync_path(folder)
        except FileNotFoundError as error:
            raise StorageError(f"{folder}: was removed while something was being written into it") from error

    def _settle(self, folder: str) -> None:
        """Makes deletions in `folder` durable; removes it and its parents where nothing but our debris is left."""
        while True:
            try:
                names = os.listdir(folder)
            except (FileNotFoundError, NotADirectoryError):
                return
            if folder == self._root or any(not name.startswith(RESERVED) for name in names):
                fsync_path(folder)
                return
            for name in names:  # debris; a writer that is alive after all writes anew
                remove(os.path.join(folder, name))
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    raise
                fsync_path(folder)
                return
            self._durable.pop(folder, None)
            folder = os.path.dirname(folder)


def _flat(data: memoryview) -> memoryview:
    return data.cast("B") if data.nbytes else memoryview(bytearray())


def _write_error(error: OSError, path: str) -> StorageError:
    if error.errno in _SWEPT:
        return StorageError(f"{path}: cannot write: its folder was removed again and again while it was written")
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return StorageError(f"{path}: cannot write: a folder is where a file should be, or the other way round")
    return from_os_error(error, "write", path)
