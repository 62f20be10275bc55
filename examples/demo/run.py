"""`make demo`: two workers train, one is killed in the middle of a save, later the chief; each time the job resumes.

The finished run must equal one that nothing interrupted, weight for weight, or the demo fails. It runs on local disk
or, with `--url s3://bucket/prefix` (or gs://…), on that storage, in a folder of its own that it removes at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

import ckptflow
from ckptflow.commit.catalog import list_root
from ckptflow.format.layout import MANIFEST_NAME, Folder, parse_receipt_name
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from examples.demo.workers import Job, running

WORLD_SIZE, STEPS, SAVE_EVERY = 2, 120, 10
GRACE_S = 25.0  # how long the survivor gets to notice and to leave: at most 15 s of waiting for the dead
LIFE_S = 600.0  # no life of the job takes this long
console = Console(highlight=False, soft_wrap=True)


class DemoFailedError(Exception):
    """Something was not as ckptflow promises; the message says what."""


@dataclass
class Scene:
    """Where everything is, and what the workers have said last."""

    folder: str
    base_url: str
    is_remote: bool
    width: int
    chief_step: int = 0
    resumed_from: int = 0
    logs: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.base_url}/run"

    @property
    def reference_url(self) -> str:
        return f"{self.base_url}/uninterrupted"

    def heard(self, worker: int, line: str) -> None:
        """Shows a line as it comes. The workers all say the same, so the chief's lines are enough."""
        if worker == 0:
            if match := re.match(r"(resumed from )?step (\d+)", line):
                self.chief_step = int(match[2])
                self.resumed_from = int(match[2]) if match[1] else self.resumed_from
            console.print(f"  [dim]{time.strftime('%H:%M:%S')}[/] {escape(line)}")

    def start(self, url: str) -> Any:
        """One life of the job: two new processes."""
        self.chief_step = self.resumed_from = 0
        self.logs.append(os.path.join(self.folder, "logs", f"life-{len(self.logs)}"))
        command = ["-m", "examples.demo.train", url, "--steps", str(STEPS), "--save-every", str(SAVE_EVERY)]
        return running([*command, "--width", str(self.width)], WORLD_SIZE, self.logs[-1], self.heard)


def say(text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/]")


def newest_committed(store: Store) -> int:
    """The step that the next life must resume from; 0 where nothing is committed."""
    return max((folder.step for folder in list_root(store).committed), default=0)


def run_to_the_end(scene: Scene, url: str) -> None:
    with scene.start(url) as job:
        exit_codes = job.wait(LIFE_S)
    if any(exit_codes):
        raise DemoFailedError(f"the workers ended with exit codes {exit_codes}")


def interrupt(scene: Scene, store: Store, victim: int) -> None:
    """Starts the job and kills `victim` in the middle of a save."""
    name = "the chief" if victim == 0 else f"worker {victim}"
    expected = newest_committed(store)
    with scene.start(scene.url) as job:
        folder = stop_in_a_save(scene, store, job, victim, expected + 2 * SAVE_EVERY)
        job.kill(victim)
        files = list_root(store).folders.get(folder, {})
        pid = job.processes[victim].pid
        console.print(f"  [bold red]kill -9[/] {name} (process {pid}) while step {folder.step} was being saved")
        exit_codes = job.wait(GRACE_S)
    check_resumed(scene, expected)
    survivor = 1 - victim
    how = "was ended by us" if exit_codes[survivor] < 0 else f"noticed and left, exit code {exit_codes[survivor]}"
    console.print(f"  worker {survivor} {how}")
    console.print(f"  left behind: {folder}/ with {len(files)} files and no manifest, so it does not count")
    console.print(f"  newest committed: step {newest_committed(store)}")


def stop_in_a_save(scene: Scene, store: Store, job: Job, victim: int, from_step: int) -> Folder:
    """Stops `victim` in a save, at `from_step` or later, to which it still has to contribute; returns which it is.

    It is stopped for each look at the storage: what is seen then is so until it goes on.
    """
    known = set(list_root(store).folders)
    while job.is_running:
        is_near = scene.chief_step >= from_step - SAVE_EVERY
        if is_near:
            job.stop(victim)
            for folder, files in list_root(store).folders.items():
                reported = {parsed[0] for name in files if (parsed := parse_receipt_name(name)) is not None}
                is_open = MANIFEST_NAME not in files and victim not in reported
                if folder not in known and folder.step >= from_step and is_open:
                    return folder
            job.go_on(victim)
        time.sleep(0.002 if is_near else 0.05)
    raise DemoFailedError(
        f"the workers ended with exit codes {job.wait(0)} before one could be killed in a save: try --width 4096"
    )


def check_resumed(scene: Scene, expected: int) -> None:
    if scene.resumed_from != expected:
        raise DemoFailedError(f"resumed from step {scene.resumed_from}, but step {expected} was committed")


