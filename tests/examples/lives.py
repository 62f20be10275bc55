"""Lives of an example: started as its first lines say, killed when something is committed, started again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ckptflow
from tests.processes import Worker, start_workers
from tests.waiting import HANG_S, until

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
PEER_IS_GONE, IS_FENCED = 74, 76  # exit codes of examples/multi_worker.py
WITHOUT_END = "1000000"  # steps or epochs of a life that is to be killed


@dataclass(frozen=True)
class Example:
    """A script of examples/ and how it is started; `tasks` are the processes, of which the first `trainers` train."""

    script: str
    folder: Path  # for the processes' output
    args: Sequence[str] = ()
    tasks: Sequence[str] = ()  # types in TF_CONFIG; none: one process without it
    env: Mapping[str, str] = field(default_factory=dict)
    trainers: int = 1
    storage_options: dict[str, Any] | None = None

    def start(self, url: str | Path, args: Sequence[str]) -> Any:
        """The processes of one life, for a `with` block."""
        return start_workers(
            str(EXAMPLES / self.script),
            max(1, len(self.tasks)),
            args=["--url", str(url), *self.args, *args],
            env={**self.env, **({} if self.tasks else {"TF_CONFIG": "{}"})},
            folder=self.folder,
            tasks=self.tasks or None,
        )

    def steps(self, url: str | Path) -> list[int]:
        """The steps that count in the root."""
        found = ckptflow.list_checkpoints(url, storage_options=self.storage_options)
        return [checkpoint.step for checkpoint in found]

    def be_killed(self, url: str | Path, *args: str, victims: Sequence[int] | None = None) -> int:
        """SIGKILL to the victims (else to all) after something new was committed; the step that is newest then.

        Whoever is no victim has to notice, and to leave with an exit code of its own.
        """
        before = max(self.steps(url), default=0)
        with self.start(url, args) as workers:

            def is_committed() -> bool:
                _check_alive(workers)
                return max(self.steps(url), default=0) > before

            until(is_committed, HANG_S)
            killed = workers if victims is None else [workers[index] for index in victims]
            for worker in killed:
                worker.kill()
            assert [worker.process.returncode for worker in killed] == [-9] * len(killed), killed[0].output()
            for worker in workers[: self.trainers]:
                if worker not in killed:
                    assert worker.wait(HANG_S) == PEER_IS_GONE, worker.output()
        return self.steps(url)[-1]

    def run(self, *urls: str | Path, args: Sequence[str] = ()) -> list[str]:
        """A life on each root, all at once, that nothing interrupts; what the first process of each printed."""
        with contextlib.ExitStack() as stack:
            lives = [stack.enter_context(self.start(url, args))[: self.trainers] for url in urls]
            codes = [[worker.wait(HANG_S) for worker in life] for life in lives]
            assert codes == [[0] * len(life) for life in lives], "\n".join(w.output() for life in lives for w in life)
            return [life[0].output() for life in lives]

    def tensors(self, url: str | Path, step: int) -> dict[str, Any]:
        """All of a checkpoint, as a process without TensorFlow reads it."""
        with ckptflow.open_checkpoint(url, step, storage_options=self.storage_options) as checkpoint:
            return {name: np.asarray(array) for name, array in checkpoint.items()}

    def assert_same(self, url: str | Path, reference: str | Path, step: int) -> None:
        """Both runs have the same tensors at that step, bit for bit.

        But for positions in the input: how far ahead tf.data has read by then, and so the bytes that it writes, is
        chance. The batches that follow are the same; a wrong one would show in the weights.
        """
        ours, theirs = self.tensors(url, step), self.tensors(reference, step)
        assert ours.keys() == theirs.keys()
        compared = [name for name in ours if not name.endswith("/position")]
        assert any("kernel" in name for name in compared), compared
        different = [name for name in compared if not _is_same(ours[name], theirs[name])]
        assert different == [], different


def _is_same(ours: Any, theirs: Any) -> bool:
    return (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def _check_alive(workers: Sequence[Worker]) -> None:
    for worker in workers:
        assert worker.process.poll() is None, worker.output()


def resumed_after(output: str) -> int:
    """The step after which a life says that it goes on; 0 for one that begins."""
    (found,) = re.findall(r"goes on after step (\d+)", output)
    return int(found)


def finished_after(output: str) -> int:
    """The step after which a life says that it has finished."""
    (found,) = re.findall(r"finished after step (\d+)", output)
    return int(found)
