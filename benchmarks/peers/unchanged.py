"""A job that trains a part of its model, saves after every few steps, and keeps five checkpoints."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.meters import metered, resident_bytes
from benchmarks.peers import tuned
from benchmarks.peers.base import Digests, Peer, Point
from benchmarks.peers.ours import count_calls

STEPS = 3  # of training before each save
KEPT = 5  # checkpoints
SHOWN = 3  # saves that are told one by one
RESTART = 3  # the round in which the manager is made anew and restores, before it trains and saves


class Reusing(Peer):
    """What has not changed since the last save is copied inside the storage."""

    note = "KeepLast(5); a round is three training steps and a save; before the fourth save the job restarts"
    reuse_unchanged = True

    def __init__(self, point: Point) -> None:
        self._point = point
        self._tuned = tuned.build(point.settings["work"], point.size_bytes)
        self._tuned.step()  # the optimizer's slots are there, and the memory that a step takes
        self._stores = count_calls()
        self._manager = self._open()
        self._manager.restore_latest()
        self._before_bytes = resident_bytes()

    def measure(self, number: int) -> dict[str, float]:
        """A save, and training after it: what a save keeps in memory shows then."""
        is_restarted = number == RESTART
        if is_restarted:
            self._manager.close()
            self._spoil()
            self._manager = self._open()
            self._manager.restore_latest()
        self._train()
        store = self._stores[-1]
        store.clear()
        resident_bytes()
        with metered() as meter:
            pending = self._manager.save(number)
            blocked_s = meter.lap()
            checkpoint = pending.result()
            durable_s = meter.lap()
            self._manager.wait()
            requests, sent_bytes = len(store.calls), sum(store.sent)
            self._train()
        if is_restarted:
            return {"save_restarted_s": durable_s, "restarted_sent_bytes": sent_bytes}
        found: dict[str, float] = {
            "blocked_s": blocked_s,
            "durable_s": durable_s,
            "peak_save_bytes": meter.peak_bytes - self._before_bytes,
            "save_requests": requests,
            "save_sent_bytes": sent_bytes,
            "save_copied_bytes": checkpoint.copied_bytes,
        }
        if number < SHOWN:
            found[f"save_{number + 1}_s"] = durable_s
        if len(self._manager.checkpoints()) == KEPT:
            found["stored_bytes"] = self._stored_bytes()
        return found

    def prove(self) -> None:
        """The last save, restored by a manager of its own, has every value."""
        digests = Digests(lambda: self._tuned.variables)
        digests.remember()
        self._manager.save(10**6).result()
        self._manager.close()
        self._spoil()
        self._manager = self._open()
        self._manager.restore_latest()
        digests.compare()

    def close(self) -> None:
        self._manager.close()

    def _open(self) -> Any:
        import ckptflow

        return ckptflow.CheckpointManager(
            f"{self._point.url}/run",
            {"model": self._tuned.model},
            keep=ckptflow.KeepLast(KEPT),
            storage_options=self._point.options or None,
            reuse_unchanged=self.reuse_unchanged,
        )

    def _train(self) -> None:
        for _ in range(STEPS):
            self._tuned.step()

    def _spoil(self) -> None:
        for variable in self._tuned.variables:
            variable.assign(variable * 0)

    def _stored_bytes(self) -> int:
        """What the storage holds of the run: on a disk the blocks of its files, each once however many names it has."""
        if self._point.storage != "local":
            return sum(entry.size_bytes for entry in self._stores[-1].list())
        files = {}
        for folder, _, names in os.walk(f"{self._point.url}/run"):
            for name in names:
                found = os.stat(f"{folder}/{name}")
                files[found.st_ino] = found.st_blocks * 512
        return sum(files.values())


class Sending(Reusing):
    """The whole checkpoint is sent each time."""

    note = f"reuse_unchanged=False; {Reusing.note}"
    reuse_unchanged = False
