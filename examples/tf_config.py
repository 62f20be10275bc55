"""Makes TF_CONFIG from what Kubernetes or Slurm tells a process, and becomes the command that follows.

python -m examples.tf_config python -m examples.multi_worker --url s3://bucket/run

Kubernetes (an Indexed Job): JOB_COMPLETION_INDEX, which it sets; WORKER_COUNT and WORKER_HOST, "digits-{index}.digits".
Slurm (one task per node):   SLURM_PROCID, which srun sets; WORKER_HOSTS, what `scontrol show hostnames` prints.
Both: WORKER_PORT (2222). Workers that share a host get the ports after it.

On one machine, to try it, in two terminals (0 and 1):
JOB_COMPLETION_INDEX=0 WORKER_COUNT=2 WORKER_HOST=localhost python -m examples.tf_config python -m examples.multi_worker
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any


def tf_config(environment: Mapping[str, str]) -> dict[str, Any]:
    """The value of TF_CONFIG for the process that has this environment; raises ValueError saying what is missing."""
    if "JOB_COMPLETION_INDEX" in environment:
        count = int(_get(environment, "WORKER_COUNT"))
        hosts = [_get(environment, "WORKER_HOST").replace("{index}", str(index)) for index in range(count)]
        index = int(environment["JOB_COMPLETION_INDEX"])
    elif "SLURM_PROCID" in environment:
        hosts = _get(environment, "WORKER_HOSTS").split()
        index, tasks = int(environment["SLURM_PROCID"]), int(_get(environment, "SLURM_NTASKS"))
        if tasks != len(hosts):
            raise ValueError(f"{tasks} tasks on {len(hosts)} nodes: start one task per node (--ntasks-per-node=1)")
    else:
        raise ValueError("neither JOB_COMPLETION_INDEX (Kubernetes) nor SLURM_PROCID (Slurm) is set")
    if not 0 <= index < len(hosts):
        raise ValueError(f"this is worker {index}, but there are {len(hosts)}: {', '.join(hosts)}")
    port = int(environment.get("WORKER_PORT", "2222"))
    seen: Counter[str] = Counter()
    addresses = []
    for host in hosts:
        addresses.append(f"{host}:{port + seen[host]}")
        seen[host] += 1
    return {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}


def _get(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ValueError(f"{name} is not set")
    return environment[name]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        os.environ["TF_CONFIG"] = json.dumps(tf_config(os.environ))
    except ValueError as error:
        sys.exit(f"tf_config: {error}")
    os.execvp(sys.argv[1], sys.argv[1:])  # the same process, so that SIGTERM reaches the training


if __name__ == "__main__":
    main()
