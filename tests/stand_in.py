"""A command that stands in for `python` in scripts of others: what it is to run is forked from the zygote.

`tests.forked` writes it, as `python` and some commands, to a folder for the front of PATH. The process that it asks for
has its environment, folder and descriptors, gets its signals, and is killed when it is; it ends as that ends. Where the
interpreter was given options, or something else that is read at an import, it becomes the real one instead.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

STATUS = struct.Struct("<i")  # a pid, then a wait status, as the zygote writes them
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# What TensorFlow, Keras, Python and the libraries under them read when they are imported; not what they read later.
_READ_AT_START = re.compile(
    r"(?!TF_CONFIG$|TF_NUM_INTRAOP_THREADS$)(TF_|TF2_|XLA_|KERAS_|PYTHON.|LD_|OMP_|OPENBLAS_|MALLOC_)"
)


def read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if _READ_AT_START.match(name)}


def main(real: str, zygote: str, its_env: Mapping[str, str], args: Sequence[str]) -> None:
    """`real ARGS`, forked by the one that listens at `zygote` and was started in `its_env`."""
    begins = args[0] if args else "-"
    if (begins.startswith("-") and begins not in ("-c", "-m")) or read_at_start(os.environ) != its_env:
        os.execv(real, [real, *args])
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    readable, writable = os.pipe()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # closed when this process ends
    connection.connect(zygote)
    request = json.dumps({"args": args, "env": dict(os.environ), "cwd": os.getcwd()})
    socket.send_fds(connection, [request.encode()], [writable, 1, 2, 0])
    os.close(writable)
    (pid,) = STATUS.unpack(os.read(readable, STATUS.size))
    for number in _PASSED_ON:
        signal.signal(number, lambda got, _: os.kill(pid, got))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    (code,) = STATUS.unpack(os.read(readable, STATUS.size))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
