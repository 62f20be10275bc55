"""What is explored: for each scenario its processes, its faults, and the bound; and what a mutation is searched in."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from ckptflow.commit import coordinator as coordinator_module
from ckptflow.commit import prune as prune_module
from tests.protocol.explorer import Budget, Explorer, Report, State, Storage, search
from tests.protocol.invariants import Invariants, Promises
from tests.protocol.process import Process
from tests.protocol.programs import (
    Program,
    beside_the_best,
    deletes_by_hand,
    life,
    on_a_full_storage,
    prunes_by_hand,
    prunes_by_hand_at_length,
    reads,
    reads_and_saves_twice,
    running,
)

MAX_STATES = 3_000_000
NO_FAULTS = Budget()


@dataclass(frozen=True)
class Scenario:
    """Process 0 runs alone until it has committed `kept` steps and acts for incarnation `number`, and then goes on
    (`is_alive`) or is never seen again."""

    programs: tuple[Program, ...]
    kept: int = 0
    number: int = 0
    is_alive: bool = True
    budget: Budget = NO_FAULTS
    without_claims: bool = False
    pages: int = 0
    is_exclusive: bool = True
    spared: frozenset[str] = frozenset()  # see `Explorer`
    deletes_two: bool = False  # see `Invariants`


def explore(scenario: Scenario, *, only: str | None = None, max_states: int = MAX_STATES) -> Report:
    """All states of one scenario, or those up to the first that breaks an invariant (`only` that one, where given)."""
    storage = Storage()
    explorer = Explorer(storage, Promises(storage.contents), is_exclusive=scenario.is_exclusive, spared=scenario.spared)
    with pytest.MonkeyPatch.context() as patch:
        if not (
            scenario.budget.damages or scenario.budget.unreadable
        ):  # it could only be gone: then nothing is deleted
            for module in (coordinator_module, prune_module):
                patch.setattr(module, "doubt_newest", lambda *_: None)
        processes = [Process(i, f"P{i}", program, pages=scenario.pages) for i, program in enumerate(scenario.programs)]
        next_life = Process(len(processes), "next", NEXT_LIFE).root
        start = _after_setup(explorer, processes, scenario)
        invariants = Invariants(explorer, next_life, only, deletes_two=scenario.deletes_two)
        with _rarely_collected():
            return search(explorer, start, invariants, max_states=max_states)


@contextlib.contextmanager
def _rarely_collected() -> Iterator[None]:
    """All states are kept: looking through them for garbage, again and again, finds little."""
    before = gc.get_threshold()
    gc.set_threshold(500_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


NEXT_LIFE = life(saves=1)


def _after_setup(explorer: Explorer, processes: list[Process], scenario: Scenario) -> State:
    roots = tuple(process.root for process in processes)
    state = State(explorer.storage.intern({}), roots, frozenset(), frozenset(), frozenset(), Budget())
    promised = 0
    while promised < scenario.kept or state.nodes[0].facts.number < scenario.number:
        before = state
        _, state, _ = next(explorer.moves(state))
        promised += len(state.nodes[0].promises)
        if state.nodes[0] is before.nodes[0]:
            raise RuntimeError("process 0 does not get on")
    content = explorer.storage.contents[state.content]
    if scenario.without_claims:
        content = {key: data for key, data in content.items() if not key.startswith("lineage/")}
    nodes = state.nodes if scenario.is_alive else state.nodes[1:]
    return state._replace(content=explorer.storage.intern(content), nodes=nodes, budget=scenario.budget)


ONE = life(saves=1)
TWO = life(saves=2)
BACK = life(saves=1, may_roll_back_to=1)
DELETES = frozenset({"delete"})
ROLLBACK, DAMAGE, LOST, TRIM = Budget(rollbacks=1), Budget(damages=1), Budget(lost=1), Budget(trims=1)

# Each run of the tests explores them whole, but for what is `LONG`: of that it explores a slice, and "chaos" the whole.
SMALL: dict[str, Scenario] = {
    "takeover": Scenario((running(kept=1, saves=2), TWO), kept=1),
    "takeover, in pages": Scenario((running(kept=1), ONE), kept=1, pages=2),
    "rollback": Scenario((running(kept=2), BACK), kept=2, budget=ROLLBACK),
    "rollback in a running process": Scenario((running(kept=2, saves=0, then_back_to=1), ONE), kept=2),
    "damage": Scenario((running(kept=2), ONE), kept=2, budget=DAMAGE),
    "damage and rollback": Scenario((running(kept=2), BACK), kept=2, budget=Budget(damages=1, rollbacks=1)),
    "cold": Scenario((ONE, ONE)),
    "cold, claims trimmed": Scenario((ONE, ONE), budget=TRIM),
    "takeover, claims trimmed": Scenario((running(kept=1), ONE), kept=1, budget=TRIM),
    "no claims": Scenario((running(kept=2), BACK, BACK), kept=2, is_alive=False, budget=ROLLBACK, without_claims=True),
    "give up": Scenario((running(kept=1, saves=2), ONE), kept=1, budget=LOST),
    "cold, replies lost": Scenario((ONE, ONE), budget=LOST),
    "read times out": Scenario((running(kept=2), ONE), kept=2, budget=Budget(timeouts=1)),
    "prune by hand, beside a job": Scenario((running(kept=2, saves=2), prunes_by_hand), kept=2),
    "prune by hand, beside a start": Scenario((running(kept=2), ONE, prunes_by_hand), kept=2, is_alive=False),
    "delete by hand, beside a job": Scenario((running(kept=2, saves=2), deletes_by_hand), kept=2),
    "delete by hand during a rollback": Scenario(
        (running(kept=2), BACK, deletes_by_hand), kept=2, is_alive=False, budget=ROLLBACK
    ),
    "root emptied": Scenario((running(kept=1, saves=1), TWO), kept=1, budget=Budget(empties=1), spared=DELETES),
    "root emptied, numbers skipped": Scenario(
        (running(kept=1, restarts=2), ONE), kept=1, number=3, budget=Budget(empties=1), spared=DELETES
    ),
    "root emptied, numbers skipped and committed": Scenario(
        (running(kept=1, restarts=1, kept_after=1), ONE), kept=2, budget=Budget(empties=1), spared=DELETES
    ),
    "lineage/ deleted": Scenario((running(kept=1, saves=1), TWO), kept=1, budget=Budget(losses=1)),
    "lineage/ deleted in a start": Scenario((ONE, ONE), budget=Budget(losses=1)),
    "lineage/ deleted, numbers skipped": Scenario(
        (running(kept=1, restarts=2), ONE), kept=1, number=3, budget=Budget(losses=1)
    ),
    "an answer that is no listing": Scenario((running(kept=1), ONE), kept=1, budget=Budget(blanks=1)),
    "creates not exclusive": Scenario((ONE, ONE), is_exclusive=False),
    "a manifest that cannot be read": Scenario(
        (running(kept=2), ONE, prunes_by_hand), kept=2, is_alive=False, budget=Budget(unreadable=1), spared=DELETES
    ),
    "a sweep, and listings that lack manifests": Scenario(
        (running(kept=2), on_a_full_storage, prunes_by_hand), kept=2, is_alive=False, budget=Budget(lacks=2)
    ),
    "root emptied, prune by hand": Scenario(
        (running(kept=2), ONE, prunes_by_hand_at_length),
        kept=2,
        is_alive=False,
        budget=Budget(empties=1),
        spared=DELETES,
    ),
    "prune by hand during a rollback": Scenario(
        (running(kept=2), BACK, prunes_by_hand), kept=2, is_alive=False, budget=ROLLBACK
    ),
    # One that restores a step, and takes the root with its first save after that.
    "read and taken up, beside a job": Scenario((running(kept=2), reads(1, saves=2)), kept=2),
    "read and taken up, beside a start": Scenario((running(kept=2), reads(1), ONE), kept=2, is_alive=False),
    "the newest, read and taken up": Scenario((running(kept=2), reads(2), ONE), kept=2, is_alive=False),
    "read and taken up in a running process": Scenario((reads(1, kept=2, saves=2), ONE), kept=2),
    "read and taken up, prune by hand": Scenario(
        (running(kept=2), reads(1, saves=2), prunes_by_hand), kept=2, is_alive=False
    ),
    "read and taken up, root emptied": Scenario(
        (running(kept=1), reads(1), ONE),
        kept=1,
        is_alive=False,
        budget=Budget(empties=1),
        spared=DELETES | {"manifest"},
    ),
    "read and taken up, replies lost": Scenario((running(kept=2), reads(1)), kept=2, budget=LOST),
    # With a shard that is the same in every checkpoint. "disk": its copies are links.
    "copies": Scenario(
        (running(kept=2, saves=1, keep=2, copies="objects"), life(keep=2, copies="objects")),
        kept=2,
        budget=Budget(refusals=1),
    ),
    "copies, the source is replaced": Scenario(
        (running(kept=1, saves=1, keep=2, copies="objects"), life(keep=2, copies="objects")),
        kept=1,
        budget=Budget(replaced=1),
    ),
    "copies, root emptied": Scenario(
        (running(kept=1, copies="objects"), life(copies="objects")),
        kept=1,
        budget=Budget(empties=1),
        spared=DELETES,
    ),
    "copies on a disk": Scenario(
        (running(kept=1, saves=2, keep=2, copies="disk"), life(keep=2, copies="disk")),
        kept=1,
    ),
    "copies on a disk, rollback": Scenario(
        (running(kept=2, keep=2, copies="disk"), life(saves=2, may_roll_back_to=1, keep=2, copies="disk")),
        kept=2,
        budget=ROLLBACK,
    ),
    "copies, read and taken up, prune by hand": Scenario(
        (running(kept=2, keep=2, copies="objects"), reads(1, keep=2, copies="objects"), prunes_by_hand),
        kept=2,
        is_alive=False,
        budget=Budget(refusals=1),
    ),
    "copies on a disk, read and taken up": Scenario(
        (running(kept=2, keep=2, copies="disk"), reads(1, saves=3, keep=2, copies="disk")), kept=2
    ),
    "copies on a disk, beside the best": Scenario(
        (beside_the_best((0.2, 0.3, 0.1, 0.5)), beside_the_best((0.5,))),
        kept=2,
        deletes_two=True,
    ),
    "copies on a disk, a reply lost": Scenario(
        (beside_the_best((0.2, 0.3, 0.1, 0.5, 0.5, 0.5)),),
        kept=2,
        budget=LOST,
        deletes_two=True,
    ),
    "copies on a disk, damage, and the life that met it is pruned": Scenario(
        (beside_the_best((0.1, 0.2, 0.9, 0.9), best=2), beside_the_best((0.9, 0.9), (0.15, 0.9), best=2)),
        kept=4,
        is_alive=False,
        budget=DAMAGE,
        deletes_two=True,
    ),
    "copies on a disk, damage": Scenario(
        (running(kept=4, keep=4, copies="disk"), life(saves=2, keep=4, copies="disk")),
        kept=4,
        is_alive=False,
        budget=DAMAGE,
    ),
}

# What no rule prevents, as the docs say. A request to delete cannot be called back, and says no more than a name; a
# claim that was deleted fences nobody, until its checkpoints are listed.
LONG = (
    "copies on a disk, beside the best",
    "copies, root emptied",
    "damage",
    "damage and rollback",
    "give up",
    "lineage/ deleted",
    "lineage/ deleted in a start",
    "no claims",
    "read and taken up, root emptied",
    "root emptied",
    "root emptied, numbers skipped and committed",
)

LIMITS: dict[str, Scenario] = {
    "root emptied while a delete is under way": replace(SMALL["root emptied"], spared=frozenset()),
    "a manifest that can no longer be read while a delete is under way": replace(
        SMALL["a manifest that cannot be read"], spared=frozenset()
    ),
    "the newest claim alone is deleted": Scenario((running(kept=1, saves=1), ONE), kept=1, budget=Budget(lapses=1)),
}

# Marked "chaos": three incarnations, more saves, faults that meet. Breadth first, whole or up to `LARGE_STATES`. Each
# run has a slice of the first: the mutations of "takeover" are found in its first 2,000 states.
LARGE_STATES = 1_000_000
SLICE_STATES = 20_000
LARGE: dict[str, Scenario] = {
    "takeover by two": Scenario((running(kept=1), ONE, ONE), kept=1),
    "takeover by two, one saves twice": Scenario((running(kept=1, saves=2), ONE, ONE), kept=1),
    "takeover by two, in pages": Scenario((running(kept=1), ONE, ONE), kept=1, pages=3),
    "takeover by two, claims trimmed": Scenario((running(kept=1), ONE, ONE), kept=1, budget=TRIM),
    "takeover, two replies lost": Scenario((running(kept=1), ONE), kept=1, budget=Budget(lost=2)),
    "rollback among three": Scenario((running(kept=2), BACK, BACK), kept=2, budget=ROLLBACK),
    "rollback in a running process, then two": Scenario((running(kept=2, saves=0, then_back_to=1), ONE, ONE), kept=2),
    "damage among three": Scenario((running(kept=2), ONE, ONE), kept=2, budget=DAMAGE),
    "cold, three": Scenario((ONE, ONE, ONE)),
    "cold, three, claims trimmed": Scenario((ONE, ONE, ONE), budget=TRIM),
    "no claims, three": Scenario((running(kept=2), ONE, ONE, ONE), kept=2, is_alive=False, without_claims=True),
    "give up among three": Scenario((running(kept=1), ONE, ONE), kept=1, budget=LOST),
    "prune by hand": Scenario((running(kept=2), ONE, prunes_by_hand), kept=2),
    "read and taken up among three": Scenario((running(kept=2), reads(1, saves=2), ONE), kept=2),
    "read and taken up, tried again": Scenario(
        (running(kept=2), reads_and_saves_twice(1, looks_again=False), ONE), kept=2, is_alive=False, budget=LOST
    ),
    "read and taken up, tried again, beside a job": Scenario(
        (running(kept=2), reads_and_saves_twice(1, looks_again=False)), kept=2, budget=LOST
    ),
    "read again and taken up in a running process": Scenario(
        (reads_and_saves_twice(1, kept=2, looks_again=True), ONE), kept=2, budget=LOST
    ),
    "read and taken up by two": Scenario((running(kept=2), reads(1), reads(2)), kept=2),
    "prune by hand, rollback": Scenario((running(kept=2), BACK, prunes_by_hand), kept=2, budget=ROLLBACK),
    "copies on a disk, damage beside a job": Scenario(
        (running(kept=2, keep=2, copies="disk"), life(saves=2, keep=2, copies="disk")), kept=2, budget=DAMAGE
    ),
    "all faults": Scenario((running(kept=2), BACK), kept=2, budget=Budget(lost=1, damages=1, rollbacks=1)),
}
