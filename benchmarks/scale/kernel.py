"""Virtual time: code that sleeps, waits and starts threads runs in greenlets, and a clock jumps from event to event."""

from __future__ import annotations

import contextlib
import heapq
import importlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import greenlet

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# The modules of ckptflow that wait, or do several calls at once: here they use this clock, and greenlets.
_CLOCKS = (
    "ckptflow.commit.finding",
    "ckptflow.commit.lineage",
    "ckptflow.commit.receipts",
    "ckptflow.commit.together",
    "ckptflow.peers.progress",
    "ckptflow.peers.rounds",
)
_AWAKE = (
    "ckptflow.commit.coordinator",
    "ckptflow.commit.finding",
    "ckptflow.commit.lineage",
    "ckptflow.commit.receipts",
    "ckptflow.peers.progress",
    "ckptflow.peers.rounds",
)
_A_TIME = "2026-01-01T00:00:00+00:00"
_THREADS = ("ckptflow.commit.catalog", "ckptflow.commit.receipts")


class Task:
    """Something that runs in virtual time. `cpu_s`: the real time that its code took; `ended_s`: when it ended."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.result: Any = None
        self.error: BaseException | None = None
        self.cpu_s = 0.0
        self.ended_s: float | None = None
        self.over = Signal()


class Signal:
    """Something that happens once, for those who wait for it."""

    def __init__(self) -> None:
        self.is_set = False
        self.waiting: list[_Wake] = []


class _Wake:
    """A task that goes on at some time, or when a signal is set: whichever comes first."""

    def __init__(self, task: Task, running: Any) -> None:
        self.task, self.running, self.is_over = task, running, False


class Kernel:
    """The clock, and what is to happen when. Of what is due at one time, what was asked for first comes first."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, _Wake | Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._hub: Any = None
        self._current: Task | None = None

    def monotonic(self) -> float:
        return self.now_s

    def spawn(self, run: Callable[[], object]) -> Task:
        """Begins `run` now. Whoever started it awaits it: its error is raised there."""
        task = Task(run)

        def live(_: object = None) -> None:
            try:
                task.result = task.run()
            except Exception as error:
                task.error = error
            task.ended_s = self.now_s
            self.set(task.over)

        self._push(self.now_s, _Wake(task, greenlet.greenlet(live)))
        return task

    def at(self, at_s: float, do: Callable[[], None]) -> None:
        """Calls `do` at that time; it does not wait."""
        self._push(max(at_s, self.now_s), do)

    def sleep(self, duration_s: float) -> None:
        self._switch(self.now_s + max(0.0, duration_s))

    def wait(self, signal: Signal, timeout_s: float | None = None) -> bool:
        """Whether it is set by then."""
        if not signal.is_set:
            self._switch(None if timeout_s is None else self.now_s + timeout_s, signal)
        return signal.is_set

    def set(self, signal: Signal) -> None:
        signal.is_set = True
        for wake in signal.waiting:
            if not wake.is_over:
                self._push(self.now_s, wake)
        signal.waiting = []

    def join(self, tasks: Sequence[Task]) -> list[Any]:
        """What these returned; raises the first error."""
        for task in tasks:
            self.wait(task.over)
        return _results(tasks)

    def finish(self, tasks: Sequence[Task]) -> list[Any]:
        """The same from outside: lets everything happen first."""
        self.run()
        return _results(tasks)

    def at_once(self, count: int, call: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """As `ckptflow.threads.at_once`. What the calls take of the processor counts for who makes them."""
        numbers, results, caller = iter(range(len(items))), dict[int, _Result](), self._current

        def work() -> None:
            for number in numbers:
                results[number] = call(items[number])

        tasks = [self.spawn(work) for _ in range(min(count, len(items)))]
        self.join(tasks)
        if caller is not None:
            caller.cpu_s += sum(task.cpu_s for task in tasks)
        return [results[number] for number in range(len(items))]

    def run(self) -> None:
        """Until nothing is left to happen."""
        self._hub = greenlet.getcurrent()
        while self._queue:
            at_s, _, due = heapq.heappop(self._queue)
            if not isinstance(due, _Wake):
                self.now_s = at_s
                due()
            elif not due.is_over:
                self.now_s, due.is_over = at_s, True
                self._current, began = due.task, time.process_time()
                due.running.parent = self._hub  # where it goes on when a task has ended
                due.running.switch()
                due.task.cpu_s += time.process_time() - began

    def _push(self, at_s: float, due: _Wake | Callable[[], None]) -> None:
        heapq.heappush(self._queue, (at_s, next(self._numbers), due))

    def _switch(self, at_s: float | None, signal: Signal | None = None) -> None:
        if self._current is None:
            raise RuntimeError("only a task can wait")
        wake = _Wake(self._current, greenlet.getcurrent())
        if signal is not None:
            signal.waiting.append(wake)
        if at_s is not None:
            self._push(at_s, wake)
        self._hub.switch()


def _results(tasks: Sequence[Task]) -> list[Any]:
    for task in tasks:
        if task.error is not None:
            raise task.error
        if task.ended_s is None:
            raise RuntimeError("a task waits for what never comes")
    return [task.result for task in tasks]


@contextlib.contextmanager
def virtual_time(kernel: Kernel, seed: int) -> Iterator[None]:
    """In the block, those modules of ckptflow that wait do so by this clock; ids are drawn by the seed, and what says
    when and where is the same each time."""
    clock = SimpleNamespace(monotonic=kernel.monotonic, sleep=kernel.sleep)
    chance = random.Random(seed)
    lineage, assembly = _module("ckptflow.commit.lineage"), _module("ckptflow.commit.assembly")
    beginning = _module("ckptflow.commit.beginning")

    def draw_id() -> str:
        return f"{chance.getrandbits(124):032x}"

    patches: list[Any] = [
        *(mock.patch.object(_module(name), "time", clock) for name in _CLOCKS),
        *(mock.patch.object(_module(name), "at_once", kernel.at_once) for name in _THREADS),
        *(mock.patch.object(_module(name), "awake_s", kernel.monotonic) for name in _AWAKE),
        *(mock.patch.object(module, "now_text", return_value=_A_TIME) for module in (lineage, assembly)),
        *(mock.patch.object(module, "new_writer_id", draw_id) for module in (lineage, beginning)),
        mock.patch.object(lineage, "os", SimpleNamespace(getpid=lambda: 1)),
        mock.patch.object(lineage, "socket", SimpleNamespace(gethostname=lambda: "host")),
        mock.patch.object(_module("ckptflow.commit.together"), "socket", SimpleNamespace(gethostname=lambda: "host")),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _module(name: str) -> Any:
    return importlib.import_module(name)
