"""Starting the processes of a group, and comparing what they held with what is in storage. No TensorFlow is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ckptflow
from tests.matrix.settings import Described, Group
from tests.ports import free_ports
from tests.processes import start_workers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Visit:
    """One setting restores the newest checkpoint of a root, trains, and saves."""

    setting: str
    what: str  # is trained: a key of TENSORS
    root: str
    dumps: str  # the folder for what the processes held
    seed: int


def run_group(group: Group, visits: Sequence[Visit], folder: Path, *, timeout_s: float = 400) -> None:
    """Runs the visits in the group's processes; raises RuntimeError with all output if one fails."""
    clients = ",".join(f"127.0.0.1:{port}" for port in free_ports(len(group.tasks)))
    visits_text = json.dumps([asdict(visit) for visit in visits])
    env = {"MATRIX_GROUP": group.name, "MATRIX_VISITS": visits_text, "TF_NUM_INTRAOP_THREADS": "2"}
    has_cluster = group.tasks[0] not in ("local", "client")
    per_worker = [
        {
            "MATRIX_TASK": task,
            "MATRIX_WORKER": str(index),
            **({} if has_cluster else {"TF_CONFIG": "{}"}),
            **(
                {
                    "DTENSOR_CLIENT_ID": str(index),
                    "DTENSOR_NUM_CLIENTS": str(len(group.tasks)),
                    "DTENSOR_JOBS": clients,
                    "DTENSOR_JOB_NAME": "worker",
                }
                if task == "client"
                else {}
            ),
        }
        for index, task in enumerate(group.tasks)
    ]
    with start_workers(
        "tests.matrix.program:main",
        len(group.tasks),
        env=env,
        per_worker_env=per_worker,
        folder=folder / "logs" / group.name,
        tasks=group.tasks if has_cluster else None,
    ) as workers:
        trainers = [worker for worker, task in zip(workers, group.tasks, strict=True) if is_trainer(group, task)]
        codes = [worker.wait(timeout_s) for worker in trainers]
        if any(codes):
            raise RuntimeError(
                "\n".join(f"--- {group.name} {worker.index}: exit code {code}\n{worker.output()}"
                          for worker, code in zip(trainers, codes, strict=True))
            )  # fmt: skip


def is_trainer(group: Group, task: str) -> bool:
    """Whether this task runs the training program; the others of a parameter server's cluster serve."""
    return task == "chief" if "ps" in group.tasks else True


def read(root: str | Path, step: int) -> dict[str, Array]:
    """All tensors of a checkpoint, as a process without TensorFlow reads them."""
    with ckptflow.open_checkpoint(root, step) as checkpoint:
        return {name: np.asarray(array) for name, array in checkpoint.items()}


def steps_of(root: str | Path) -> list[int]:
    """The steps that count in a root."""
    return [checkpoint.step for checkpoint in ckptflow.list_checkpoints(root)]


def differences(oracle: Mapping[str, Array], dumps: Path, expected: Described) -> list[str]:
    """Where what the processes held is not, bit for bit, what storage holds; also what none of them held."""
    found = [f"{name}: not in the checkpoint" for name in expected if name not in oracle]
    found += [f"{name}: only in the checkpoint" for name in oracle if name not in expected]
    bits: dict[str, Array] = {}
    for name, array in oracle.items():
        if (array.shape, array.dtype.name) != expected.get(name, (array.shape, array.dtype.name)):
            found.append(f"{name}: {array.shape} {array.dtype.name} in the checkpoint")
        bits[name] = np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.dtype.itemsize}")
    is_held = {name: np.zeros(array.shape, bool) for name, array in bits.items()}
    files = sorted(dumps.glob("*.npz"))
    for file in files:
        with np.load(file) as pieces:
            for key, piece in pieces.items():
                name, start_text, number = key.split("|")
                start = [int(number) for number in start_text.split(",") if number]
                box = tuple(slice(at, at + size) for at, size in zip(start, piece.shape, strict=True))
                if name not in bits or bits[name].dtype != piece.dtype or bits[name][box].shape != piece.shape:
                    found.append(f"{name}: piece {number} of process {file.stem} at {start} does not fit")
                    continue
                is_held[name][box] = True
                if not np.array_equal(bits[name][box], piece):
                    found.append(f"{name}: piece {number} of process {file.stem} at {start} differs")
    return found + [f"{name}: not all of it was held" for name, held in is_held.items() if not held.all()]
