"""Real SIGTERM to real workers under MultiWorkerMirroredStrategy: wherever one of them is, all leave at one step."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest

import ckptflow
from ckptflow.preemption.notices import SAME_SIGNAL_S
from tests.processes import Worker, start_workers

TIMEOUT_S = 120.0
PROGRAM = "tests.preemption.workers:live"


def tell(workers: list[Worker], lives: list[str]) -> None:
    """SIGTERM to whom each life names, when it asks for it."""
    for number, life in enumerate(lives):
        who = life.partition(":")[2]
        told = workers if who == "all" else [workers[int(who)]]
        for worker in told:
            worker.wait_for_output(f"life {number}: tell me", TIMEOUT_S)
        for worker in told:
            worker.send(signal.SIGTERM)


def read_lives(outputs: list[str], lives: list[str]) -> list[tuple[int, int]]:
    """(step that it began after, step that it was left at) of each life, the same on every worker."""
    steps = []
    for output in outputs:
        began = [int(step) for step in re.findall(r"life \d+: begins after step (\d+)", output)]
        left = [int(step) for step in re.findall(r"life \d+: left at step (\d+)", output)]
        assert len(left) == len(lives), output
        steps.append(list(zip(began, left, strict=False)))
    assert steps == [steps[0]] * len(outputs), outputs
    for number, life in enumerate(lives):
        check_log(outputs, number, life, steps[0][number][1])
    return steps[0]


def check_log(outputs: list[str], number: int, life: str, step: int) -> None:
    """The told worker logged it at once, every worker whom, by what and when."""
    kind, _, who = life.partition(":")
    for worker, output in enumerate(outputs):
        part = output.partition(f"life {number}: begins")[2].partition(f"life {number + 1}: begins")[0]
        named = r"worker \d by SIGTERM .*" if who == "all" else rf"worker {who} by SIGTERM \d+\.\d s ago"
        saved = "had been saved" if kind == "save" else "was saved"
        line = rf"told to leave: {named}; step {step} {saved} and committed after .* with -?\d+\.\d of 30 s of"
        assert re.search(line, part), part
        if who == str(worker) and kind == "step":  # by the listening thread, while the step ran
            told = re.search(rf"worker {worker} was told to leave by SIGTERM.*all workers save step", part, re.DOTALL)
            assert told, part


def signal_until_it_ends(worker: Worker, when: str) -> int:
    """Signals that come too late, while the process ends, change nothing."""
    worker.wait_for_output(when, TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while worker.process.poll() is None:
        assert time.monotonic() < deadline, worker.output()
        worker.send(signal.SIGTERM)
        time.sleep(0.01)
    return worker.wait(TIMEOUT_S)


def send_second_signal(workers: list[Worker]) -> None:
    """Worker 1 waits in a collective for worker 0, which is stopped: the first signal is heard, the second obeyed."""
    for worker in workers:
        worker.wait_for_output("about to hang", TIMEOUT_S)
    workers[0].send(signal.SIGSTOP)
    time.sleep(0.2)
    heard = workers[1].output().count("worker 1 was told to leave by SIGTERM")
    workers[1].send(signal.SIGTERM)
    deadline = time.monotonic() + TIMEOUT_S
    while workers[1].output().count("worker 1 was told to leave by SIGTERM") == heard:
        assert time.monotonic() < deadline, workers[1].output()
        time.sleep(0.02)
    time.sleep(SAME_SIGNAL_S + 0.2)
    assert workers[1].process.poll() is None, workers[1].output()
    workers[1].send(signal.SIGTERM)
    assert workers[1].wait(TIMEOUT_S) == 128 + signal.SIGTERM, workers[1].output()
    assert "SIGTERM again: leaving at once with exit code 143" in workers[1].output()


def test_wherever_a_worker_is_told_all_leave_at_one_step(tmp_path: Path) -> None:
    lives = ["trace:2", "evaluation:1", "step:2"]
    with start_workers(PROGRAM, 3, env={"ROOT": str(tmp_path), "LIVES": ",".join(lives)}) as workers:
        tell(workers, lives)
        codes = [signal_until_it_ends(worker, "life 2: left at") for worker in workers]
        outputs = [worker.output() for worker in workers]
    assert codes == [75] * 3, outputs
    steps = read_lives(outputs, lives)

    # Another number of workers goes on from there, life after life.
    lives = ["step:1", "restore:0", "trace:1", "evaluation:0", "save:1", "save before:0", "step:all"]
    environment = {"ROOT": str(tmp_path), "LIVES": ",".join([*lives, "hang:none"])}
    with start_workers(PROGRAM, 2, env=environment) as workers:
        tell(workers, lives)
        send_second_signal(workers)
        outputs = [worker.output() for worker in workers]
    steps += read_lives(outputs, lives)
    assert f"begins after step {steps[-1][1]}\n" in outputs[0]

    assert [began for began, _ in steps] == [0, *(left for _, left in steps[:-1])]
    # Told in the third step, which is long, the workers look at this one or at the one after.
    lengths = [left - began for began, left in steps]
    assert [(3 if length == 4 else length) for length in lengths] == [1, 2, 3, 3, 1, 1, 2, 2, 3, 3]
    saved = [*(left for _, left in steps), steps[8][0] + 2]  # "save before" saved one before it was told, too
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == sorted(saved)
    assert not list(tmp_path.glob("*-r2"))  # nothing was saved twice


@pytest.mark.chaos
def test_told_at_any_time(tmp_path: Path) -> None:
    """Signals at random moments from the watchers' start on, to one worker or all: 75, and on with the next step."""
    rng = random.Random(75)
    left_at = 0
    for _ in range(8):
        world_size = rng.choice([2, 2, 3])
        told = rng.sample(range(world_size), rng.choice([1, 1, world_size]))
        with start_workers(PROGRAM, world_size, env={"ROOT": str(tmp_path), "LIVES": "anywhere:none"}) as workers:
            for index in told:
                workers[index].wait_for_output("listens", TIMEOUT_S)
            time.sleep(rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 8)]))
            for index in told:
                workers[index].send(signal.SIGTERM)
            codes = [worker.wait(TIMEOUT_S) for worker in workers]
            outputs = [worker.output() for worker in workers]
        assert codes == [75] * world_size, "\n".join(outputs)
        for output in outputs:
            assert f"begins after step {left_at}\n" in output
        steps = {int(step) for output in outputs for step in re.findall(r"left at step (\d+)", output)}
        assert len(steps) == 1, outputs
        (left_at,) = steps
        assert ckptflow.list_checkpoints(tmp_path)[-1].step == left_at
