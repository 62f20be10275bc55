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
from tests.waiting import HANG_S, until

PROGRAM = "tests.preemption.workers:live"


def environment(folder: Path, lives: list[str]) -> dict[str, str]:
    """Each start of the workers has a folder of its own for what was heard."""
    heard = folder / f"heard-{len(lives)}"
    heard.mkdir()
    return {"ROOT": str(folder / "run"), "LIVES": ",".join(lives), "HEARD": str(heard)}


def tell(workers: list[Worker], lives: list[str], heard: Path) -> None:
    """SIGTERM to whom each life names, when it asks for it."""
    for number, life in enumerate(lives):
        who = life.partition(":")[2]
        told = workers if who == "all" else [workers[int(who)]]
        for worker in told:
            worker.wait_for_output(f"life {number}: tell me", HANG_S)
        before = [times_told(worker) for worker in told]
        for worker in told:
            worker.send(signal.SIGTERM)
        until(lambda told=told, before=before: before < [times_told(worker) for worker in told], HANG_S)  # type: ignore[misc]
        (heard / str(number)).touch()


def times_told(worker: Worker) -> int:
    return worker.output().count(f"worker {worker.index} was told to leave by SIGTERM")


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
    worker.wait_for_output(when, HANG_S)

    def has_ended() -> bool:
        worker.send(signal.SIGTERM)
        return worker.process.poll() is not None

    until(has_ended, HANG_S)
    return worker.wait(HANG_S)


def send_second_signal(workers: list[Worker]) -> None:
    """Worker 1 waits in a collective for worker 0, which hangs: the first signal is heard, the second obeyed."""
    for worker in workers:
        worker.wait_for_output("about to hang", HANG_S)
    heard = times_told(workers[1])
    workers[1].send(signal.SIGTERM)
    until(lambda: times_told(workers[1]) > heard, HANG_S)
    time.sleep(SAME_SIGNAL_S + 0.2)
    assert workers[1].process.poll() is None, workers[1].output()
    workers[1].send(signal.SIGTERM)
    assert workers[1].wait(HANG_S) == 128 + signal.SIGTERM, workers[1].output()
    assert "SIGTERM again: leaving at once with exit code 143" in workers[1].output()


def test_wherever_a_worker_is_told_all_leave_at_one_step(tmp_path: Path) -> None:
    lives = ["trace:2", "evaluation:1", "step:2"]
    env = environment(tmp_path, lives)
    with start_workers(PROGRAM, 3, env=env) as workers:
        tell(workers, lives, Path(env["HEARD"]))
        codes = [signal_until_it_ends(worker, "life 2: left at") for worker in workers]
        outputs = [worker.output() for worker in workers]
    assert codes == [75] * 3, outputs
    steps = read_lives(outputs, lives)

    # Another number of workers goes on from there, life after life.
    lives = ["step:1", "restore:0", "trace:1", "evaluation:0", "save:1", "save before:0", "step:all"]
    env = environment(tmp_path, [*lives, "hang:none"])
    with start_workers(PROGRAM, 2, env=env) as workers:
        tell(workers, lives, Path(env["HEARD"]))
        send_second_signal(workers)
        outputs = [worker.output() for worker in workers]
    steps += read_lives(outputs, lives)
    assert f"begins after step {steps[-1][1]}\n" in outputs[0]

    assert [began for began, _ in steps] == [0, *(left for _, left in steps[:-1])]
    # Told in the third step, which is long, the workers look at this one or at the one after.
    lengths = [left - began for began, left in steps]
    assert [(3 if length == 4 else length) for length in lengths] == [1, 2, 3, 3, 1, 1, 2, 2, 3, 3]
    saved = [*(left for _, left in steps), steps[8][0] + 2]  # "save before" saved one before it was told, too
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path / "run")] == sorted(saved)
    assert not list((tmp_path / "run").glob("*-r2"))  # nothing was saved twice


@pytest.mark.chaos
def test_told_at_any_time(tmp_path: Path) -> None:
    """Signals at random moments from the watchers' start on, to one worker or all: 75, and on with the next step."""
    rng, env = random.Random(75), environment(tmp_path, ["anywhere:none"])
    left_at = 0
    for _ in range(8):
        world_size = rng.choice([2, 2, 3])
        told = rng.sample(range(world_size), rng.choice([1, 1, world_size]))
        with start_workers(PROGRAM, world_size, env=env) as workers:
            for index in told:
                workers[index].wait_for_output("listens", HANG_S)
            time.sleep(rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 8)]))
            for index in told:
                workers[index].send(signal.SIGTERM)
            codes = [worker.wait(HANG_S) for worker in workers]
            outputs = [worker.output() for worker in workers]
        assert codes == [75] * world_size, "\n".join(outputs)
        for output in outputs:
            assert f"begins after step {left_at}\n" in output
        steps = {int(step) for output in outputs for step in re.findall(r"left at step (\d+)", output)}
        assert len(steps) == 1, outputs
        (left_at,) = steps
        assert ckptflow.list_checkpoints(tmp_path / "run")[-1].step == left_at
