"""A process that has imported TensorFlow, Keras and ckptflow, has used none of them, and is forked for test processes.

An import takes 2.4 s and a fork 0.02 s. `tests.processes` starts one zygote in each process of pytest, and decides
which of the test processes must begin with an empty interpreter instead.

A request is one message: what the interpreter would be given, as JSON, and descriptors: where its pid and, once it has
ended, its wait status are written, its stdout and stderr, and its stdin, where it has one. A child becomes the main
program of this interpreter, so that exceptions, sys.exit, atexit and flushing are Python's own. At its end it takes
apart what it has made and loaded, and leaves the frameworks to the kernel, as they were before the fork: object by
object that takes five times as long as the fork. The zygote ends, and kills every child, when the other end of its
socket is closed: so it does when the process of pytest is killed. A child of a connection made later
(`tests.stand_in`) is killed when that is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import io
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from tests.stand_in import STATUS, read_at_start

SHOW_STACKS = signal.SIGRTMAX  # a process prints where each of its threads is
PROBE = "CKPTFLOW_TEST_PROBE"  # the command that starts probes, where they are to be forked, too
_MAX_REQUEST_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
# What is taken apart at a process's end also where it was loaded before the fork: ours, and what ends TensorFlow.
_TAKEN_APART = re.compile(r"(ckptflow|tests)(\.|$)|tensorflow\.python\.eager\.context$|__main__$|sys$|builtins$")


def die_with(parent: int) -> None:
    """This process is killed when its parent ends, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        os._exit(1)


@dataclass(frozen=True)
class _Child:
    pid: int
    status: int  # where its status goes
    connection: int  # who has asked for it


def serve(
    control: socket.socket, listener: socket.socket | None = None, *, load: Callable[[], None] = lambda: None
) -> list[str]:
    """Forks what is asked for, after a `load` at the first. Returns in a child alone: what that is to run."""
    is_loaded = False
    connections = {control.fileno(): control}
    children: dict[int, _Child] = {}  # by pidfd
    poll = select.poll()
    for each in (control, listener):
        if each is not None:
            poll.register(each, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                poll.unregister(ready)
                ended = children.pop(ready)
                with contextlib.suppress(BrokenPipeError):  # whoever waited has ended
                    os.write(ended.status, STATUS.pack(os.waitstatus_to_exitcode(os.waitpid(ended.pid, 0)[1])))
                os.close(ended.status)
                os.close(ready)
                continue
            if listener is not None and ready == listener.fileno():
                connection = listener.accept()[0]
                connections[connection.fileno()] = connection
                poll.register(connection, select.POLLIN)
                continue
            message, descriptors, _, _ = socket.recv_fds(connections[ready], _MAX_REQUEST_BYTES, 4)
            if not message:
                for running in children.values():
                    if ready in (control.fileno(), running.connection):
                        os.kill(running.pid, signal.SIGKILL)
                if ready == control.fileno():
                    os._exit(0)
                poll.unregister(ready)
                connections.pop(ready).close()
                continue
            if not is_loaded:
                load()
                is_loaded = True
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                die_with(parent)
                for each in (listener, *connections.values()):
                    if each is not None:
                        each.close()
                for pidfd, other in children.items():
                    os.close(pidfd)
                    os.close(other.status)
                return _become(json.loads(message), descriptors)
            status, *others = descriptors
            for other_descriptor in others:
                os.close(other_descriptor)
            with contextlib.suppress(BrokenPipeError):
                os.write(status, STATUS.pack(pid))
            pidfd = os.pidfd_open(pid)
            children[pidfd] = _Child(pid, status, ready)
            poll.register(pidfd, select.POLLIN)


def _become(request: dict[str, object], descriptors: list[int]) -> list[str]:
    """Environment, folder, outputs and random numbers of a process of its own."""
    import numpy as np

    args, env, cwd = request["args"], request["env"], request["cwd"]
    assert isinstance(args, list)
    assert isinstance(env, dict)
    assert isinstance(cwd, str)
    status, *streams = descriptors
    os.close(status)
    for descriptor, number in zip(streams, (1, 2, 0), strict=False):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # Unbuffered, `print` writes its text and the end of the line one by one, and what another stream writes to the same
    # file may come between them.
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, write_through=False)
    faulthandler.register(SHOW_STACKS, all_threads=True)
    if env.get(PROBE) and "ckptflow" in sys.modules:
        _fork_probes(env[PROBE])
    np.random.seed()  # Python's own random numbers are seeded anew at each fork
    return args


