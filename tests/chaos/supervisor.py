"""Starts the chaos job, kills workers at chosen moments and at any, starts it again, and judges each of its lives.

Workers come from a fork server that has TensorFlow loaded, so that a life takes half a second with one worker and two
seconds with three; each is a process of its own, and is killed for real.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import ckptflow
from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.finding import list_counting
from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.storage.opening import open_store
from tests.chaos.worker import Moment, Task, work
from tests.ports import free_ports

PRELOAD = ["tests.chaos.worker", "tests.chaos.patient", "ckptflow.storage.by_obstore", "s3fs"]
START_S = 120.0  # to the first word of a life; generous, since a shared machine may be busy
SURVIVORS_S = (0.0, 0.0, 0.05, 0.5)  # how long survivors get before they are killed as well

CHIEFS: dict[str, Moment] = {
    "before the claim": Moment("create", "lineage/"),
    "after the claim": Moment("create", "lineage/", is_after=True),
    "before the manifest": Moment("create", "manifest.json"),
    "after the manifest": Moment("create", "manifest.json", is_after=True),
    "in the fence check": Moment("list", "lineage/", is_after=True),
    "before a prune": Moment("delete", ""),
    "in a prune": Moment("delete", "manifest.json", is_after=True),
    "after a prune": Moment("delete", "receipt-", is_after=True),  # the first of what goes with the shards
}
ANYONES: dict[str, Moment] = {
    "in the restore": Moment("get", "shard-"),
    "before a shard": Moment("put", "shard-"),
    "after a shard": Moment("put", "shard-", is_after=True),
    "before a copy": Moment("copy", "shard-"),
    "after a copy": Moment("copy", "shard-", is_after=True),
    "before the receipt": Moment("put", "receipt-"),
    "after the receipt": Moment("put", "receipt-", is_after=True),
}
TIMES = ["while it starts", "at any time", "all at once"]
MOMENTS = (*CHIEFS, *ANYONES, *TIMES)


def next_moment(killed: Counter[str], rng: random.Random) -> str:
    """Any of them, once each was met: until then, one that was not."""
    return rng.choice([moment for moment in MOMENTS if moment not in killed] or MOMENTS)


@dataclass
class Life:
    """One life of the job: its processes and what each has said."""

    number: int
    processes: list[ForkServerProcess]
    logs: list[Path]

    def said(self, worker: int) -> list[dict[str, Any]]:
        """The events that this worker has printed, torn last line excluded."""
        text = self.logs[worker].read_text(errors="replace") if self.logs[worker].exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def events(self, worker: int, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.said(worker) if event["event"] == kind]

    def wait_for(self, worker: int, kind: str) -> None:
        """Returns once this worker has said so; raises with all logs where it ends without, or takes too long."""
        deadline = time.monotonic() + START_S
        while not self.events(worker, kind):
            if not self.processes[worker].is_alive() or time.monotonic() > deadline:
                raise AssertionError(f"life {self.number}: worker {worker} never said {kind!r}\n{self.all_logs()}")
            time.sleep(0.02)

    def all_logs(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in self.logs if log.exists()
        )


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
    killed: Counter[str] = field(default_factory=Counter)  # how often, by the moment

    def __post_init__(self) -> None:
        self.store = open_store(self.url, self.storage_options)  # one client for all looks: making one takes long

    @contextlib.contextmanager
    def life(self, world_size: int, *, saves: int, dying: tuple[int, Moment] | None = None) -> Iterator[Life]:
        """Starts one life, in which worker `dying[0]` may kill itself; on leaving none of it runs and it was judged."""
        expected = self._newest()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.lives += 1
        ports = tuple(free_ports(world_size))
        logs = [self.folder / f"life-{self.lives}-worker-{worker}.log" for worker in range(world_size)]
        life = Life(self.lives, [], logs)
        try:
            for worker in range(world_size):
                moment = dying[1] if dying is not None and dying[0] == worker else None
                task = Task(self.url, worker, ports, str(logs[worker]), saves, self.storage_options, moment)
                process = context.Process(target=work, args=(task,), daemon=True)
                process.start()
                life.processes.append(process)
            yield life
        finally:
            for process in life.processes:
                process.kill()
                process.join()
        self._judge(life, expected)
        for log in logs:
            log.unlink(missing_ok=True)  # nothing was wrong

    def kill_one(self, world_size: int) -> None:
        """A life that ends by kill -9 of one worker, or of all at once, at one of the moments or at any time."""
        moment = next_moment(self.killed, self.rng)
        if moment in TIMES:
            self._kill_in_time(moment, world_size)
        else:
            self.kill_at(moment, world_size)

    def kill_at(self, name: str, world_size: int) -> None:
        """A life in which one worker kills itself at this moment, if it comes."""
        victim = 0 if name in CHIEFS else self.rng.randrange(world_size)
        moment = replace((CHIEFS | ANYONES)[name], number=self.rng.choice([1, 1, 2, 3]))
        with self.life(world_size, saves=5, dying=(victim, moment)) as life:
            process = life.processes[victim]
            process.join(START_S)
            assert not process.is_alive(), f"life {life.number} hangs\n{life.all_logs()}"
            self._note(name, life, [process])

    def _kill_in_time(self, name: str, world_size: int) -> None:
        with self.life(world_size, saves=20) as life:
            if name != "while it starts":
                life.wait_for(0, "begins")
            time.sleep(self.rng.uniform(0.0, 0.4))
            victims = life.processes if name == "all at once" else [self.rng.choice(life.processes)]
            for process in victims:
                process.kill()
            for process in victims:
                process.join()
            self._note(name, life, victims)

    def _note(self, name: str, life: Life, victims: list[ForkServerProcess]) -> None:
        """Counts the kill, if it was one, and gives the survivors a moment."""
        if any(process.exitcode == -signal.SIGKILL for process in victims):
            self.killed[name] += 1
        deadline = time.monotonic() + self.rng.choice(SURVIVORS_S)
        for process in life.processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def finish(self, world_size: int, *, saves: int = 4) -> None:
        """A life that nothing kills, through some commits to its end; then nothing of the dead may be left."""
        with self.life(world_size, saves=saves) as life:
            for process in life.processes:
                process.join(START_S)
            codes = [process.exitcode for process in life.processes]
            assert codes == [0] * world_size, f"exit codes {codes}\n{life.all_logs()}"
        debris = [str(folder) for folder, files in list_root(self.store).folders.items() if MANIFEST_NAME not in files]
        assert debris == [], f"left behind by dead incarnations: {debris}"
        for checkpoint in ckptflow.list_checkpoints(self.url, storage_options=self.storage_options):
            with ckptflow.open_checkpoint(checkpoint.url, storage_options=self.storage_options) as opened:
                assert opened.verify() == []

    def _newest(self) -> tuple[int, int]:
        """(step, incarnation) of the newest checkpoint that counts: what the next life must resume from."""
        found = list_counting(self.store, Summaries(self.store))
        return (found[-1].step, found[-1].incarnation) if found else (0, 0)

    def _judge(self, life: Life, expected: tuple[int, int]) -> None:
        """Bit for bit, from the newest committed, never back in time; and no worker died of anything but a kill."""
        assert expected[0] >= self.acknowledged, (
            f"step {self.acknowledged} was acknowledged, now newest is {expected[0]}"
        )
        for worker, process in enumerate(life.processes):
            assert not life.events(worker, "wrong"), f"life {life.number}: wrong values\n{life.all_logs()}"
            assert process.exitcode in (0, 3, -signal.SIGKILL), f"exit code {process.exitcode}\n{life.all_logs()}"
            for event in life.events(worker, "restored"):
                assert (event["step"], event["incarnation"]) == expected, f"{event}, not {expected}\n{life.all_logs()}"
        self.resumes += bool(life.events(0, "restored") and expected[0])
        commits = [event["step"] for event in life.events(0, "acknowledged")]
        self.acknowledged = max([self.acknowledged, *commits])
        if len(commits) >= 2:  # the prune that followed the first of them had ended before the second
            self._check_swept(life)

    def _check_swept(self, life: Life) -> None:
        """Partial folders may be those of this life alone, the newest incarnation there is."""
        listing = list_root(self.store)
        stale = [
            str(folder)
            for folder, files in listing.folders.items()
            if MANIFEST_NAME not in files and folder.incarnation < max(listing.claims)
        ]
        assert stale == [], f"life {life.number} committed twice and left {stale} of dead incarnations"