def compare(scene: Scene) -> int:
    """How many tensors are the same in both runs, bit for bit; raises where one is not."""
    ours, theirs = (ckptflow.open_checkpoint(url, step=STEPS) for url in (scene.url, scene.reference_url))
    if set(ours) != set(theirs):
        raise DemoFailedError(f"different tensors: {sorted(set(ours) ^ set(theirs))}")
    different = []
    for name in theirs:
        a, b = ours[name], theirs[name]
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            different.append(name)
    if different:
        raise DemoFailedError(f"not the same as in the uninterrupted run: {different}")
    return len(theirs)


def play(scene: Scene) -> None:
    started = time.monotonic()
    store = open_store(scene.url)
    say("Two workers train without any trouble: the run to compare with")
    run_to_the_end(scene, scene.reference_url)
    say("The same training again; worker 1 will be killed in the middle of a save")
    interrupt(scene, store, victim=1)
    say("Both workers start again; this time the chief will be killed")
    interrupt(scene, store, victim=0)
    say("Both start once more and train to the end")
    expected = newest_committed(store)
    run_to_the_end(scene, scene.url)
    check_resumed(scene, expected)
    listing = list_root(store)
    if debris := set(listing.folders) - set(listing.committed):
        raise DemoFailedError(f"left behind by dead workers: {sorted(map(str, debris))}")
    store.close()
    count = compare(scene)
    say("What is in storage now: [default not bold]ckptflow ls[/]")
    subprocess.run([os.path.join(os.path.dirname(sys.executable), "ckptflow"), "ls", scene.url], check=True)
    console.print(f"\n[bold green]The same, bit for bit:[/] {count} tensors, here and in the uninterrupted run.")
    console.print(f"That took {time.monotonic() - started:.0f} s, with two kill -9 in the middle of a save.")


def clean(scene: Scene) -> None:
    """Removes what this demo has written, and nothing else."""
    if scene.is_remote:
        for url in (scene.url, scene.reference_url):
            store = open_store(url)
            store.delete([entry.key for entry in store.list()])
            store.close()
    shutil.rmtree(scene.folder, ignore_errors=True)


def show_logs(scene: Scene) -> None:
    for worker in range(WORLD_SIZE):
        path = os.path.join(scene.logs[-1], f"worker-{worker}.log") if scene.logs else ""
        if os.path.exists(path):
            with open(path, errors="replace") as log:
                console.print(f"[dim]--- {path}\n{escape(log.read()[-2000:])}[/]")


def make_scene(url: str, width: int) -> Scene:
    """A new folder with a name of its own, here and, on a remote storage, there."""
    is_remote = "://" in url and not url.startswith("file://")
    parent = "." if is_remote else url.removeprefix("file://")
    os.makedirs(parent, exist_ok=True)
    folder = os.path.abspath(tempfile.mkdtemp(prefix="demo-run-", dir=parent))
    return Scene(folder, f"{url.rstrip('/')}/{os.path.basename(folder)}" if is_remote else folder, is_remote, width)


def where_next(scene: Scene, is_kept: bool) -> None:
    if not is_kept:
        console.print("Its files are removed again; `make demo DEMO_ARGS=--keep` leaves them. Where to look next:")
    url = scene.url if is_kept else "URL"
    for what, why in {
        f".venv/bin/ckptflow show {url}": "one checkpoint: its tensors, shards and metrics",
        f".venv/bin/ckptflow verify {url}": "reads everything and checks every checksum",
        "examples/demo/train.py": "the worker: how a training loop of yours would look",
        "docs/index.md": "guarantees, storage, retention, what each error asks for",
    }.items():
        console.print(f"  [bold]{what}[/]  [dim]{why}[/]")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--url", default=".", help="s3://bucket/prefix, gs://bucket/prefix or a folder (default: here)")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints and logs where they are")
    parser.add_argument("--width", type=int, default=1536, help="of the model; 1536 makes checkpoints of 28 MiB")
    arguments = parser.parse_args()
    if arguments.url.startswith("memory:"):
        parser.error("memory:// is one process's own: two workers cannot meet there")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`, so that the workers are ended too
    scene = make_scene(arguments.url, arguments.width)
    console.print(f"Checkpoints go to {scene.base_url}, logs to {scene.folder}/logs")
    is_kept = arguments.keep
    try:
        play(scene)
    except (DemoFailedError, ckptflow.CkptflowError) as failure:
        is_kept = True
        show_logs(scene)
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(failure))}")
        console.print(f"Everything is left in {scene.base_url} and {scene.folder}")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped; all workers are ended and their files removed")
        return 130
    finally:
        if not is_kept:
            clean(scene)
    where_next(scene, is_kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
