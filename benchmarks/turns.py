"""Peers side by side: each in a process of its own, doing its rounds in turn with the others'."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import Result, Stat

_LOG_CHARACTERS = 300
_LIMIT_S = 900  # for a start or a round; what takes longer is ended, and its error says so


class Seat:
    """One peer's process. Once it has failed it does nothing more, and says why."""

    def __init__(self, peer: str, target: str, point: Mapping[str, Any], log: str, env: Mapping[str, str]) -> None:
        self.peer = peer
        self.error = self.note = ""
        self.is_limit = False
        self.rounds: list[dict[str, float]] = []
        self._log = log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.process", target, json.dumps(point)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **env},
            )

    def begin(self) -> None:
        """Waits until the peer is there."""
        hello = self._answer()
        self.note, self.is_limit = hello.get("note", ""), hello.get("is_limit", False)

    def round(self, number: int) -> None:
        if not self.error:
            self._tell(str(number))
            if measures := self._answer():
                self.rounds.append(measures)

    def end(self) -> None:
        """Closes the peer, and in any case ends its process."""
        try:
            if not self.error:
                self._tell("close")
                self._answer()
        finally:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # a line that nobody took
                    assert pipe is not None
                    pipe.close()

    def _tell(self, line: str) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            self.error = "its process ended"

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # No thread that ends each time: Ctrl-C that comes while Python forgets one is lost.
        if not select.select([self._process.stdout], [], [], _LIMIT_S)[0]:
            self._process.kill()
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        with open(self._log, errors="replace") as log:
            lines = [line.strip() for line in log if line.strip()]
        ended = f"its process ended, or was ended after {_LIMIT_S} s, without a word"
        self.error = lines[-1][-_LOG_CHARACTERS:] if lines else ended
        return {}


def take_turns(
    experiment: str,
    peers: Mapping[str, str],
    points: Mapping[str, Mapping[str, Any]],
    *,
    rounds: int,
    logs: str,
    env: Mapping[str, str] | None = None,
) -> list[Result]:
    """One result for each peer at its point, medians over `rounds` after one that warms up.

    In every round each has its turn, in another order each time: what one leaves behind (dirty pages, a disk that is
    still busy) does not always fall on the same other one.

    `peers` are targets by name ("package.module:Class"). What a peer leaves in a local folder is removed.
    """
    seats: list[Seat] = []
    try:
        for peer, target in peers.items():
            log = os.path.join(logs, f"{len(seats)}.log")
            seats.append(Seat(peer, target, points[peer], log, env or {}))
        for seat in seats:
            seat.begin()  # all start together, and nothing is measured before the last is there
        for number in range(rounds + 1):
            for seat in random.Random(number).sample(seats, len(seats)):
                seat.round(number)
    except BaseException:
        for seat in seats:
            seat.error = "ended before its last round"  # nobody is waited for
        raise
    finally:
        for seat in seats:
            seat.end()
            if points[seat.peer].get("storage", "local") == "local":
                shutil.rmtree(points[seat.peer]["url"], ignore_errors=True)
    return [_result(experiment, seat, points[seat.peer]) for seat in seats]


def _result(experiment: str, seat: Seat, point: Mapping[str, Any]) -> Result:
    return Result(
        experiment=experiment,
        peer=seat.peer,
        storage=point.get("storage", "local"),
        size_bytes=point["size_bytes"],
        variable_count=point["variable_count"],
        worker_count=1,
        is_limit=seat.is_limit,
        rounds=max(0, len(seat.rounds) - 1),
        measures=summarize(seat.rounds) if not seat.error else {},
        parameters=dict(point.get("settings") or {}),
        note=seat.note,
        error=seat.error,
    )


def summarize(rounds: Sequence[Mapping[str, float]]) -> dict[str, Stat]:
    """Median, lowest and highest of each measure; the first round is told apart, and any round may have its own."""
    first, counted = (rounds[0], rounds[1:]) if len(rounds) > 1 else ({}, rounds)
    found = {}
    for name in dict.fromkeys(name for each in rounds for name in each):
        values = [each[name] for each in counted if name in each] or [first[name]]
        found[name] = Stat(statistics.median(values), min(values), max(values), first.get(name))
    return found
