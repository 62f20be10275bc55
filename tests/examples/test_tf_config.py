"""examples/tf_config.py: who a worker is, from what Kubernetes and Slurm say."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from examples.tf_config import tf_config
from tests.examples.lives import EXAMPLES

KUBERNETES = {"JOB_COMPLETION_INDEX": "1", "WORKER_COUNT": "3", "WORKER_HOST": "digits-{index}.digits"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "3", "WORKER_HOSTS": "node01\nnode02\nnode07", "WORKER_PORT": "20017"}


def test_kubernetes() -> None:
    assert tf_config(KUBERNETES) == {
        "cluster": {"worker": ["digits-0.digits:2222", "digits-1.digits:2222", "digits-2.digits:2222"]},
        "task": {"type": "worker", "index": 1},
    }


def test_slurm() -> None:
    assert tf_config(SLURM) == {
        "cluster": {"worker": ["node01:20017", "node02:20017", "node07:20017"]},
        "task": {"type": "worker", "index": 0},
    }


def test_workers_that_share_a_host_have_ports_of_their_own() -> None:
    hosts = {"WORKER_HOSTS": "a b a", "WORKER_PORT": "3000"}
    assert tf_config(SLURM | hosts)["cluster"] == {"worker": ["a:3000", "b:3000", "a:3001"]}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "neither JOB_COMPLETION_INDEX"),
        (KUBERNETES | {"WORKER_COUNT": ""}, "WORKER_COUNT is not set"),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "3"}, "this is worker 3, but there are 3: digits-0.digits"),
        (SLURM | {"SLURM_NTASKS": "6"}, "6 tasks on 3 nodes: start one task per node"),
        (SLURM | {"WORKER_HOSTS": " "}, "3 tasks on 0 nodes"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tf_config(environment)


def test_the_command_takes_the_place_of_the_process() -> None:
    script = "import os; print(os.getpid(), os.environ['TF_CONFIG'])"
    command = [sys.executable, str(EXAMPLES / "tf_config.py"), sys.executable, "-c", script]
    with subprocess.Popen(command, env=os.environ | KUBERNETES, stdout=subprocess.PIPE, text=True) as process:
        pid, _, text = process.communicate()[0].partition(" ")
    assert (process.returncode, int(pid)) == (0, process.pid)
    assert json.loads(text) == tf_config(KUBERNETES)


def test_without_either_the_process_ends_with_what_is_missing() -> None:
    without = {
        name: value for name, value in os.environ.items() if name not in ("JOB_COMPLETION_INDEX", "SLURM_PROCID")
    }
    command = [sys.executable, str(EXAMPLES / "tf_config.py"), "true"]
    done = subprocess.run(command, env=without, capture_output=True, text=True)
    assert done.returncode == 1
    assert "tf_config: neither JOB_COMPLETION_INDEX (Kubernetes) nor SLURM_PROCID (Slurm) is set" in done.stderr
