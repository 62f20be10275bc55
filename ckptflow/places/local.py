"""Whole files and folders on this disk: staged beside their place, then published by a rename."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ckptflow.errors import StorageError, UsageError
from ckptflow.places.names import exists, in_steps, is_in_group, not_found
from ckptflow.printable import printable
from ckptflow.storage.faults import from_os_error, os_errors
from ckptflow.storage.local_calls import RESERVED, fsync_path
from ckptflow.storage.local_names import NO_LINKS

_NAME_CHARACTERS = 40  # of the name that a staging folder shows
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class LocalPlace:
    """One path on this disk: what is there, or what shall be."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(os.path.expanduser(path)) if path else ""
        self._parent, self.name = os.path.split(self._path)
        self.parts = tuple(self._path.split(os.sep))

    def close(self) -> None:
        pass

    def find(self) -> str:
        """The path itself, where a file, a folder or a prefix group is. Raises `ObjectNotFoundError`.

        `UsageError` for what is neither: to open a pipe is to wait for who writes to it.
        """
        if not self._path or not (os.path.exists(self._path) or os.path.isfile(self._path + ".index")):
            raise not_found(self._path or "the empty path")
        if os.path.exists(self._path) and not (os.path.isfile(self._path) or os.path.isdir(self._path)):
            raise _neither(self._path)
        return self._path

    def all(self) -> dict[str, int]:
        """Every file that is here, in whichever form: its path, beginning with this one's name, and its size."""
        found: dict[str, int] = {}
        try:
            if _is_folder(self._path):
                for above, _, names in os.walk(self._path, onerror=_raise):
                    paths = (os.path.join(above, name) for name in names)
                    found |= {os.path.relpath(path, self._parent): os.lstat(path).st_size for path in paths}
            elif os.path.lexists(self._path):
                status = os.lstat(self._path)
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                    raise _neither(self._path)
                found[self.name] = status.st_size
            found |= {name: os.lstat(os.path.join(self._parent, name)).st_size for name in self._group()}
        except OSError as error:
            raise from_os_error(error, "look for", error.filename or self._path) from error
        return found

    def _group(self) -> list[str]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._parent) as entries:
            return [entry.name for entry in entries if is_in_group(entry.name, self.name)]
        return []

    @contextmanager
    def staging(self) -> Iterator[str]:
        """A hidden folder beside this path, removed at the end; so are parents that had to be made and stay empty."""
        made: list[str] = []
        folder = ""
        try:
            with os_errors("write", self._path):
                made = _make_parents(self._parent)
                folder = self._hidden("staging")
            yield folder
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            for parent in reversed(made):
                with suppress(OSError):  # something is in it
                    os.rmdir(parent)

    def _hidden(self, why: str) -> str:
        return tempfile.mkdtemp(prefix=f"{RESERVED}{why}-{self.name[:_NAME_CHARACTERS]}-", dir=self._parent)

    def publish(self, folder: str, sizes: Iterable[str], *, overwrite: bool) -> None:
        """Moves what is in `folder` here: durable before it has its name, and its name durable when this returns.

        Raises `ObjectExistsError` if something is here, unless it may be replaced.
        """
        steps = in_steps({key.split(os.sep)[0] for key in sizes})
        names = [name for step in steps for name in step]
        try:
            _fsync_all(folder)
            if overwrite:
                self._replace(folder, names)
            else:
                if self.all():
                    raise exists(self._path)
                self._move_all([(os.path.join(folder, name), os.path.join(self._parent, name)) for name in names])
        except FileExistsError as error:
            raise exists(self._path) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            mapped = from_os_error(error, "write", self._path)
            for note in getattr(error, "__notes__", ()):
                mapped.add_note(note)
            raise mapped from error

    def _replace(self, folder: str, names: Sequence[str]) -> None:
        new = os.path.join(folder, self.name)
        if names == [self.name] and self._replace_one(new):
            try:
                fsync_path(self._parent)  # before what was exchanged goes with the staging folder
            except BaseException:
                if os.path.lexists(new):  # the old
                    _exchange(new, self._path)
                raise
            return
        # The old aside, what makes it readable first; the new in, that last.
        old = sorted(self._group(), reverse=True) if self.name not in names else [self.name]
        aside = self._hidden("replaced")
        try:
            self._move_all(
                [(os.path.join(self._parent, name), os.path.join(aside, name)) for name in old]
                + [(os.path.join(folder, name), os.path.join(self._parent, name)) for name in names]
            )
        except BaseException as error:
            try:
                os.rmdir(aside)
            except OSError:  # not all of it is back in its place
                error.add_note(f"what was at {printable(self._path)} before is kept in {printable(aside)}")
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _move_all(self, moves: Sequence[tuple[str, str]]) -> None:
        """Renames each to a name where nothing is, in order, durably; after an error everything is where it was."""
        begun: list[tuple[str, str]] = []
        try:
            for source, target in moves:
                begun.append((source, target))
                _move_to_new(source, target)
            fsync_path(self._parent)
        except BaseException:
            for source, target in reversed(begun):
                _move_back(source, target)
            raise

    def _replace_one(self, new: str) -> bool:
        """Puts a new file or folder in the old one's place in one step; False if that cannot be."""
        is_here = os.path.lexists(self._path)
        if is_here and (_is_folder(self._path) or _is_folder(new)):
            return _exchange(new, self._path)
        os.replace(new, self._path)
        return True


def _move_back(source: str, target: str) -> None:
    """Undoes a move as far as it was done, which only a look can tell after Ctrl-C or a lost reply of a share.

    The last name of a file is never removed.
    """
    if not os.path.lexists(source):
        os.rename(target, source)
    elif os.path.lexists(target) and os.path.samestat(os.lstat(source), os.lstat(target)):
        os.unlink(target)


def _move_to_new(source: str, target: str) -> None:
    """Renames. Raises FileExistsError if something is at `target`, but for a folder without anything in it."""
    if _is_folder(source):
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
            raise
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(source, target)
        return
    with suppress(FileNotFoundError):  # a network share has done it, and was asked again
        os.unlink(source)


def _exchange(one: str, other: str) -> bool:
    """Swaps two names in one step; False if the file system or the C library cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _make_parents(folder: str) -> list[str]:
    """Makes a folder and those above it, durably; returns those that were not there, topmost first."""
    missing: list[str] = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    made: list[str] = []
    try:
        for path in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(path)
                made.append(path)
            if not os.path.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            fsync_path(os.path.dirname(path))
    except BaseException:
        for path in reversed(made):
            os.rmdir(path)
        raise
    return made


def _fsync_all(folder: str) -> None:
    for above, _, files in os.walk(folder, onerror=_raise):
        for name in files:
            descriptor = os.open(os.path.join(above, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_path(above)


def _neither(path: str) -> UsageError:
    return UsageError(f"{path} is neither a file nor a folder; name another place")


def _raise(error: OSError) -> None:
    raise error
