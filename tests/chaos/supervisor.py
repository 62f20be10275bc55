"""Starts the chaos job, kills workers at random moments, starts it again, and holds each life to what was promised."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ckptflow
from ckptflow.commit.catalog import list_root
from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.storage.store import open_store
from tests.chaos.worker import Task
from tests.processes import Worker, start_workers

HANG_S = 300.0
SURVIVOR_S = 3.0  # how long survivors get before they are killed as well


@dataclass
class Life:
    """One life of the job: its processes and what each has said."""

    number: int
    workers: list[Worker]

    def said(self, worker: int) -> list[dict[str, Any]]:
        """The events that this worker has printed, torn last line excluded."""
        lines = self.workers[worker].output().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def events(self, worker: int, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.said(worker) if event["event"] == kind]

    def wait_for(self, worker: int, kind: str) -> None:
        """Returns once this worker has said so; raises with all logs where it ends without, or takes too long."""
        deadline = time.monotonic() + HANG_S
        while not self.events(worker, kind):
            if self.workers[worker].process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"life {self.number}: worker {worker} never said {kind!r}\n{self.all_logs()}")
            time.sleep(0.02)

    def all_logs(self) -> str:
        return "\n".join(f"--- {worker.index}\n{worker.output()[-4000:]}" for worker in self.workers)


@dataclass
class Supervisor:
    """The root that all lives share, and what is known of it so far."""

    url: str
    folder: Path
    rng: random.Random
    storage_options: dict[str, Any] = field(default_factory=dict)
    lives: int = 0
    acknowledged: int = 0  # the highest step that any life was told is committed
    resumes: int = 0  # lives that resumed from a checkpoint
    killed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def life(self, world_size: int, stop_after_acknowledged: int | None = None) -> Iterator[Life]:
        """Starts one life; on leaving nothing of it runs any more, and what it said has been judged."""
        expected = self._newest()
        self.lives += 1
        task = Task(self.url, self.storage_options, stop_after_acknowledged=stop_after_acknowledged)
        logs = self.folder / f"life-{self.lives}"
        program, args = "tests.chaos.worker:main", [json.dumps(asdict(task))]
        with start_workers(program, world_size, args=args, folder=logs) as workers:
            life = Life(self.lives, workers)
            yield life
        self._judge(life, expected)

    def kill_one(self, world_size: int) -> None:
        """A life that ends by kill -9 of one worker, or of all at once, at a random moment from its start on."""
        with self.life(world_size) as life:
            victim, early = self.rng.randrange(world_size), self.rng.random() < 0.15
            if self.lives == 1:
                life.wait_for(0, "acknowledged")  # there is something to resume from
            elif early:
                time.sleep(self.rng.uniform(0.0, 3.0))
            else:
                life.wait_for(0, "restored")
                time.sleep(self.rng.uniform(0.0, 2.5))
            everyone = self.rng.random() < 0.25
            for worker in life.workers if everyone else [life.workers[victim]]:
                worker.kill()
            self.killed.append("all" if everyone else f"{victim} of {world_size}")
            deadline = time.monotonic() + SURVIVOR_S
            for worker in life.workers:
                with contextlib.suppress(TimeoutError):
                    worker.wait(max(0.0, deadline - time.monotonic()))

    def finish(self, world_size: int) -> None:
        """A last life that nothing kills, through three commits to its end; then nothing of the dead may be left."""
        with self.life(world_size, stop_after_acknowledged=3) as life:
            codes = [worker.wait(HANG_S) for worker in life.workers]
            assert codes == [0] * world_size, f"exit codes {codes}\n{life.all_logs()}"
        store = open_store(self.url, self.storage_options)
        listing = list_root(store)
        store.close()
        debris = [str(folder) for folder, files in listing.folders.items() if MANIFEST_NAME not in files]
        assert debris == [], f"left behind by dead incarnations: {debris}"
        for checkpoint in ckptflow.list_checkpoints(self.url, storage_options=self.storage_options):
            with ckptflow.open_checkpoint(checkpoint.url, storage_options=self.storage_options) as opened:
                assert opened.verify() == []

    def _newest(self) -> tuple[int, int]:
        """(step, incarnation) of the newest checkpoint that counts: what the next life must resume from."""
        found = ckptflow.list_checkpoints(self.url, storage_options=self.storage_options)
        return (found[-1].step, found[-1].incarnation) if found else (0, 0)

    def _judge(self, life: Life, expected: tuple[int, int]) -> None:
        """Bit for bit, from the newest committed, never back in time; and no worker died of anything but a kill."""
        assert expected[0] >= self.acknowledged, (
            f"step {self.acknowledged} was acknowledged, now newest is {expected[0]}"
        )
        for worker, process in enumerate(life.workers):
            assert not life.events(worker, "wrong"), f"life {life.number}: wrong values\n{life.all_logs()}"
            code = process.wait(0)
            assert code in (0, 3, -signal.SIGKILL), f"exit code {code}\n{life.all_logs()}"
            for event in life.events(worker, "restored"):
                assert (event["step"], event["incarnation"]) == expected, f"{event}, not {expected}\n{life.all_logs()}"
        self.resumes += bool(life.events(0, "restored") and expected[0])
        commits = [event["step"] for event in life.events(0, "acknowledged")]
        self.acknowledged = max([self.acknowledged, *commits])
        if len(commits) >= 2:  # the prune that followed the first of them had ended before the second
            self._check_swept(life)

    def _check_swept(self, life: Life) -> None:
        """Partial folders may be those of this life alone, the newest incarnation there is."""
        store = open_store(self.url, self.storage_options)
        listing = list_root(store)
        store.close()
        stale = [
            str(folder)
            for folder, files in listing.folders.items()
            if MANIFEST_NAME not in files and folder.incarnation < max(listing.claims)
        ]
        assert stale == [], f"life {life.number} committed twice and left {stale} of dead incarnations"
