"""Does HDF5 live through a file? Asked of another process, since on a damaged file libhdf5 can crash the one that asks.

Seen with libhdf5 1.14: one changed byte in a table of texts, and reading an attribute is a segmentation fault. What
Python can catch is left to `keras_hdf5`; this is for what it cannot.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile

from ckptflow.errors import CorruptCheckpointError

logger = logging.getLogger("ckptflow")

WEIGHTS_MEMBER = "model.weights.h5"  # of a .keras
_PROGRAM = "import sys; from ckptflow.interop.keras_probe import read_all; read_all(sys.argv[1])"
_START_S, _BYTES_PER_S = 120, 2**22  # slower than any disk that a model is read from
_REMEMBERED = 16
_passed: list[tuple[str, int, int]] = []


def check_survives(path: str) -> None:
    """Raises `CorruptCheckpointError` where a process that reads all of a `.keras` or HDF5 file dies of it, or hangs.

    Once for a file as it is: the answer is remembered. Where no process can be started the file passes.
    """
    try:
        found = os.stat(path)
    except OSError:
        return  # whoever reads it says so
    key = (os.path.realpath(path), found.st_size, found.st_mtime_ns)
    if key in _passed or not sys.executable:
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, path],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_START_S + found.st_size / _BYTES_PER_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CorruptCheckpointError(f"{path} is damaged: HDF5 comes to no end with it") from error
    except OSError as error:
        logger.debug("%s is read without being tried before: %s", path, error)
        return
    if done.returncode < 0:
        raise CorruptCheckpointError(
            f"{path} is damaged: a process that reads it is killed by signal {-done.returncode}, inside of HDF5"
        )
    _passed.append(key)
    del _passed[:-_REMEMBERED]


def read_all(path: str) -> None:
    """Reads every attribute, and every value that HDF5 does not just copy. For a process of its own: it may die."""
    from ckptflow.errors import CkptflowError
    from ckptflow.interop import keras_hdf5

    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        if not is_zip:
            with keras_hdf5.opened(path, path) as found:
                keras_hdf5.touch(found, path, os.path.getsize(path))
            return
        with zipfile.ZipFile(path) as archive, keras_hdf5.member(archive, WEIGHTS_MEMBER, path) as inside:
            with keras_hdf5.opened(inside, path) as found:
                keras_hdf5.touch(found, path, archive.getinfo(WEIGHTS_MEMBER).file_size)
    except (CkptflowError, OSError, KeyError, zipfile.BadZipFile):
        pass  # the process that asks finds the same, and says it
