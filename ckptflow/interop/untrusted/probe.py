"""A foreign file is read in a process of its own first: what its parser dies of, or takes without end, it does there.

Parsers in C++ abort, or are killed, where Python would raise: libhdf5 on one changed byte in a table of texts,
TensorFlow's reader of checkpoints on a length. The limits are those of `confine`, as large as `budget` says. Only a
file that was read there to the end is read again by the one who asked. An error of ours is raised here as it was there:
this process might go on where that one stopped, and without limits.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, BinaryIO

import msgspec

from ckptflow import errors
from ckptflow.decoding import decode_json
from ckptflow.errors import CkptflowError, CorruptCheckpointError, StorageError, StorageUnavailableError
from ckptflow.format.failure import Failure
from ckptflow.interop.untrusted import confine
from ckptflow.interop.untrusted.budget import MEMORY_VARIABLE, TIME_VARIABLE, parser_bytes, parser_s
from ckptflow.state.limits import VariablesRefusedError
from ckptflow.storage.faults import from_os_error

logger = logging.getLogger("ckptflow")

PROGRAM = (
    "import json, sys; request = json.load(open(0, 'rb', closefd=False)); sys.path[:] = request['path']; "
    "from ckptflow.interop.untrusted import probe; probe.run(request)"
)
BUNDLE = "bundle"  # what is done with a checkpoint of TensorFlow's, alone or in a SavedModel
UNTRIED = "untried"  # what a function returns that has not looked at the file: it lacks what only this program has
START_S = 300  # TensorFlow from a network's disk
_READY = b"\n"
_MAX_REPLY_BYTES = 2**16
_LONGEST_POLL_S = 3600.0  # at a time: the kernel takes no number of days
_OF_MEMORY = ("ResourceExhausted", "OOM when allocating", "Unable to allocate", "start new thread")
_REMEMBERED = 256
_passed: list[tuple[str, frozenset[tuple[str | int, ...]]]] = []  # what was done, with which files together
_USUAL = (StopIteration, AttributeError, LookupError, TypeError, ImportError)  # raised all the time
_SHOWN = 300
# The interpreter is not there, may not be started, or is none: never so for what a file holds.
_NO_PROCESS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EFBIG)  # what `confine` lets nobody do
_is_probe = False
_ran_out = False


class _Reply(msgspec.Struct, frozen=True):
    """How it went: "read" to the end; an error of ours ("told"), of this class in these words; out of "memory";
    "failed", by an error of another kind; or `UNTRIED`."""

    outcome: str
    text: str = ""
    kind: str = ""


def check(
    function: str,
    path: str,
    files: Sequence[str],
    *,
    what: str = "",
    size_bytes: int | None = None,
    memory_bytes: int | None = None,
    scratch_bytes: int = 0,
    imports: Sequence[str] = (),
    more_imports: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Raises `CorruptCheckpointError` where a process in which `function` ("module:name") reads `path` dies of it,
    or takes more memory or time than is in proportion to `files`; and whatever error of ours the function raises there.

    Once for the files as they are, all of them together: the answer is remembered, for `what` that function does with
    them and its `arguments`. `size_bytes`:
    what they are measured by, where that is not their own length. `memory_bytes`: what it may take, where that is not
    what `parser_bytes` says. `scratch_bytes`: how long the temporary files are
    that it may write. `imports` are imported before, without limits; they are the user's, as `more_imports` are, of
    which some may not load there. `arguments` go to the
    function by name. Inside of a probe nothing is done. Where a Python of one's own cannot be had at all, or does not
    come so far that it would read `path`, the files pass, and that is logged; so they do where the function returns
    `UNTRIED`. Raises a `StorageError` where this
    machine has no room for one more process, or its request, now.
    """
    known = frozenset(each for each in map(_of_now, files) if each is not None)
    asked = json.dumps([what or function, arguments or {}])
    doing = hashlib.blake2b(asked.encode()).hexdigest()
    has_passed = any(done == doing and known <= together for done, together in _passed)
    if _is_probe or not known or sys.platform != "linux" or not sys.executable or has_passed:
        return
    size_bytes = sum(int(each[1]) for each in known) if size_bytes is None else size_bytes
    memory_bytes = parser_bytes(size_bytes) if memory_bytes is None else memory_bytes
    time_s = parser_s(size_bytes)
    try:
        with _scratch(scratch_bytes) as scratch:
            request = {
                "path": [os.path.abspath(each) for each in sys.path],
                "function": function,
                "arguments": [path, dict(arguments or {})],
                "imports": list(imports),
                "more_imports": list(more_imports),
                "limits": [memory_bytes, time_s, scratch_bytes],
                "scratch": scratch,
            }
            reply, code = _ask(request, time_s)
    except _NotStartedError as error:
        logger.warning("%s is read without another process having read it first: %s", path, str(error))
        return
    except OSError as error:
        raise from_os_error(error, "start a process that reads it first", path) from error
    if reply is not None and reply.outcome == "told":
        raise Failure(kind=reply.kind, message=reply.text).rebuild() or CorruptCheckpointError(reply.text)
    if reply is None or reply.outcome == "memory":
        why, variable = _why(reply, code, memory_bytes, time_s)
        raise CorruptCheckpointError(
            f"{path} is damaged, or made to do harm: a process that reads it {why}. If the file is trusted, allow "
            f"more by the environment variable {variable}"
        )
    if reply.outcome == UNTRIED:
        logger.info("%s needs what this program alone has: no other process has read it first", path)
        return
    if reply.outcome != "read":
        raise CorruptCheckpointError(
            f"{path} is damaged, or made to do harm: a process that reads it fails with {reply.text}. It is not read "
            "without one"
        )
    _passed.append((doing, known))
    del _passed[:-_REMEMBERED]


