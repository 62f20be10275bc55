"""Damaged roots, by the thousand: no wrong value, nothing sound passed over or deleted, no raw error, no hang."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import Note
from tests.chaos.scenes import STORIES, Scene, State, make_scenes
from tests.chaos.trial import Trial

pytestmark = pytest.mark.timeout(7200, method="thread")  # SIGALRM is the trials' own

SHORT_TRIALS, LONG_TRIALS = 16, 2000
_DAC_OVERRIDE, _DAC_READ_SEARCH, _VERSION_3 = 1 << 1, 1 << 2, 0x20080522


@contextlib.contextmanager
def permissions_count() -> Iterator[None]:
    """Also for root: this thread, and those that it starts, give back the capabilities that pass over permissions."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(_DAC_OVERRIDE | _DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where that can be had."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    with permissions_count():
        yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def scenes(folder: Path) -> dict[str, Scene]:
    return make_scenes(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Each trial warns of a lot, which only the trial hears."""
    logger, nobody = logging.getLogger("ckptflow"), logging.NullHandler()
    logger.propagate = False
    logger.addHandler(nobody)
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(nobody)


def torment(scene: Scene, folder: Path, numbers: range) -> tuple[Counter[str], list[Trial]]:
    """One trial for each number; what was damaged, and the trials that broke a promise."""
    states = {grown: State(grown=grown) for grown in (False, True)}
    root = folder / "trial" / "run"
    root.parent.mkdir(exist_ok=True)
    done: Counter[str] = Counter()
    broken: list[Trial] = []
    before = len(os.listdir("/proc/self/fd"))
    with quiet():
        for number in numbers:
            trial = Trial(scene, number, root)
            trial.run(states)
            done.update(damage.partition(" ")[0] for damage in trial.damages)
            broken += [trial] if trial.broken else []
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors were left open"
    return done, broken


def tell(broken: list[Trial]) -> str:
    """The trials that broke a promise: each can be tried again by its scene and number."""
    trials = ["\n    ".join([f"trial {t.number}: {', '.join(t.damages)}", *t.broken]) for t in broken[:40]]
    return "\n".join([f"{len(broken)} trials broke a promise", *trials])


@pytest.mark.parametrize("name", STORIES)
def test_some_damages(name: str, scenes: dict[str, Scene], folder: Path) -> None:
    done, broken = torment(scenes[name], folder, range(SHORT_TRIALS))
    assert not broken, tell(broken)
    assert len(done) > 10


@pytest.mark.chaos
@pytest.mark.parametrize("name", STORIES)
def test_many_damages(name: str, scenes: dict[str, Scene], folder: Path, note: Note) -> None:
    first = int(os.environ.get("CKPTFLOW_CHAOS_SEED", 1)) * 1_000_000
    done, broken = torment(scenes[name], folder, range(first, first + LONG_TRIALS))
    count = done.total() - done["nothing"]
    note(f"damages, {name}", count, f"{LONG_TRIALS:,} roots, {len(broken)} with a broken promise")
    assert not broken, tell(broken)
    assert count >= LONG_TRIALS
