"""The harness itself: TF_CONFIG, outputs, time-outs, that nothing is left running; a forked process is like any."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.forked import ROOT, Forked
from tests.processes import environment, run_python, run_workers, start_python, start_workers, was_killed, zygote
from tests.waiting import HANG_S, until


def show_task() -> None:
    print(json.loads(os.environ["TF_CONFIG"])["task"]["type"], json.loads(os.environ["TF_CONFIG"])["task"]["index"])


def hang() -> None:
    print("up", os.getpid())
    time.sleep(600)


def fail() -> None:
    raise SystemExit("on purpose")


def test_each_worker_gets_its_task() -> None:
    results = run_workers(f"{__name__}:show_task", 3, chief=True)
    assert [result.output.split() for result in results] == [["chief", "0"], ["worker", "0"], ["worker", "1"]]


def test_a_failure_shows_every_output() -> None:
    with pytest.raises(RuntimeError, match="worker 1: exit code 1\non purpose"):
        run_workers(f"{__name__}:fail", 2)


def test_a_hang_times_out_and_nothing_is_left_running() -> None:
    with start_workers(f"{__name__}:hang", 2) as workers:
        for worker in workers:
            worker.wait_for_output("up", HANG_S)
        workers[0].kill()
        assert workers[0].process.returncode == -signal.SIGKILL
        with pytest.raises(TimeoutError, match=r"(?s)worker 1 still runs.*up.*in hang"):
            workers[1].wait(0.1)
    assert workers[1].process.returncode == -signal.SIGKILL
    with pytest.raises(TimeoutError):
        run_workers(f"{__name__}:hang", 1, timeout_s=0.1)


def test_was_killed_tells_sigkill_from_an_exit() -> None:
    result = run_workers(f"{__name__}:fail", 1, check=False)[0]
    assert not was_killed(result)


def end_with_a_thread_and_an_atexit() -> None:
    def late() -> None:
        threading.main_thread().join()
        print("thread")

    threading.Thread(target=late).start()
    atexit.register(print, "atexit", end="")  # nothing is flushed by hand
    print("main", file=sys.stderr)


ENDS = {
    "print('well')": (0, "well\n", ""),
    "import sys; sys.exit(7)": (7, "", ""),
    "import sys; sys.exit('why')": (1, "", "why"),
    "1 / 0": (1, "", "ZeroDivisionError: division by zero"),
    "import os; os._exit(5)": (5, "", ""),
    "raise KeyboardInterrupt": (-signal.SIGINT, "", "KeyboardInterrupt"),
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": (-signal.SIGTERM, "", ""),
    "import os; os.abort()": (-signal.SIGABRT, "", ""),
    f"from {__name__} import *; end_with_a_thread_and_an_atexit()": (0, "thread\natexit", "main"),
}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_process_ends_as_any_interpreter_does(fresh: bool) -> None:
    for program, (code, out, last_line) in ENDS.items():
        done = run_python("-c", program, fresh=fresh)
        assert (done.returncode, done.stdout) == (code, out), program
        assert done.stderr.rstrip().rpartition("\n")[2] == last_line, program


SHOWN = "import json, os, sys; print(json.dumps([sys.argv, sys.path[0], os.getcwd(), __name__, __spec__ is None]))"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_process_is_given_its_command_line_and_its_folder(tmp_path: Path, fresh: bool) -> None:
    script = tmp_path / "shown.py"
    script.write_text(SHOWN)
    for command, at in (
        (["-c", SHOWN], ["-c", ""]),
        (["shown.py"], ["shown.py", str(tmp_path)]),
        (["-m", "shown"], [str(script), str(tmp_path)]),
    ):
        done = run_python(*command, "one", "--two", cwd=tmp_path, fresh=fresh)
        shown = [[at[0], "one", "--two"], at[1], str(tmp_path), "__main__", command[0] != "-m"]
        assert json.loads(done.stdout) == shown, done.stderr


def test_a_forked_process_has_used_nothing_and_is_alone() -> None:
    """No context of TensorFlow, no loop of fsspec, nothing of another process; random numbers of its own."""
    program = """