def _of_now(path: str) -> tuple[str | int, ...] | None:
    """A file as it is now, by its path, which says what it is read as; None where there is none: whoever reads it says
    so."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return os.path.abspath(path), found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


@contextlib.contextmanager
def _scratch(size_bytes: int) -> Iterator[str | None]:
    if not size_bytes:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ckptflow-probe-") as folder:
        yield folder


def _why(reply: _Reply | None, code: int | None, memory_bytes: int, time_s: int) -> tuple[str, str]:
    if code is None or code == -signal.SIGXCPU:
        return f"comes to no end within {time_s:,} s", TIME_VARIABLE
    if reply is not None:
        return f"takes more than {memory_bytes:,} bytes of memory", MEMORY_VARIABLE
    how = f"is killed by signal {-code}" if code < 0 else f"ends with exit code {code}"
    return f"with at most {memory_bytes:,} bytes of memory {how}", MEMORY_VARIABLE


class _NotStartedError(Exception):
    """There is no process that would read a file: for reasons that are no file's, of which it had not read anything."""


def _ask(request: Mapping[str, Any], time_s: int) -> tuple[_Reply | None, int | None]:
    """The reply, None where none came, and the exit code, None where the time was over.

    The request goes as a file: the kernel bounds how long an argument is, and what is asked may hold names of others.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    readable, writable = os.pipe()
    with open(readable, "rb", buffering=0) as replies:
        with (
            open(writable, "wb", buffering=0) as out,
            tempfile.TemporaryDirectory(prefix="ckptflow-asked-") as folder,
            open(os.path.join(folder, "request"), "x+b") as asked,
        ):
            asked.write(json.dumps(request).encode())
            asked.seek(0)
            try:
                process = start(asked, environment, out)
            except OSError as error:
                if error.errno in _NO_PROCESS:
                    raise _NotStartedError(f"{sys.executable} cannot be started ({error.strerror})") from error
                raise
        try:
            ready = _line(replies, time.monotonic() + START_S)
            if ready != _READY:
                code = process.wait(START_S) if ready == b"" else None  # else it said something, or its time is over
                if ready is None or code == -signal.SIGKILL:  # this machine is too busy, or has no room
                    how = f"took more than {START_S} s" if ready is None else "was killed"
                    raise StorageUnavailableError(f"the process that was to read it first {how}: try again")
                raise _NotStartedError(f"{sys.executable} ended ({code}) or said {ready!r} before it came to that")
            text = _line(replies, time.monotonic() + time_s)
            if text is None:
                return None, None
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    try:
        return decode_json(text, _Reply), code
    except msgspec.MsgspecError:
        return None, code


def start(request: BinaryIO, environment: Mapping[str, str], out: BinaryIO) -> Any:
    """Starts the process; its request is its stdin. Not from the current folder: a file there may be named like a
    module of Python's."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        env=environment,
        stdin=request,
        stdout=out,
        stderr=subprocess.DEVNULL,
    )