def _fork_probes(stand_in: str) -> None:
    """A probe of this process is started by that command."""
    from ckptflow.interop.untrusted import probe

    def start(request: BinaryIO, environment: Mapping[str, str], out: BinaryIO) -> subprocess.Popen[bytes]:
        fixed = read_at_start(environment)
        own = {name: value for name, value in environment.items() if name not in fixed} | read_at_start(os.environ)
        command = [stand_in, "-c", probe.PROGRAM]
        return subprocess.Popen(command, env=own, stdin=request, stdout=out, stderr=subprocess.DEVNULL)

    probe.start = start


def run(args: list[str]) -> None:
    """What `python ARGS` runs, as the main module."""
    if args[0] == "-m":
        sys.argv, sys.path[0] = args[1:], os.getcwd()
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    if args[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *args[2:]], ""
        program = compile(args[1], "<string>", "exec")
    else:
        sys.argv, sys.path[0] = args, os.path.dirname(os.path.abspath(args[0]))
        main.__file__ = args[0]
        with open(args[0], "rb") as file:
            program = compile(file.read(), args[0], "exec")
    sys.modules["__main__"] = main
    exec(program, main.__dict__)


def load_tensorflow() -> None:
    import keras
    import sklearn.datasets  # for the examples
    import tensorflow as tf
    from tensorflow.python.eager.context import Context

    # Of ten seconds, which a busy machine may keep a process from running: then all of its cluster fail.
    Context.configure_coordination_service = functools.partialmethod(
        Context.configure_coordination_service, heartbeat_timeout_in_ms=30_000
    )
    assert sklearn
    assert all((tf.data, tf.distribute, tf.saved_model, keras.layers))  # no lazy module is left
    gc.collect()
    gc.freeze()  # else each child's collector touches, and so copies, every page


def load_ckptflow() -> None:
    import ckptflow

    for name in ckptflow.__all__:
        getattr(ckptflow, name)
    gc.collect()
    gc.freeze()


def load_what_probes_load() -> None:
    import tf_keras

    from ckptflow.interop.tensorflow import saved_model
    from ckptflow.interop.untrusted import hdf5_probe as keras_probe
    from ckptflow.interop.untrusted import model_probe

    assert all((tf_keras.layers, keras_probe, model_probe, saved_model))
    gc.collect()
    gc.freeze()


def leave_the_frameworks() -> None:
    """Called last at a process's end, before modules are taken apart."""
    left = {name: sys.modules.pop(name, None) for name in _before_the_fork if not _TAKEN_APART.match(name)}
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(left))


_before_the_fork: list[str] = []


def main(
    control: socket.socket,
    stock_control: socket.socket,
    probe_control: socket.socket,
    listener: socket.socket,
    probe_listener: socket.socket,
) -> None:
    """Is the zygote, and from the forks on that of stock processes, which do not know ckptflow, and that of probes."""
    atexit.register(leave_the_frameworks)  # before all that is imported registers
    load_tensorflow()
    if os.fork() == 0:
        for other in (control, probe_control, listener, probe_listener):
            other.close()
        _before_the_fork.extend(sys.modules)
        run(serve(stock_control))
        return
    load_ckptflow()
    _before_the_fork.extend(sys.modules)
    if os.fork() == 0:
        for other in (control, stock_control, listener):
            other.close()
        run(serve(probe_control, probe_listener, load=load_what_probes_load))
        return
    for other in (stock_control, probe_control, probe_listener):
        other.close()
    run(serve(control, listener))


if __name__ == "__main__":
    main(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
