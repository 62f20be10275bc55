"""Real worker processes on loopback under TF_CONFIG: started, heard, killed, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Job:
    """The worker processes of one life of the job; what they print goes line by line to `on_line(worker, line)`."""

    def __init__(
        self, command: Sequence[str], world_size: int, log_folder: str, on_line: Callable[[int, str], None]
    ) -> None:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(world_size)]
        os.makedirs(log_folder, exist_ok=True)
        self.log_folder = log_folder
        self.processes: list[subprocess.Popen[str]] = []
        self._listeners: list[threading.Thread] = []
        for worker in range(world_size):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": worker}}
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps(task),
                "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
                "CUDA_VISIBLE_DEVICES": "-1",
            }
            with open(self.log_of(worker), "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, *command],
                    env=environment,
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C goes to us alone, and we end them
                )
            self.processes.append(process)
            listener = threading.Thread(target=self._listen, args=(worker, process, on_line), daemon=True)
            listener.start()
            self._listeners.append(listener)

    @staticmethod
    def _listen(worker: int, process: subprocess.Popen[str], on_line: Callable[[int, str], None]) -> None:
        for line in process.stdout or ():
            on_line(worker, line.rstrip())

    def log_of(self, worker: int) -> str:
        """Where the worker's stderr goes."""
        return os.path.join(self.log_folder, f"worker-{worker}.log")

    def kill(self, worker: int) -> None:
        """kill -9, and waits until it is gone."""
        self.processes[worker].kill()
        self.processes[worker].wait()

    def stop(self, worker: int) -> None:
        """Stops it where it is, until `go_on`; returns once it stands still, or has ended."""
        process = self.processes[worker]
        process.send_signal(signal.SIGSTOP)
        if process.returncode is None:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self, worker: int) -> None:
        self.processes[worker].send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self, timeout_s: float) -> list[int]:
        """The workers' exit codes; whoever still runs after `timeout_s` is killed (-9), as a supervisor would."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.end()
        return [process.returncode for process in self.processes]

    def end(self) -> None:
        """Kills what still runs and reads what was printed to its end."""
        for worker, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(worker)
        for listener in self._listeners:
            listener.join(5)
        for process in self.processes:
            if process.stdout:
                process.stdout.close()


@contextlib.contextmanager
def running(
    command: Sequence[str], world_size: int, log_folder: str, on_line: Callable[[int, str], None]
) -> Iterator[Job]:
    """A job for the length of a `with` block; leaving it in any way leaves no process behind."""
    job = Job(command, world_size, log_folder, on_line)
    try:
        yield job
    finally:
        job.end()


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now."""
    with contextlib.ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]