def _line(pipe: Any, deadline: float) -> bytes | None:
    """One line, or what came before the end of it; None where the time was over."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    line = b""
    while not line.endswith(b"\n") and len(line) <= _MAX_REPLY_BYTES:
        left_s = min(deadline - time.monotonic(), _LONGEST_POLL_S)
        if not poll.poll(max(0.0, left_s) * 1000):
            if time.monotonic() >= deadline:
                return None
            continue
        data = os.read(pipe.fileno(), 1 if not line else _MAX_REPLY_BYTES)
        if not data:
            break
        line += data
    return line


# In the process itself


def run(request: Mapping[str, Any]) -> None:
    """Does what is asked for and says how it went. For a process of its own, which it ends."""
    global _is_probe
    _is_probe = True
    confine.end_with_parent()
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    module, _, name = request["function"].partition(":")
    for each in (*request["imports"], module):
        importlib.import_module(each)
    for each in request["more_imports"]:
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(each)
    confine.allow_files(request["scratch"])
    if "tensorflow" in sys.modules:
        _start_tensorflow()
    confine.limit(*request["limits"])
    os.write(out, _READY)
    path, arguments = request["arguments"]
    os.write(out, msgspec.json.encode(_outcome(getattr(sys.modules[module], name), path, arguments)) + b"\n")
    os._exit(0)


def _start_tensorflow() -> None:
    """Its threads, what they take, and what Keras loads with it are no file's."""
    import keras  # noqa: F401 - loaded
    import tensorflow as tf

    with contextlib.suppress(ImportError):
        import tf_keras  # noqa: F401

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.constant(0) + tf.constant(0)


def _outcome(function: Any, path: str, arguments: Mapping[str, Any]) -> _Reply:
    _note_failures()
    try:
        found = function(path, **arguments)
    except BaseException as error:
        if isinstance(error, VariablesRefusedError):  # whatever came of that
            return _told(error)
        chain = _chain(error)
        if any(_is_of_memory(type(each), each) for each in chain):
            return _Reply("memory")
        if isinstance(error, CorruptCheckpointError):
            return _told(error)
        if _ran_out:
            return _Reply("memory")
        is_refused = any(isinstance(each, OSError) and each.errno in _REFUSED for each in chain)
        # A file that cannot be read is not damaged; one that wants what is forbidden here may be made to do harm.
        if isinstance(error, StorageError) or (isinstance(error, CkptflowError) and not is_refused):
            return _told(error)
        return _Reply("failed", f"{type(error).__name__}: {str(error)[:_SHOWN]}")
    return _Reply("memory" if _ran_out else UNTRIED if found == UNTRIED else "read")


def _told(error: CkptflowError) -> _Reply:
    """The error by its text and the nearest class that is public."""
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in errors.__all__)
    return _Reply("told", str(error)[: _MAX_REPLY_BYTES // 8], kind)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, and those that were turned into it on the way."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_of_memory(kind: type, error: Any) -> bool:
    if issubclass(kind, MemoryError):
        return True
    said = f"{kind.__name__} {str(error)[:_MAX_REPLY_BYTES]}"
    return any(each in said for each in _OF_MEMORY)


def _note_failures() -> None:
    """From now on it is noted where memory was refused, whoever swallows that: Keras has bare excepts, and tries
    another way, or leaves out what failed. Without limits the first way would be taken."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:  # before Python 3.12
        threading.settrace(_trace)
        sys.settrace(_trace)
        return
    raised = monitoring.events.RAISE
    monitoring.use_tool_id(monitoring.DEBUGGER_ID, "ckptflow")
    monitoring.register_callback(monitoring.DEBUGGER_ID, raised, lambda code, at, error: _note(type(error), error))
    monitoring.set_events(monitoring.DEBUGGER_ID, raised)


def _trace(frame: FrameType, event: str, argument: Any) -> Any:
    if event == "exception":
        _note(*argument[:2])
    else:
        frame.f_trace_lines = False
    return _trace


def _note(kind: type, error: Any) -> None:
    global _ran_out
    if not _ran_out and not issubclass(kind, _USUAL) and _is_of_memory(kind, error):
        _ran_out = True