import os, random, sys
assert {"tensorflow", "keras", "ckptflow.manager"} <= set(sys.modules)
assert not {"tf_keras", "s3fs", "gcsfs", "obstore", "tests.conftest", "pytest"} & set(sys.modules)
links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
descriptors = [os.readlink(link) for link in links if os.path.lexists(link)]
assert not [where for where in descriptors if "pidfd" in where or "socket" in where], descriptors
import numpy as np, tensorflow as tf
from tensorflow.python.eager import context
assert context._context is None or context._context._context_handle is None
print(os.environ["OWN"], random.random(), np.random.random(), tf.random.uniform([1]).numpy(), os.getpid())
"""
    with start_workers(f"{__name__}:hang", 1) as (other,):
        assert isinstance(other.process, Forked)
        found = [run_python("-c", program, env={"OWN": str(number)}) for number in range(2)]
    assert [done.stdout.split()[:1] for done in found] == [["0"], ["1"]], [done.stderr for done in found]
    assert not set(found[0].stdout.split()) & set(found[1].stdout.split())


def test_what_is_read_at_an_import_needs_an_empty_interpreter() -> None:
    program = "import sys; print('tensorflow' in sys.modules)"
    for env, is_forked in (
        ({"TF_CONFIG": "{}", "ROOT": "/"}, True),
        ({"TF_USE_LEGACY_KERAS": "1"}, False),
        ({"PYTHONHASHSEED": "3"}, False),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, False),
    ):
        assert run_python("-c", program, env=env).stdout == f"{is_forked}\n", env


def test_a_stock_process_does_not_know_ckptflow() -> None:
    program = "import sys; print({'tensorflow', 'keras'} <= set(sys.modules), 'ckptflow' in sys.modules)"
    assert run_python("-c", program, kind="stock").stdout == "True False\n"


def test_signals_come_to_a_process(tmp_path: Path) -> None:
    with start_workers(f"{__name__}:hang", 2) as workers:
        for worker in workers:
            worker.wait_for_output("up", HANG_S)
        first, second = workers
        first.send(signal.SIGSTOP)
        until(lambda: psutil.Process(first.process.pid).status() == psutil.STATUS_STOPPED, HANG_S)
        assert first.process.poll() is None
        second.send(signal.SIGTERM)
        assert second.wait(HANG_S) == -signal.SIGTERM
        first.send(signal.SIGTERM)
        first.send(signal.SIGCONT)
        assert first.wait(HANG_S) == -signal.SIGTERM
        first.send(signal.SIGKILL)  # it has gone: nobody else is sent it
    assert [worker.process.returncode for worker in workers] == [-signal.SIGTERM] * 2


def test_nothing_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    """However that ends: here it is killed."""
    script = f"""
import subprocess, sys
from tests.processes import start_workers
with start_workers("{__name__}:hang", 2) as workers:
    for worker in workers:
        worker.wait_for_output("up", {HANG_S})
    print(*(worker.process.pid for worker in workers), flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        everyone = psutil.Process(parent.pid).children(recursive=True)
        assert len(everyone) == 5  # and the zygotes: with ckptflow, without, and that of probes
        assert {process.pid for process in workers} < {process.pid for process in everyone}
        parent.kill()
    until(lambda: not any(map(_runs, everyone)), HANG_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_several_threads_wait_for(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = start_python(["-c", "import time; time.sleep(0.2); raise SystemExit(3)"], {}, log, log)
        codes: list[int] = []
        threads = [threading.Thread(target=lambda: codes.append(process.wait())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [3] * 4


def in_a_script(tmp_path: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `text` in a shell that finds the stand-ins for `python` and `ckptflow` first."""
    own = environment({"PATH": f"{zygote().stand_ins}:{os.environ['PATH']}", **env})
    command = ["bash", "-c", text]
    return subprocess.run(
        command, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, input="given", check=False
    )


def test_a_stand_in_in_a_script_is_the_program(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys\nprint('tensorflow' in sys.modules, sys.argv, os.environ['OWN'], os.getcwd(), sys.stdin.read())"
    )
    for command, name in (('-c "$(cat script.py)"', "-c"), ("script.py", "script.py"), ("-m script", "script.py")):
        done = in_a_script(tmp_path, f"python {command} one", OWN="1")
        assert done.stdout.startswith("True"), done.stderr
        assert done.stdout.endswith(f"{name}', 'one'] 1 {tmp_path} given\n")
    for how, is_forked in (("python", True), ("python -E", False), ("PYTHONHASHSEED=3 python", False)):
        done = in_a_script(tmp_path, f"{how} script.py", OWN="1")
        assert done.stdout.startswith(str(is_forked)), done.stderr
    assert in_a_script(tmp_path, "ckptflow --version").stdout == run_python("-m", "ckptflow", "--version").stdout


def test_a_stand_in_ends_as_the_program_does(tmp_path: Path) -> None:
    for program, (code, out, last_line) in ENDS.items():
        (tmp_path / "program.py").write_text(program)
        done = in_a_script(tmp_path, "exec python program.py")
        assert (done.returncode, done.stdout) == (code, out), program
        assert done.stderr.rstrip().rpartition("\n")[2] == last_line, program


def test_a_stand_in_and_the_program_are_ended_together(tmp_path: Path) -> None:
    env = environment({"PATH": f"{zygote().stand_ins}:{os.environ['PATH']}"})
    command = ["python", "-c", f"from {__name__} import hang; hang()"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as stand_in:
            assert stand_in.stdout is not None
            program = psutil.Process(int(stand_in.stdout.readline().split()[1]))
            assert program.pid != stand_in.pid
            stand_in.send_signal(number)
            assert stand_in.wait(HANG_S) == -number
        until(lambda program=program: not _runs(program), HANG_S)  # type: ignore[misc]
