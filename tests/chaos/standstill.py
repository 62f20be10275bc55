"""A job of three workers of which one stands still at some moment: what the others do, and what a restart finds."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from ckptflow import KeepLast, PreemptionWatcher, list_checkpoints, open_checkpoint
from tests.edge import programs
from tests.processes import Worker, start_workers
from tests.waiting import HANG_S

WORKERS = 3
PEER_TIMEOUT_S = 10.0  # "PEER_TIMEOUT_S" in the environment is another one
SAVES = 4  # in a manager, before the next one is made
LONGEST_S = 4.0  # from when all are ready until one stands still


def works() -> None:
    """Restores, saves, waits and checks, in one manager after another, until it is told that a worker is gone."""
    signal.signal(signal.SIGUSR1, lambda *_: stand_still())
    strategy, _ = programs.join()
    module = programs.make_state(strategy)
    options = {"peer_timeout_s": float(os.environ.get("PEER_TIMEOUT_S", PEER_TIMEOUT_S)), "keep": KeepLast(3)}
    for number in itertools.count():
        with programs.make_manager(strategy, module, **options) as manager, PreemptionWatcher(manager) as watcher:
            restored = manager.restore_latest()
            first = 1 + (restored.step if restored is not None else 0)
            if not number:
                print("ready", flush=True)
            for step in range(first, first + SAVES):
                programs.fill(module, step)
                pending = manager.save(step)
                if step % 5 == 0:
                    pending.result()
                watcher.check(step)
                if step % 3 == 0:
                    manager.wait()
                    print("committed", step, flush=True)
            if number % 2:
                manager.restore_latest()


def goes_on() -> None:
    """The same job, started again: says where it begins, and saves."""
    strategy, _ = programs.join()
    module = programs.make_state(strategy)
    with programs.make_manager(strategy, module) as manager:
        restored = manager.restore_latest()
        step = restored.step if restored is not None else 0
        if restored is not None:
            programs.assert_filled(module, step)
        print("begins", step, flush=True)
        programs.fill(module, step + 1)
        manager.save(step + 1)


def stand_still() -> None:
    """What a worker does that lives and does not come: its other threads go on."""
    print("standing still", flush=True)
    while True:
        time.sleep(1)


@dataclass
class Trial:
    """One job, one worker of it, one moment, and how the worker stands still."""

    root: Path
    number: int
    peer_timeout_s: float = PEER_TIMEOUT_S
    victim: int = field(init=False)
    how: signal.Signals = field(init=False)
    after_s: float = field(init=False)
    slowest_s: float = 0.0
    broken: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)  # who was told of another worker than the one that stands still

    def __post_init__(self) -> None:
        rng = random.Random(self.number)
        self.victim = rng.randrange(WORKERS)
        self.how = rng.choice([signal.SIGSTOP, signal.SIGUSR1])
        self.after_s = rng.uniform(0, LONGEST_S)

    def __str__(self) -> str:
        return f"trial {self.number}: worker {self.victim}, {self.how.name} after {self.after_s:.2f} s"

    def run(self) -> None:
        """Fills in `broken` and `misnamed`: the promises that were not kept."""
        env = {"ROOT": str(self.root), "PEER_TIMEOUT_S": str(self.peer_timeout_s)}
        with start_workers("tests.chaos.standstill:works", WORKERS, env=env) as workers:
            for worker in workers:
                worker.wait_for_output("ready", HANG_S)
            time.sleep(self.after_s)
            workers[self.victim].send(self.how)
            since = time.monotonic()
            for index, worker in enumerate(workers):
                if index != self.victim:
                    self._judge(index, worker, since)
            workers[self.victim].send(signal.SIGCONT)
            committed = [
                w.output().count("committed") and int(w.output().rpartition("committed ")[2].split()[0])
                for w in workers
            ]
        before = [each.step for each in list_checkpoints(self.root)]
        self._check(not committed or max(committed) <= max(before, default=0), f"lost: {committed}, there are {before}")
        self._restart(env, max(before, default=0))

    def _judge(self, index: int, worker: Worker, since: float) -> None:
        try:
            code = worker.wait(HANG_S)
        except Exception as error:
            self._check(False, f"worker {index} hangs: {error}\n{worker.output()[-3000:]}")
            return
        self.slowest_s = max(self.slowest_s, time.monotonic() - since)
        output = worker.output()
        self._check(code == 1, f"worker {index} ended with {code}\n{output[-3000:]}")
        is_told = "PeerError" in output or "SaveFailedError" in output
        self._check(is_told, f"worker {index} was not told\n{output[-3000:]}")
        if re.search(rf"worker {self.victim} |workers .*\b{self.victim} \(", output) is None:
            self.misnamed.append(f"{self}: worker {index} names another\n{output[-3000:]}")

    def _restart(self, env: dict[str, str], newest: int) -> None:
        with start_workers("tests.chaos.standstill:goes_on", WORKERS, env=env) as workers:
            for worker in workers:
                self._check(worker.wait(HANG_S) == 0, f"the restart failed\n{worker.output()[-3000:]}")
                self._check(f"begins {newest}\n" in worker.output(), f"not from {newest}\n{worker.output()[-3000:]}")
        with open_checkpoint(str(self.root)) as checkpoint:
            self._check(checkpoint.verify() == [], "the newest is damaged")

    def _check(self, is_so: bool, what: str) -> None:
        if not is_so:
            self.broken.append(f"{self}: {what}")


if __name__ == "__main__":
    import sys
    import tempfile

    for each in range(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        trial = Trial(Path(tempfile.mkdtemp(dir=os.environ["SCRATCH"])) / "run", each)
        trial.run()
        print(
            f"{trial}: slowest {trial.slowest_s:.1f} s, {len(trial.broken)} broken, {len(trial.misnamed)} misnamed",
            flush=True,
        )
        for text in trial.broken + trial.misnamed:
            print(text, flush=True)
