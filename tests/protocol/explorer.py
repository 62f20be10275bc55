"""Every interleaving of a few incarnations that run the real commit code over one storage, breadth first.

A process is one incarnation: real code (`lives.py`) in a greenlet that hands over control before every storage call.
One call is one step. What a process does next depends on nothing but the results that it has got, so each process is
explored as a tree of results: its code runs once for each new history, not once for each interleaving. A state is the
storage's content, each process's place in its tree, creates still under way, what was promised, and the faults left.

What is covered, exhaustively for each scenario of `scenarios.py`: every order of the storage calls of its processes; a
crash before every call (a process that is never scheduled again: the invariants hold in every state, so also there);
zombies (scheduled late); deletes key by key; and, as many as the scenario's budget says: creates whose reply is lost
(landed; landed and tried again below; still under way, to land at any later time or never; the same until the deadline
has passed), reads that time out, one shard or manifest damaged (a shard under all its names, where copies are links),
rollbacks, old claims removed, the root or `lineage/` emptied by hand, creates that replace what is there, listings that
are answered as if nothing were there, shards that another file is put in the place of, copies that are refused, or made
and not answered. Of what is copied from a file that has gone wrong nothing is promised: nobody reads it then.

Not covered: more processes, saves and faults than a scenario has; more than one worker in an incarnation (the votes are
tested in `tests/commit`); listings are one step, but for the scenarios "in pages"; a root that is emptied, or a
manifest that goes wrong, while a request to delete is under way, which nothing can call back (`scenarios.LIMITS` shows
that it breaks I2); a manifest damaged before its creator has read it back (which is then fenced).
One more thing nothing can prevent, and I5 leaves out: a create that is still under way, or sent again, when its
checkpoint has been committed and pruned makes a ghost, a manifest without shards. I1 to I4 hold with ghosts, too: one
is never the newest that counts, and the next prune takes it.

Two reductions. Histories of one process are one where everything that its code still holds is equal (`Process.merge`:
after the look, before and after a claim, after a start and after a save). And reading a claim that is there, or trying
to create it, is done at once where nothing can remove claims, since it commutes with every other call (and stands in no
trace); processes with the same program start in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ckptflow.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageUnavailableError,
)
from tests.protocol.contents import Budget as Budget
from tests.protocol.contents import Content as Content
from tests.protocol.contents import Storage as Storage
from tests.protocol.process import VERSION, Facts, Node, Op, Result, bytes_of

PAST_EVERY_DEADLINE_S = 1e6
UNCLAIMED = "lineage/"  # marks that claims were deleted by hand
EMPTIED = "everything"  # and all else with them
UNREADABLE = "a manifest"  # marks that a manifest went wrong
ANY_VERSION = "any"  # a copy without its condition
MET = "damage"  # marks that a restore has met it: from then on what is copied is known to be sound
LATE = "late after "  # marks that a manifest landed late, and how many saves were done by then
KNOWN = "known to "  # marks a promise, or a claim, that was there when a process had read what it takes up later
CUT = "cut off: "  # marks what such a process has cut off, and knew
GHOST = "ghost of "  # marks a folder whose manifest was deleted: a create under way can bring it back, without shards


class State(NamedTuple):
    """One state of the whole; small numbers and tuples, so that it hashes fast. `content` is interned."""

    content: int
    nodes: tuple[Node, ...]
    flying: frozenset[tuple[str, bytes]]
    promised: frozenset[str]
    damaged: frozenset[str]
    budget: Budget


class ViolationError(Exception):
    """An invariant does not hold; the text starts with its name."""


@dataclass(slots=True)
class Report:
    """What one search found."""

    states: int
    steps: int
    histories: int
    seconds: float
    broken: str = ""
    trace: tuple[str, ...] = ()
    is_complete: bool = True


OK, EXISTS = Result(), Result(error=ObjectExistsError)
NO_LISTING = Result((), is_wrong=True)
MISSING, SILENT = Result(error=ObjectNotFoundError), Result(error=StorageUnavailableError)
CHANGED, REFUSED = Result(error=ObjectChangedError), Result(error=StorageAccessError)
SILENT_FOR_LONG = Result(error=StorageUnavailableError, advance_s=PAST_EVERY_DEADLINE_S)

Move = tuple[str, State, int]  # how, the state after it, the process that did it (-1: nobody's), see `Explorer.told`


class Explorer:
    """Moves between states; `promised_after` keeps the ghost history (see `invariants`)."""

    def __init__(
        self,
        storage: Storage,
        promised_after: Callable[[State, State, int], State],
        *,
        is_exclusive: bool = True,
        spared: frozenset[str] = frozenset(),
    ) -> None:
        """`is_exclusive`: whether a create is refused if the object is there; else it replaces it.

        `spared`: while which of "delete", "claim" and "manifest" are under way nobody changes the root by hand.
        """
        self.storage = storage
        self.is_exclusive = is_exclusive
        self._spared = spared
        self._promised_after = promised_after
        self._steps: dict[object, list[tuple[str, Node, State]]] = {}

    def outcomes(self, state: State, op: Op) -> Iterator[tuple[str, Result, State]]:
        """What a call can give, the usual first, and the state that it leaves but for the process's own place."""
        storage, content, budget = self.storage, state.content, state.budget
        verb, key = op[0], op[1]
        held = storage.contents[content].get(key)
        if verb == "get":
            yield "", MISSING if held is None else Result(held), state
            if budget.timeouts and key.endswith(".safetensors"):
                yield "times out", SILENT, state._replace(budget=budget._replace(timeouts=budget.timeouts - 1))
        elif verb == "list":
            yield "", storage.list(content, op), state
            if budget.blanks:
                yield "is told of nothing", NO_LISTING, state._replace(budget=budget._replace(blanks=budget.blanks - 1))
        elif verb == "put":
            yield "", OK, state._replace(content=storage.write(content, key, op[2]))
        elif verb == "delete":
            left = state.damaged
            if key.endswith("/manifest.json") and held is not None:
                left |= {GHOST + key.partition("/")[0]}
            yield "", OK, state._replace(content=storage.write(content, key, None), damaged=left)
        elif verb == "copy":
            yield from self._copies(state, op)
        elif verb == "create":
            yield from self._creates(state, key, op[2], held)
        elif verb in ("wait", "settle"):
            yield "", OK, state
        elif verb == "choose":
            yield "", Result(False), state
            if getattr(budget, key):
                yield key, Result(True), state._replace(budget=budget._replace(**{key: getattr(budget, key) - 1}))

    def _creates(self, state: State, key: str, data: bytes, held: bytes | None) -> Iterator[tuple[str, Result, State]]:
        if not self.is_exclusive:
            held = None
        landed = state._replace(content=self.storage.write(state.content, key, data)) if held is None else state
        if key.endswith("/manifest.json") and b'"reason":"damage"' in data:
            landed = landed._replace(damaged=landed.damaged | {MET})
        yield ("taken" if held is not None else ""), (EXISTS if held is not None else OK), landed
        if not state.budget.lost:
            return
        budget = state.budget._replace(lost=state.budget.lost - 1)
        if held is None:
            yield "lands, its reply is lost", SILENT, landed._replace(budget=budget)
            yield "lands, tried again below", EXISTS, landed._replace(budget=budget)
        late = state._replace(flying=state.flying | {(key, data)}, budget=budget)
        yield "no reply, still under way", SILENT, late
        yield "no reply until the deadline, still under way", SILENT_FOR_LONG, late

    def _copies(self, state: State, op: Op) -> Iterator[tuple[str, Result, State]]:
        _, source_key, key, version, is_shared = op
        held = self.storage.contents[state.content].get(source_key)
        data, _, there = (held or b"").partition(VERSION)
        if held is None:
            yield "", MISSING, state
        elif version not in (there.decode(), ANY_VERSION):
            yield "is another", CHANGED, state
        else:
            made = there.decode() if is_shared else key
            copied = state._replace(content=self.storage.write(state.content, key, data + VERSION + made.encode()))
            is_bad = source_key.partition("/")[0] in state.damaged
            if version != ANY_VERSION and is_bad and MET not in state.damaged:
                copied = copied._replace(damaged=state.damaged | {key.partition("/")[0]})  # nobody has read it since
            yield "", Result(made), copied
            if state.budget.refusals:
                spent = state.budget._replace(refusals=state.budget.refusals - 1)
                yield "is refused", REFUSED, state._replace(budget=spent)
                yield "is made, its reply is lost", SILENT, copied._replace(budget=spent)

    def moves(self, state: State) -> Iterator[Move]:
        """Every step that can come next."""
        for i, node in enumerate(state.nodes):
            if node.op is not None and self._is_first_alike(state, i) and self._is_ready(state, i, node.op):
                yield from self._moves_of(state, i, node.op)
        if state.flying or any(state.budget):
            yield from self._nobodys(state)

    def _moves_of(self, state: State, i: int, op: Op) -> Iterator[Move]:
        content, nodes, flying, promised, damaged, budget = state
        before, after = nodes[:i], nodes[i + 1 :]
        memo = (content, nodes[i], flying, damaged, budget)  # all that a call's outcome depends on
        steps = self._steps.get(memo)
        if steps is None:
            found = self.outcomes(state, op)
            steps = self._steps[memo] = [(how, nodes[i].after(result), left) for how, result, left in found]
        for how, node, left in steps:
            moved = State(left.content, (*before, node, *after), left.flying, promised, left.damaged, left.budget)
            yield how, self._promised_after(state, moved, i), i

    @staticmethod
    def told(state: State, how: str, by: int) -> str:
        """A move in words."""
        node = state.nodes[by]
        if by < 0 or node.op is None:
            return how
        return f"{node.process.name} {node.op[0]}s {node.op[1]}" + (f" ({how})" if how else "")

    def eager(self, state: State) -> Move | None:
        """A step that commutes with every other one: one on a claim that is there and cannot be removed, and listing
        pins, since nobody pins here."""
        budget = state.budget
        for i, node in enumerate(state.nodes):
            if node.lists_pins and node.op is not None and not budget.blanks:
                return next(self._moves_of(state, i, node.op))
        if budget.trims or budget.empties or budget.losses or not self.is_exclusive:
            return None
        content = self.storage.contents[state.content]
        for i, node in enumerate(state.nodes):
            op = node.op
            if op is not None and node.claim in content and not (op[0] == "create" and budget.lost):
                return next(self._moves_of(state, i, op))
        return None

    def settled(self, state: State) -> State:
        """The state once every step has been made that commutes with all others: they need no states of their own."""
        while (move := self.eager(state)) is not None:
            state = move[1]
        return state

    def _is_ready(self, state: State, i: int, op: Op) -> bool:
        """A pause after a claim outlasts whoever has listed before it."""
        if op[0] == "settle":
            others = (*state.nodes[:i], *state.nodes[i + 1 :])
            return all(n.op is None or n.parent is None or n.facts.number or n.op[0] == "settle" for n in others)
        return op[0] != "wait" or op[1] in self.storage.contents[state.content]

    @staticmethod
    def _is_first_alike(state: State, i: int) -> bool:
        node = state.nodes[i]
        if node.parent is not None or i == 0:
            return True
        before = state.nodes[i - 1]
        return before.parent is not None or before.process.program is not node.process.program

    @staticmethod
    def _is_unconfirmed(state: State, key: str) -> bool:
        """Whether its creator is about to read it back: damaged in between, it would be taken for another's."""
        waiting = [node for node in state.nodes if node.op is not None and node.op[1] == key]
        return any(node.op[0] == "create" or _verb(node.parent) == "create" for node in waiting if node.op)

    def _nobodys(self, state: State) -> Iterator[Move]:
        storage, budget = self.storage, state.budget
        for key, data in sorted(state.flying):
            after = state._replace(flying=state.flying - {(key, data)})
            if key not in storage.contents[state.content]:
                after = after._replace(content=storage.write(state.content, key, data))
                saves = max(node.facts.saves for node in state.nodes)
                after = after._replace(damaged=after.damaged | ({f"{LATE}{saves}"} if saves else set()))
            yield f"the late {key} lands", self._promised_after(state, after, -1), -1
        if budget.damages:
            spent = budget._replace(damages=budget.damages - 1)
            committed = [k for k in storage.contents[state.content] if k.endswith("/manifest.json")]
            for manifest in sorted(committed):
                folder = manifest.partition("/")[0]
                files = [k for k in storage.contents[state.content] if k.startswith(folder + "/")]
                is_whole = folder not in state.damaged and not self._is_unconfirmed(state, manifest)
                for key in sorted(files) if is_whole else ():
                    bad, folders = storage.damage(state.content, key)
                    after = state._replace(content=bad, budget=spent, damaged=state.damaged | folders)
                    yield f"{key} is damaged", self._promised_after(state, after, -1), -1
        yield from self._by_hand(state)
        if budget.trims:
            claims = sorted(k for k in storage.contents[state.content] if k.startswith("lineage/"))
            for key in claims[:-1]:
                spent = budget._replace(trims=budget.trims - 1)
                gone = state._replace(content=storage.write(state.content, key, None), budget=spent)
                yield f"old {key} is removed", gone, -1

    def _by_hand(self, state: State) -> Iterator[Move]:
        """What a person may do to a live root."""
        storage, budget = self.storage, state.budget
        content = storage.contents[state.content]
        if not (budget.empties or budget.losses or budget.lapses or budget.unreadable or budget.replaced):
            return
        if not content or any(_kind(node.op) in self._spared for node in state.nodes):
            return
        for key in sorted(k for k, data in content.items() if VERSION in data) if budget.replaced else ():
            other = b"?" * len(bytes_of(content[key])) + VERSION + key.encode() + b" by hand"
            spent = budget._replace(replaced=budget.replaced - 1)
            marked = state.damaged | {key.partition("/")[0]}
            replaced = state._replace(content=storage.write(state.content, key, other), budget=spent, damaged=marked)
            yield f"{key} is replaced", self._promised_after(state, replaced, -1), -1
        if budget.empties:
            marks = {UNCLAIMED, EMPTIED}
            yield (
                "the root is emptied",
                state._replace(
                    content=storage.intern({}),
                    budget=budget._replace(empties=budget.empties - 1),
                    damaged=state.damaged | marks,
                    promised=frozenset(),
                ),
                -1,
            )
        if budget.losses:
            kept = {key: data for key, data in content.items() if not key.startswith("lineage/")}
            spent = budget._replace(losses=budget.losses - 1)
            marked = state.damaged | {UNCLAIMED}
            yield (
                "lineage/ is deleted",
                state._replace(content=storage.intern(kept), budget=spent, damaged=marked),
                -1,
            )
        for claim in sorted(key for key in content if key.startswith("lineage/"))[-1:] if budget.lapses else ():
            gone = storage.write(state.content, claim, None)
            spent = budget._replace(lapses=budget.lapses - 1)
            yield (
                f"{claim} is deleted",
                state._replace(content=gone, budget=spent, damaged=state.damaged | {UNCLAIMED}),
                -1,
            )
        for manifest in sorted(key for key in content if key.endswith("/manifest.json")) if budget.unreadable else ():
            if not self._is_unconfirmed(state, manifest):
                bad = storage.write(state.content, manifest, b"?" * len(content[manifest]))
                spent = budget._replace(unreadable=budget.unreadable - 1)
                marked = state.damaged | {UNREADABLE, manifest.partition("/")[0]}
                after = state._replace(content=bad, budget=spent, damaged=marked, promised=frozenset())
                yield f"{manifest} can no longer be read", after, -1

    def alone(self, content: int, node: Node) -> tuple[Facts, int, tuple[tuple[str, ...], ...]]:
        """Lets one process run to its end with nobody else there: what it shows, what it leaves, what it promises."""
        state = State(content, (node,), frozenset(), frozenset(), frozenset(), Budget())
        promises: list[tuple[str, ...]] = []
        for _ in range(400):
            place = state.nodes[0]
            if place.op is None:
                return place.facts, state.content, tuple(promises)
            _, result, after = next(self.outcomes(state, place.op))
            place = place.after(result)
            promises += place.promises
            state = after._replace(nodes=(place,))
        return place.facts._replace(ends="stuck"), state.content, tuple(promises)


