"""Who does the rounds: this process, or several of this machine that save and restore together."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Protocol

import msgspec

from ckptflow import errors
from ckptflow.bench.grid import Setting
from ckptflow.bench.rates import Point, Rates
from ckptflow.bench.rounds import BenchPhase, BenchRounds, Taken
from ckptflow.errors import PeerError, StorageError
from ckptflow.storage.store import Store

_ENDING_S = 5.0  # for a worker that has nothing to do to end by itself


class Hello(msgspec.Struct, frozen=True):
    """The first line to a worker: what it is to measure. The URL is that of the folder made for the measurement."""

    url: str
    storage_options: dict[str, Any]
    size_bytes: int
    worker: int


class Order(msgspec.Struct, frozen=True):
    """Each further line to a worker: a phase of a round, and of which setting."""

    phase: BenchPhase
    setting: Setting


class WorkerReply(msgspec.Struct, frozen=True):
    """A worker's line to each: what it took, or the name of the error and its text. To the first, the client's name."""

    taken: Taken | None = None
    client: str = ""
    error: str = ""
    text: str = ""


class Crew(Protocol):
    """Workers that do a phase at the same time."""

    @property
    def client(self) -> str:
        """The raw client's name."""

    @property
    def size_bytes(self) -> int:
        """Of what each of them saves."""

    def do(self, phase: BenchPhase, setting: Setting) -> Sequence[Taken]:
        """What each worker took, once the last one is done."""


class Single:
    """This process alone. Implements `Crew`."""

    def __init__(self, store: Store, size_bytes: int) -> None:
        self._rounds = BenchRounds(store, size_bytes)

    @property
    def client(self) -> str:
        return self._rounds.client

    @property
    def size_bytes(self) -> int:
        return self._rounds.size_bytes

    def do(self, phase: BenchPhase, setting: Setting) -> Sequence[Taken]:
        return [self._rounds.do(phase, setting)]


class WorkerTeam:
    """Processes of their own, each with its own client, memory and interpreter. Implements `Crew`.

    They are in process groups of their own: Ctrl-C comes to this process alone, which ends them. One whose line breaks
    off, because this process was killed, ends by itself.
    """

    def __init__(self, url: str, storage_options: dict[str, Any], size_bytes: int, count: int) -> None:
        self.size_bytes = size_bytes
        self.processes: list[subprocess.Popen[bytes]] = []
        self._decoder = msgspec.json.Decoder(WorkerReply)
        command = [sys.executable, "-P", "-m", "ckptflow.bench.worker"]
        try:
            for _ in range(count):
                self.processes.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
                )
            hellos = [Hello(url, storage_options, size_bytes, worker) for worker in range(count)]
            self.client = self._ask(hellos)[0].client
        except BaseException:
            self.end()
            raise

    def do(self, phase: BenchPhase, setting: Setting) -> Sequence[Taken]:
        order = Order(phase, setting)
        return [answer.taken or Taken(0.0) for answer in self._ask([order] * len(self.processes))]

    def _ask(self, lines: Sequence[msgspec.Struct]) -> list[WorkerReply]:
        """The answers, in the order of the workers; the first error of one is raised once all have answered."""
        for process, line in zip(self.processes, lines, strict=True):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its answer says that it has ended
                process.stdin.write(msgspec.json.encode(line) + b"\n")
                process.stdin.flush()
        answers = [self._answer(worker) for worker in range(len(self.processes))]
        for worker, answer in enumerate(answers):
            if answer.error:
                raise _kind(answer.error)(f"worker {worker}: {answer.text}")
        return answers

    def _answer(self, worker: int) -> WorkerReply:
        process = self.processes[worker]
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PeerError(f"worker {worker} of the measurement ended by itself (exit code {process.wait()})")
        return self._decoder.decode(line)

    def end(self) -> None:
        """Ends them all: those that are idle at once and by themselves."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def kill(self) -> None:
        """The same in the middle of their work."""
        for process in self.processes:
            process.kill()
        self.end()


def _kind(name: str) -> type[Exception]:
    """The class of ours that a worker has named, so that its error ends the command as one of this process would."""
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, errors.CkptflowError) else StorageError


@contextlib.contextmanager
def crew_of(count: int, store: Store, url: str, storage_options: dict[str, Any], size_bytes: int) -> Iterator[Crew]:
    """`count` workers in the folder that `url` and `store` are; they have ended when the block is left."""
    if count == 1:
        yield Single(store, size_bytes)
        return
    team = WorkerTeam(url, storage_options, size_bytes, count)
    try:
        yield team
    except BaseException:
        team.kill()
        raise
    team.end()


def run_round(crew: Crew, point: Point) -> None:
    """One round of one setting: save and restore by ours and by the raw client, all deleted again.

    Who begins changes from round to round. Workers begin each of the four together; it is over with the slowest.
    """
    setting = point.setting
    crew.do("begin", setting)
    try:
        orders: list[tuple[BenchPhase, BenchPhase]] = [("save", "restore"), ("raw save", "raw restore")]
        for save, restore in orders if point.rounds % 2 == 0 else reversed(orders):
            saved, restored = crew.do(save, setting), crew.do(restore, setting)
            _note(point.save, saved, crew.size_bytes, is_raw=save == "raw save")
            _note(point.restore, restored, crew.size_bytes, is_raw=save == "raw save")
    except Exception:
        with contextlib.suppress(Exception):
            crew.do("end", setting)
        raise
    crew.do("end", setting)


def _note(rates: Rates, taken: Sequence[Taken], size_bytes: int, *, is_raw: bool) -> None:
    seconds = [each.seconds for each in taken]
    bytes_per_s = len(taken) * size_bytes / max(seconds)
    if is_raw:
        rates.raw.append(bytes_per_s)
        return
    rates.ours.append(bytes_per_s)
    rates.cpu_s.append(sum(each.cpu_s for each in taken) / (len(taken) * size_bytes) * 2**30)
    rates.slowest.append(max(seconds) / median(seconds))
    rates.streams = round(median(each.streams for each in taken))
    for each in taken:
        rates.request_s += each.request_s
