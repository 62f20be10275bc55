"""A process that has imported TensorFlow, Keras and ckptflow, has used none of them, and is forked for test processes.

An import takes 2.4 s and a fork 0.02 s. `tests.processes` starts one zygote in each process of pytest, and decides
which of the test processes must begin with an empty interpreter instead.

A request is one message: what the interpreter would be given, as JSON, and three descriptors: where its pid and, once
it has ended, its wait status are written, and its stdout and stderr. A child becomes the main program of this
interpreter, so that exceptions, sys.exit, atexit and flushing are Python's own. The zygote ends, and kills every child,
when the other end of its socket is closed: so it does when the process of pytest is killed.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import types

STATUS = struct.Struct("<i")
SHOW_STACKS = signal.SIGRTMAX  # a process prints where each of its threads is
_MAX_REQUEST_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """This process is killed when its parent ends, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        os._exit(1)


def serve(control: socket.socket) -> list[str]:
    """Forks what is asked for. Returns in a child alone: the command line that it is to run."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # pidfd: pid, where its status goes
    while True:
        for ready, _ in poll.poll():
            if ready != control.fileno():
                poll.unregister(ready)
                pid, status = children.pop(ready)
                os.write(status, STATUS.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
                os.close(status)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST_BYTES, 3)
            if not message:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            parent, child = os.getpid(), os.fork()
            if child == 0:
                die_with(parent)
                control.close()
                for pidfd, (_, status) in children.items():
                    os.close(pidfd)
                    os.close(status)
                return _become(json.loads(message), descriptors)
            status, *outputs = descriptors
            for output in outputs:
                os.close(output)
            os.write(status, STATUS.pack(child))
            pidfd = os.pidfd_open(child)
            children[pidfd] = child, status
            poll.register(pidfd, select.POLLIN)


def _become(request: dict[str, object], descriptors: list[int]) -> list[str]:
    """Environment, folder, outputs and random numbers of a process of its own."""
    import numpy as np

    args, env, cwd = request["args"], request["env"], request["cwd"]
    assert isinstance(args, list)
    assert isinstance(env, dict)
    assert isinstance(cwd, str)
    status, out, err = descriptors
    os.close(status)
    for descriptor, number in ((out, 1), (err, 2)):
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
    np.random.seed()  # Python's own random numbers are seeded anew at each fork
    return args


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
    import tensorflow as tf

    assert all((tf.data, tf.distribute, tf.saved_model, keras.layers))  # no lazy module is left
    gc.collect()
    gc.freeze()  # else each child's collector touches, and so copies, every page


def load_ckptflow() -> None:
    import ckptflow

    for name in ckptflow.__all__:
        getattr(ckptflow, name)
    gc.collect()
    gc.freeze()


def main(control: socket.socket, stock_control: socket.socket) -> None:
    """Is the zygote, and from the fork on that of stock processes, which do not know ckptflow."""
    load_tensorflow()
    if os.fork() == 0:
        control.close()
        run(serve(stock_control))
        return
    stock_control.close()
    load_ckptflow()
    run(serve(control))


if __name__ == "__main__":
    main(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