def search(
    explorer: Explorer,
    start: State,
    check: Callable[[State | None, State, int], None],
    *,
    max_states: int,
) -> Report:
    """Breadth first from `start` until all is seen, `check` raises, or `max_states` is reached. Traces are shortest."""
    began = time.monotonic()
    came_from: dict[State, _Before | None] = {start: None}
    todo = deque([start])
    steps = 0
    processes = {node.process for node in start.nodes}

    def report(broken: str = "", trace: tuple[str, ...] = (), *, is_complete: bool = True) -> Report:
        histories = sum(process.node_count for process in processes)
        return Report(len(came_from), steps, histories, time.monotonic() - began, broken, trace, is_complete)

    try:
        check(None, start, -1)
    except ViolationError as violation:
        return report(str(violation))
    while todo:
        state = todo.popleft()
        for how, move, by in explorer.moves(state):
            steps += 1
            after = explorer.settled(move)
            is_new = after not in came_from
            if is_new:
                came_from[after] = (state, how, by)
                todo.append(after)
            elif state.content == after.content or by < 0:
                continue  # only a step that changes the storage can be wrong where the state after it is not
            try:
                check(state, after, by)
            except ViolationError as violation:
                return report(str(violation), (*_trace(explorer, came_from, state), explorer.told(state, how, by)))
        if len(came_from) >= max_states:
            return report(is_complete=False)
    return report()


def _kind(op: Op | None) -> str:
    """Which request is under way that nothing can call back: "delete", "claim" or "manifest"; "" if none is."""
    if op is None or op[0] == "delete":
        return op[0] if op else ""
    return ("claim" if op[1].startswith("lineage/") else "manifest") if op[0] == "create" else ""


def _verb(node: Node | None) -> str:
    return node.op[0] if node is not None and node.op is not None else ""


_Before = tuple[State, str, int]  # a state, and which of its moves led on


def _trace(explorer: Explorer, came_from: dict[State, _Before | None], state: State) -> tuple[str, ...]:
    path: list[str] = []
    while (step := came_from[state]) is not None:
        state = step[0]
        path.append(explorer.told(*step))
    return tuple(reversed(path))
