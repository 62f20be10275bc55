"""Real worker processes under TF_CONFIG on loopback, started, watched and always ended by their own process id.

results = run_workers("tests.state.workers:exchange", 2, env={"CASE": "rows"}, timeout_s=60)
with start_workers("/path/script.py", 3, folder=tmp_path) as workers:   # handles: kill one, wait for the others
    workers[1].kill()
done = run_python("-c", "import ckptflow", timeout_s=60)                 # one process, without TF_CONFIG

They are forked from a process that has imported TensorFlow, Keras and ckptflow (`tests.zygote`). One begins with an
empty interpreter instead where its environment has something else that is read at an import, and where it is asked for,
`fresh=True`: where what is tried is an import, a start, or how long or how large a process is from its beginning.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.forked import ROOT, Forked, Process, Zygote
from tests.ports import free_ports
from tests.stand_in import read_at_start
from tests.waiting import HANG_S
from tests.zygote import PROBE, SHOW_STACKS

_RUN_FUNCTION = "import importlib, sys; m, f = sys.argv.pop(1).split(':'); getattr(importlib.import_module(m), f)()"

_STACKS_S = 30.0

_zygotes: list[Zygote] = []
_zygote_lock = threading.Lock()


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """A test process's: quiet, without GPUs, with this repository on the path; and `env`."""
    return {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **env,
    }


def zygote() -> Zygote:
    """That of this process, which is started when it is asked for first."""
    with _zygote_lock:
        if not _zygotes:
            _zygotes.append(Zygote(environment({})))
    return _zygotes[0]


def start_python(
    args: Sequence[str],
    env: Mapping[str, str],
    out: IO[bytes],
    err: IO[bytes],
    *,
    cwd: Path = ROOT,
    fresh: bool = False,
    kind: str = "ckptflow",
    stdin: IO[bytes] | None = None,
) -> Process:
    """Starts `python ARGS`, where `args` begins with -c, -m or a script, with `environment(env)`.

    In a process of the `kind` "stock" TensorFlow and Keras have been imported, and ckptflow has not; in a "probe" all
    has that a probe of ckptflow's imports. The probes of a forked process are forked, too, unless `env` has an empty
    `PROBE`.
    """
    full = environment(env)
    if not fresh and read_at_start(full) == read_at_start(environment({})):
        full.setdefault(PROBE, str(zygote().stand_ins / "probe"))
        streams = [each.fileno() for each in (out, err, stdin) if each is not None]
        return zygote().fork(args, full, cwd, streams, kind)
    return subprocess.Popen(
        [sys.executable, *args], env=full, cwd=cwd, stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=err
    )


def run_python(
    *args: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout_s: float = HANG_S,
    fresh: bool = False,
    kind: str = "ckptflow",
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGS` to its end; its stdout and stderr are texts. TimeoutError where it does not end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start_python(args, env or {}, out, err, cwd=cwd, fresh=fresh, kind=kind)
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if code is None:
        raise TimeoutError(f"python {args[:2]} still runs after {timeout_s} s:\n{texts[0]}{texts[1]}")
    return subprocess.CompletedProcess(["python", *args], code, *texts)


@dataclass
class Worker:
    """One running worker process; its output goes to a file, so that no pipe can fill up and block it."""

    index: int
    process: Process
    log: Path

    def output(self) -> str:
        """What it has printed so far, stdout and stderr together."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL to this process alone; returns once it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def send(self, number: int) -> None:
        """Sends a signal (SIGTERM, SIGSTOP, ...) to this process."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """The exit code; raises TimeoutError, with the output so far and where it is, when it has not ended by then."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            if isinstance(self.process, Forked):
                self.process.send_signal(SHOW_STACKS)
                deadline = time.monotonic() + _STACKS_S  # one that is stopped prints none
                while "Current thread" not in self.output() and time.monotonic() < deadline:
                    time.sleep(0.02)
                time.sleep(0.5)  # nothing tells that it has printed all of the last one
            raise TimeoutError(f"worker {self.index} still runs after {timeout_s} s:\n{self.output()}") from None

    def wait_for_output(self, text: str, timeout_s: float) -> None:
        """Returns once `text` is in the output; raises when the process ends, or the time is over, without it."""
        deadline = time.monotonic() + timeout_s
        while text not in self.output():
            if self.process.poll() is not None and text not in self.output():
                raise RuntimeError(f"worker {self.index} ended without {text!r}:\n{self.output()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"worker {self.index}: no {text!r} after {timeout_s} s:\n{self.output()}")
            time.sleep(0.02)


@dataclass(frozen=True)
class Result:
    """How a worker ended."""

    index: int
    exit_code: int
    output: str


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


@contextlib.contextmanager
def start_workers(
    target: str,
    count: int,
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    per_worker_env: Sequence[Mapping[str, str]] = (),
    folder: str | os.PathLike[str] | None = None,
    chief: bool = False,
    tasks: Sequence[str] | None = None,
    fresh: bool = False,
) -> Iterator[list[Worker]]:
    """Starts `count` workers and yields their handles; on leaving, whatever still runs is killed.

    `target` is a script's path or `package.module:function`. `tasks` is each one's type in TF_CONFIG ("chief",
    "worker", "ps"); with `chief`, worker 0 is a chief and the others are workers. Logs go to `folder`.
    """
    if tasks is None:
        tasks = ["chief" if chief and index == 0 else "worker" for index in range(count)]
    cluster: dict[str, list[str]] = {}
    for kind, port in zip(tasks, free_ports(count), strict=True):
        cluster.setdefault(kind, []).append(f"127.0.0.1:{port}")
    command = [target] if target.endswith(".py") else ["-c", _RUN_FUNCTION, target]
    with contextlib.ExitStack() as stack:
        logs = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs.mkdir(parents=True, exist_ok=True)
        workers: list[Worker] = []
        stack.callback(_kill_all, workers)
        for index in range(count):
            task = {"type": tasks[index], "index": list(tasks[:index]).count(tasks[index])}
            own = {
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
                **(env or {}),
                **(per_worker_env[index] if per_worker_env else {}),
            }
            log = logs / f"worker-{index}-{time.monotonic_ns()}.log"
            with log.open("wb") as out:
                process = start_python([*command, *args], own, out, out, fresh=fresh)
            workers.append(Worker(index, process, log))
        yield workers


def run_workers(
    target: str,
    count: int,
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = HANG_S,
    check: bool = True,
    folder: str | os.PathLike[str] | None = None,
    chief: bool = False,
    fresh: bool = False,
) -> list[Result]:
    """Runs `count` workers to their end and returns how each ended, in worker order.

    Raises TimeoutError after `timeout_s` in all, and RuntimeError with every output if `check` and one has failed.
    """
    deadline = time.monotonic() + timeout_s
    with start_workers(target, count, args=args, env=env, folder=folder, chief=chief, fresh=fresh) as workers:
        for worker in workers:
            worker.wait(max(0.1, deadline - time.monotonic()))  # what is left of the time for all
        results = [Result(worker.index, worker.wait(0), worker.output()) for worker in workers]
    if check and any(result.exit_code for result in results):
        raise RuntimeError(
            "\n".join(f"--- worker {result.index}: exit code {result.exit_code}\n{result.output}" for result in results)
        )
    return results


def was_killed(result: Result) -> bool:
    """Whether it ended by SIGKILL."""
    return result.exit_code == -signal.SIGKILL
