"""One process of the explorer: real code in a greenlet that stops before every storage call, as a tree of results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import greenlet

from ckptflow.format.layout import PINS_PREFIX
from ckptflow.storage.store import Entry

# ("put" | "create", key, data) ("get" | "delete" | "wait" | "settle", key) ("list", prefix, after, pages)
# ("choose", what) ("copy", source key, key, version, whether bytes are shared)
Op = tuple[Any, ...]


class Result(NamedTuple):
    """What a call gives its process: a value, or an error to raise; the process's clock goes on by `advance_s`."""

    value: Any = None
    error: type[Exception] | None = None
    advance_s: float = 0.0
    is_wrong: bool = False  # an answer that is not what the storage holds


class Facts(NamedTuple):
    """What a process has shown of itself so far: ghost history that invariants read and the code does not."""

    number: int = 0  # the incarnation that it acts for, once it has listed after its claim
    base: str = ""  # the folder that it resumed from
    copies: bool = False  # it is to save that one again first
    goes_back: bool = False  # it was asked for a step by a person, who may ask for what is not there
    has_read: bool = False  # it has restored a step without a claim, and is to take that up with its next save
    met_silence: bool = False  # the storage gave it no reply until the deadline
    was_misled: bool = False  # the storage gave it an answer that was no listing
    saves: int = 0  # that are acknowledged, and have pruned; on a disk, where copies share bytes
    is_saving: bool = False
    ends: str = ""  # "done", or the name of the error that ended it


NOTHING_YET = Facts()


@dataclass(slots=True, eq=False)
class Node:
    """A process's place: it has got some results, and waits in front of `op`."""

    process: Process
    parent: Node | None
    result: Result | None
    op: Op | None = None
    claim: str | None = None  # that it is about to read or to create
    lists_pins: bool = False
    facts: Facts = NOTHING_YET
    promises: tuple[tuple[str, ...], ...] = ()  # acknowledged in the step that led here: ancestry, itself last
    parked: Any = None
    children: dict[Result, Node] = field(default_factory=dict)

    def after(self, result: Result) -> Node:
        """The place where the process is once its call has given `result`."""
        child = self.children.get(result)
        if child is None:
            child = self.children[result] = self.process.advance(self, result)
        return child


