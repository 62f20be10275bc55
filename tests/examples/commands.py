"""Commands as a cluster's own scripts give them, started from the repository's folder and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.examples.lives import EXAMPLES
from tests.ports import free_ports
from tests.processes import Worker, environment, zygote


@contextlib.contextmanager
def started(command: Sequence[str], env: Mapping[str, str], logs: Path) -> Iterator[Worker]:
    """One process, in a group of its own that ends with the block; "python" stands in for the one that runs this."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{time.monotonic_ns()}.log"
    path = os.pathsep.join([str(zygote().stand_ins), str(Path(sys.executable).parent), os.environ["PATH"]])
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment({"PATH": path, **env}),
            cwd=EXAMPLES.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Worker(0, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def two_ports() -> int:
    """The first of two free ports that follow one another."""
    return free_ports(1, also=1)[0]
