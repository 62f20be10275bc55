"""The folders of a root on a disk: made so that their names survive a loss of power, removed when they are empty."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager
from functools import partial

from ckptflow.errors import StorageError
from ckptflow.storage.local_calls import RESERVED, change, fsync_folder, looked_up_anew, opened_folder, remove

ANEW = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}  # worth one more try of a write, under another name


class DurableFolders:
    """The root and what is below it, named by their paths. Remembers what need not be made durable again."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._below = os.path.join(root, "")
        self._durable: dict[str, tuple[int, ...]] = {}  # folder -> the one whose name has been made durable here
        self._lost: dict[str, OSError] = {}  # folder -> why its name may be lost on a power failure yet

    def check_root(self) -> None:
        """Raises where the root that this process has written to is gone or another folder, or where there is a file in
        its place, or in that of a folder above it: nothing is "empty" then."""
        known = self._durable.get(self._root)
        if known is None:
            self._check_no_file()
        if known is not None:
            try:
                if self._identity(self._root) == known:
                    return
            except FileNotFoundError:
                pass
            raise StorageError(f"{self._root}: the folder was removed or unmounted while it was in use")

    def _check_no_file(self) -> None:
        path = self._root
        try:
            while True:
                try:
                    is_file = not stat.S_ISDIR(os.stat(path).st_mode)
                    break
                except NotADirectoryError:  # one of those above it is
                    path = os.path.dirname(path)
        except OSError:  # not there yet, or whatever the verb itself runs into
            return
        if is_file:
            raise StorageError(f"{path} is a file; a directory was expected")

    def make(self, folder: str) -> None:
        """Makes `folder` and certain that its name, and each name up to the root's, survives a loss of power.

        Whoever made it: another worker may have, and not have fsynced yet.
        """
        try:
            if self._durable.get(folder) == self._identity(folder):
                return
            is_new = False
        except FileNotFoundError:
            is_new = True
        parent, name = os.path.split(folder)
        if is_new:
            self._lost.pop(folder, None)
            self.make(parent)
            try:
                with self.opened(parent) as above:
                    os.mkdir(name, dir_fd=above)
            except FileExistsError:
                if not os.path.isdir(folder):
                    raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder should be", folder) from None
        elif folder.startswith(self._below):
            self.make(parent)
        elif folder != self._root:
            return  # above the root and not made by us
        try:
            with self.opened(parent, to_list=True) as above:
                if folder in self._lost and not change(above):
                    raise not_durable(self._lost[folder], folder)
                fsync_folder(above)
        except PermissionError:
            if is_new:
                raise  # else: the root was there before us, in a folder that we may not open
        except OSError as error:
            if error.errno not in ANEW:
                raise
            # The next fsync would say nothing of this name: it is made anew, or what it is in is changed again first.
            if not (is_new and self._unmake(folder)):
                self._lost[folder] = error
            raise not_durable(error, folder) from error
        self._lost.pop(folder, None)
        self._durable[folder] = self._identity(folder)

    def _unmake(self, folder: str) -> bool:
        parent, name = os.path.split(folder)
        try:
            with self.opened(parent) as above:
                os.rmdir(name, dir_fd=above)
        except OSError:
            return False
        return True

    def fsync(self, folder: str) -> None:
        """Makes the names in `folder` durable."""
        try:
            self._fsync(folder)
        except FileNotFoundError as error:
            raise StorageError(f"{folder}: was removed while something was being written into it") from error

    def settle(self, folder: str) -> None:
        """Makes deletions in `folder` durable; removes it and its parents where nothing but our debris is left."""
        while True:
            try:
                if not looked_up_anew(partial(self._sweep, folder)):
                    return
            except (FileNotFoundError, NotADirectoryError):
                return
            parent, name = os.path.split(folder)
            try:
                with self.opened(parent) as above:
                    os.rmdir(name, dir_fd=above)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    raise
                self._fsync(folder)
                return
            self._durable.pop(folder, None)
            folder = parent

    def _sweep(self, folder: str) -> bool:
        """Whether there was nothing but our debris in a folder, and it may go; else what was deleted is durable."""
        with self.opened(folder, to_list=True) as descriptor:
            if folder != self._root and _swept(descriptor):
                return True
            fsync_folder(descriptor)
            return False

    def _fsync(self, folder: str) -> None:
        with self.opened(folder, to_list=True) as descriptor:
            fsync_folder(descriptor)

    def opened(self, folder: str, *, to_list: bool = False) -> AbstractContextManager[int]:
        """A descriptor of the root, of one above it, or of one below it, to which no link leads."""
        if folder.startswith(self._below) and folder != self._below:
            return opened_folder(self._root, folder[len(self._below) :], to_list=to_list)
        return opened_folder(folder, to_list=to_list)

    def _identity(self, folder: str) -> tuple[int, ...]:
        """What tells a folder from another one of that path. Of the root also which file system it is of.

        Inode and device are those of the one before where another tmpfs is mounted in its place. A descriptor that is
        kept would tell as well, but nobody could unmount it.
        """
        status = os.stat(folder, follow_symlinks=not folder.startswith(self._below))
        file_system = (os.statvfs(folder).f_fsid,) if folder == self._root else ()
        return (status.st_dev, status.st_ino, *file_system)


def not_durable(error: OSError, path: str) -> StorageError:
    """The error for a new name whose folder could not be fsynced.

    An fsync that has failed says nothing when it is repeated, unless the folder has been changed again in between. So
    it is no `StorageUnavailableError`, which would be tried again.
    """
    return StorageError(f"{path}: exists, but may be lost on a power failure: its folder could not be written: {error}")


def _swept(folder: int) -> bool:
    """Whether there was nothing but our debris in a folder; then that is gone: a writer that is alive writes anew."""
    names = os.listdir(folder)
    if any(not name.startswith(RESERVED) for name in names):
        return False
    for name in names:
        remove(name, folder)
    return True