class Process:
    """One program, as the tree of all histories met so far. `index` seeds its ids."""

    def __init__(self, index: int, name: str, program: Callable[[Process], None], *, pages: int = 0) -> None:
        self.index, self.name, self.program, self.pages = index, name, program, pages
        self.clock_s = 0.0
        self.draws = 0
        self.facts = Facts()
        self.promises: list[tuple[str, ...]] = []
        self.unpromised: tuple[str, ...] = ()
        self.holds: Callable[[], Any] = lambda: None
        self._main: Any = None
        self.node_count = 0
        self._merge_key: Any = None
        self._merged: dict[Any, Node] = {}
        self.root = Node(self, None, None)
        self._run(self.root, greenlet.greenlet(self._live), None)

    def advance(self, node: Node, result: Result) -> Node:
        """Runs the code from `node`'s call to its next one; where its stack was used for a sibling, from the start."""
        child = Node(self, node, result)
        parked, node.parked = node.parked, None
        if parked is None:
            parked = self._replay(node)
        self._run(child, parked, result)
        if self._merge_key is None:
            return child
        return self._merged.setdefault((self._merge_key, child.op, child.facts, child.promises, self.clock_s), child)

    def _replay(self, node: Node) -> Any:
        path: list[Node] = []
        step: Node | None = node
        while step is not None:
            path.append(step)
            step = step.parent
        running = greenlet.greenlet(self._live)
        scratch = Node(self, None, None)
        for place in reversed(path):
            self._run(scratch, running, place.result)
            if scratch.op != place.op:
                raise RuntimeError(f"{self.name} is not deterministic: {scratch.op} where it was {place.op}")
        return running

    def _run(self, node: Node, running: Any, result: Result | None) -> None:
        global _current
        before, _current = _current, self
        self._main = greenlet.getcurrent()
        self.promises, self._merge_key = [], None
        if result is not None and node.parent is not None:
            self._restore(running)
        elif result is None:
            self.clock_s, self.draws, self.facts, self.unpromised, self.holds = 0.0, 0, Facts(), (), lambda: None
        try:
            node.op = op = running.switch(result)
        finally:
            _current = before
        if op is not None:
            node.claim = op[1] if op[0] in ("get", "create") and op[1].startswith("lineage/") else None
            node.lists_pins = op[:2] == ("list", PINS_PREFIX)
        running.saved = (self.clock_s, self.draws, self.facts, self.unpromised, self.holds)
        node.facts, node.promises = self.facts, tuple(self.promises)
        node.parked = None if running.dead else running
        self.node_count += 1

    def _restore(self, running: Any) -> None:
        self.clock_s, self.draws, self.facts, self.unpromised, self.holds = running.saved

    def _live(self, _: Any) -> None:
        try:
            self.program(self)
            ends = "done"
        except Exception as error:
            ends = type(error).__name__
        self.facts = self.facts._replace(ends=ends)

    # What the program calls

    def call(self, *op: Any) -> Any:
        """Waits in front of `op` until it is this process's turn, and returns or raises what it gives."""
        result: Result = self._main.switch(op)
        self.clock_s += result.advance_s
        if result.advance_s:
            self.show(met_silence=True)
        if result.is_wrong:
            self.show(was_misled=True)
        if result.error is not None:
            raise result.error(f"{op[0]} {op[1]}")
        return result.value

    def merge(self, *everything: Any) -> None:
        """Says that what follows depends on `everything`, and what the process `holds`, alone: histories that agree in
        that are one from here on."""
        self._merge_key = (repr(everything), repr(self.holds()), self.draws)

    def show(self, **facts: Any) -> None:
        self.facts = self.facts._replace(**facts)

    def promise(self, ancestry: tuple[str, ...]) -> None:
        self.promises.append(ancestry)


_current: Process | None = None


def current() -> Process:
    """The process whose code is running now."""
    if _current is None:
        raise RuntimeError("no process is running")
    return _current


VERSION = b"\0"  # an object that can be copied is its bytes, this, and its version


def bytes_of(stored: bytes) -> bytes:
    """What a storage gives of an object: its bytes, without its version."""
    return stored.partition(VERSION)[0]


class YieldingStore:
    """The `Store` of one process: each verb is one call, a delete one for each key.

    `copies`: "" where nothing is copied, "objects" where a copy is an object of its own, "disk" where it is a link.
    """

    url = "memory://root"
    is_create_only = True

    def __init__(self, process: Process, copies: str = "") -> None:
        self._process = process
        self._copies = copies

    @property
    def is_object_store(self) -> bool:
        return self._copies != "disk"

    @property
    def can_copy(self) -> bool:
        return bool(self._copies)

    def put(self, key: str, data: memoryview) -> str | None:
        if not self.can_copy or not key.endswith(".safetensors"):
            self._process.call("put", key, bytes(data))
            return None
        self._process.call("put", key, bytes(data) + VERSION + key.encode())
        return key

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        copied: str = self._process.call("copy", source_key, key, version, self._copies == "disk")
        return copied

    def create(self, key: str, data: memoryview) -> None:
        self._process.call("create", key, bytes(data))

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        data = bytes_of(self._process.call("get", key))[start : start + len(into)]
        into[: len(data)] = data
        return len(data)

    def list(self, prefix: str = "") -> list[Entry]:
        found: list[Entry] = []
        while True:
            after = found[-1].key if found else ""
            page = self._process.call("list", prefix, after, self._process.pages)
            found += [Entry(key, size) for key, size in page]
            if not self._process.pages or len(page) < self._process.pages:
                return found

    def delete(self, keys: Any) -> None:
        for key in keys:
            self._process.call("delete", key)

    def close(self) -> None:
        pass
