"""examples/slurm.sh: checked by bash and shellcheck, and run for real with stand-ins for srun and scontrol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ckptflow
from tests.examples.commands import started, two_ports
from tests.examples.lives import EXAMPLES, WITHOUT_END
from tests.processes import zygote
from tests.waiting import HANG_S, until

SCRIPT = EXAMPLES / "slurm.sh"

# Starts a task for each node, as with --ntasks-per-node=1, passes SIGTERM on, and ends with the highest exit code.
SRUN = """
import os, signal, subprocess, sys
command = [word for word in sys.argv[1:]]
while command[0].startswith("--"):
    command.pop(0)
tasks = []
for number in range(2):
    own = {"SLURM_PROCID": str(number), "SLURM_NTASKS": "2"}
    tasks.append(subprocess.Popen(command, env={**os.environ, **own}))
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
with open(os.environ["STANDS_IN"] + "/srun.pid", "w") as file:
    file.write(str(os.getpid()))
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""

# Two nodes that are both this machine; a job that is requeued is written down.
SCONTROL = """
import os, sys
if sys.argv[1:] == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]:
    print("localhost\\nlocalhost")
elif sys.argv[1] == "requeue":
    with open(os.environ["STANDS_IN"] + "/requeued", "a") as file:
        file.write(sys.argv[2] + "\\n")
else:
    sys.exit(f"unknown: {sys.argv[1:]}")
"""


def test_bash_and_shellcheck_find_nothing() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(SCRIPT, os.X_OK)
    options = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=1", "--signal=TERM@90", "--requeue"} <= set(options)


def test_it_is_told_to_leave_requeued_and_ends(tmp_path: Path) -> None:
    url = tmp_path / "run"
    environment = stand_ins(tmp_path) | {"CHECKPOINT_URL": str(url), "WORKER_PORT": str(two_ports())}

    with started([str(SCRIPT), "--save-every", "40", "--steps", WITHOUT_END], environment, tmp_path / "logs") as job:
        until(lambda: ckptflow.list_checkpoints(url) or job.process.poll() is not None, HANG_S)
        assert job.process.poll() is None, job.output()
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
        assert job.wait(HANG_S) == 0, job.output()
    assert "ended with 75: back into the queue" in job.output()
    assert (tmp_path / "requeued").read_text() == "4711\n"
    left_at = ckptflow.list_checkpoints(url)[-1].step

    again = environment | {"SLURM_RESTART_COUNT": "1", "WORKER_PORT": str(two_ports())}
    last = left_at + 20
    with started([str(SCRIPT), "--steps", str(last)], again, tmp_path / "logs") as job:
        assert job.wait(HANG_S) == 0, job.output()
    assert job.output().count(f"goes on after step {left_at}") == 2  # both workers
    assert job.output().count(f"finished after step {last}") == 2
    assert ckptflow.list_checkpoints(url)[-1].step == last
    assert (tmp_path / "requeued").read_text() == "4711\n"


def test_what_it_makes_of_each_exit_code(tmp_path: Path) -> None:
    """With a program in place of Python that ends as it is told."""
    program = tmp_path / "ends"
    program.write_text('#!/bin/bash\nexit "$CODE"\n')
    program.chmod(0o755)
    environment = stand_ins(tmp_path) | {"PYTHON": str(program)}

    def end(code: int, restarts: int = 0) -> tuple[int, bool]:
        (tmp_path / "requeued").unlink(missing_ok=True)
        own = {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
        with started([str(SCRIPT)], environment | own, tmp_path / "logs") as job:
            return job.wait(HANG_S), (tmp_path / "requeued").exists()

    assert [end(code) for code in (0, 1, 76)] == [(0, False), (1, False), (76, False)]
    assert [end(code) for code in (74, 75, 137)] == [(0, True)] * 3
    assert end(74, restarts=20) == (74, False)


def stand_ins(folder: Path) -> dict[str, str]:
    """An environment as sbatch makes it, with programs of ours in place of Slurm's."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        program = programs / name
        program.write_text(f"#!{sys.executable}\n{text}")
        program.chmod(0o755)
    return {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHON": str(zygote().stand_ins / "python"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[01-02]",
        "STANDS_IN": str(folder),
    }
