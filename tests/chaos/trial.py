"""One trial of the damage campaign: a damaged copy of a root, every call on it, and what each must not do.

Values are those of the checkpoint that is named, bit for bit; what is raised is one of ckptflow's errors; a checkpoint
that counted and was not damaged is restored, or a newer one is, and is deleted only where a newer sound one is there.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ckptflow
from ckptflow import CheckpointManager, CkptflowError, KeepLast
from ckptflow.cli.prune import prune
from ckptflow.format.layout import Folder
from tests.chaos.damages import CONTENT, damage_once
from tests.chaos.scenes import SAVING, Scene, State, as_folder

HANG_S = 120  # generous, since a shared machine may be busy
_CONTENT_NAMES = {act.__name__ for act in CONTENT}


class _Loud(logging.Handler):
    """Counts what ckptflow warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@dataclass
class Trial:
    """`number` decides what is damaged and which calls are made. `broken`: the promises that were not kept."""

    scene: Scene
    number: int
    root: Path
    damages: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    acknowledged: Folder | None = None  # what the restarted job of this trial has saved

    def run(self, states: dict[bool, State]) -> None:
        rng = self.rng = random.Random(self.number)
        self.partial, grown = rng.choice([(True, True), (True, False), (False, True), (False, False)])
        self.state = states[grown and bool(self.scene.grown)]
        shutil.copytree(self.scene.path, self.root)
        assert self.scene.other is not None
        count = rng.choice([1, 1, 1, 2, 3])
        with contextlib.suppress(OSError):  # what is forbidden by one damage cannot be damaged again
            for _ in range(count):
                self.damages.append(damage_once(rng, self.root, self.scene.other.path))
                if self.damages[-1].startswith("huge"):
                    break  # the next might copy it
        acts = [self._prune, self._continue]
        rng.shuffle(acts)
        try:
            for act in (self._list, self._open, self._read_only, *acts):
                self._guarded(act)
        finally:
            restore_permissions(self.root.parent)
            shutil.rmtree(self.root.parent)
            self.root.parent.mkdir()

    # ---- the calls

    def _list(self) -> None:
        for found in ckptflow.list_checkpoints(self.root):
            self._check(found.metadata in self._known(as_folder(found)), f"lists {found} that nobody saved")

    def _open(self) -> None:
        """The newest, and one by its step: what is read is right, and what verifies as sound can be read."""
        for step in (None, self.rng.choice(self.scene.counting).step):
            with contextlib.suppress(CkptflowError):
                self._read_arrays(step)

    def _read_arrays(self, step: int | None) -> None:
        with ckptflow.open_checkpoint(self.root, step) as opened:
            folder, value = as_folder(opened.checkpoint), opened.checkpoint.metadata
            problems = opened.verify()
            try:
                arrays = opened.read([name for name in opened if "layers" in name])
            except CkptflowError:
                self._check(bool(problems), f"verify finds nothing wrong with {folder}, which cannot be read")
                raise
            self._check(value in self._known(folder), f"opens {folder} that nobody saved")
            right = all(
                (array == np.float32(value + int(name.rpartition("/")[2]) / 16)).all() for name, array in arrays.items()
            )
            self._check(right, f"open_checkpoint reads wrong values of {folder}")
            is_same = any(self._is_same(folder, scene, follows_links=True) for scene in (self.scene, self.scene.other))
            self._check(bool(problems) or is_same, f"verify finds nothing wrong with {folder}, whose bytes differ")

    def _read_only(self) -> None:
        sound = self._sound()
        with self._manager(read_only=True) as manager:
            self._restore_latest(manager, sound)
        with self._manager(read_only=True) as manager:
            self._restore_step(manager)

    def _prune(self) -> None:
        sound = self._sound()
        with self._nothing_lost(sound, "a prune by hand"), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
            prune(str(self.root), last=self.rng.choice([1, 2, 3]), yes=True, as_json=True)
        sound = self._sound()
        with self._manager(read_only=True) as manager:
            self._restore_latest(manager, sound)

    def _continue(self) -> None:
        """What a restarted job does: restores, saves, prunes. What was acknowledged is what is restored next."""
        sound, saved = self._sound(), None
        with self._nothing_lost(sound, "a restart and a save"):
            with self._manager(keep=KeepLast(self.rng.choice([1, 2, 3]))) as manager:
                back = self.rng.random() < 0.2
                found = self._restore_step(manager) if back else self._restore_latest(manager, sound)
                step = found.step + 1 if found else 1
                if found is None and self.state.problem(-1.0, is_grown=True):
                    self._check(self._refuses(manager), "a mixture was saved")
                    return
                value = float(90_000 + step)
                self.state.fill(value)
                saved = as_folder(manager.save(step, metadata=value).result())
            self.acknowledged = saved
        self.state.fill(-1.0)
        with self._manager(read_only=True) as manager:
            again = manager.restore_latest(partial=True)
        self._check(
            again is not None and as_folder(again) == saved, f"{saved} was acknowledged, and {again} is restored"
        )
        self._check(self.state.problem(value, is_grown=True) is None, f"{saved} comes back wrong")

    def _refuses(self, manager: CheckpointManager) -> bool:
        try:
            manager.save(99).result()
        except CkptflowError:
            return True
        return False

    def _manager(self, **more: Any) -> CheckpointManager:
        self.state.fill(-1.0)
        return CheckpointManager(self.root, self.state.objects, **SAVING, **more)

    def _restore_latest(self, manager: CheckpointManager, sound: list[Folder]) -> ckptflow.Checkpoint | None:
        """Never older than the newest that counted and is sound; where it is not the newest that counted, loudly."""
        newest = self._counting()[0]
        was_there = os.path.lexists(self.root / str(newest) / "manifest.json")
        loud = _Loud()
        logging.getLogger("ckptflow").addHandler(loud)
        try:
            found = manager.restore_latest(partial=self.partial)
        except ckptflow.StateMismatchError:
            self._check(self.state.problem(-1.0, is_grown=True) is None, "StateMismatchError, and values were changed")
            raise
        except CkptflowError:
            only_content = all(damage.partition(" ")[0] in _CONTENT_NAMES and " 0" in damage for damage in self.damages)
            self._check(not (only_content and sound and self.partial), f"{sound[:1]} is sound, and was not restored")
            raise
        finally:
            logging.getLogger("ckptflow").removeHandler(loud)
        if found is None:
            self._check(not sound, f"nothing is restored, and {sound[:1]} is sound")
            return None
        self._check_values(found)
        folder = as_folder(found)
        if sound and self._is_decidable():
            order = self._counting()
            is_ours = folder == self.acknowledged or found.metadata == self.scene.values.get(folder)
            self._check(is_ours and folder in order and order.index(folder) <= order.index(sound[0]),
                        f"{folder} (value {found.metadata}) is restored, and {sound[0]} is sound")  # fmt: skip
        self._check(
            loud.count > 0 or folder == newest or not was_there, f"{folder} instead of {newest}, without a word"
        )
        return found

    def _is_decidable(self) -> bool:
        """With every claim lost, nothing says whose run a root is in which checkpoints of two runs are."""
        has_claim = any(is_sound(self.root / k, d) for k, d in self.scene.content.items() if k.startswith("lineage/"))
        return has_claim or not any("another_run" in damage for damage in self.damages)

    def _restore_step(self, manager: CheckpointManager) -> ckptflow.Checkpoint:
        step = self.rng.choice(sorted(self.scene.values)).step
        found = manager.restore(step, partial=self.partial)
        self._check(found.step == step, f"restore({step}) gives {found.step}")
        self._check_values(found)
        return found

    def _check_values(self, found: ckptflow.Checkpoint) -> None:
        if as_folder(found) == self.acknowledged:
            problem = self.state.problem(found.metadata, is_grown=True)
        else:
            problem = self.scene.problem(self.state, found)
        self._check(problem is None, f"WRONG VALUES after {as_folder(found)}: {problem}")

    # ---- what is sound, what is lost

    def _known(self, folder: Folder) -> set[float | None]:
        known = {scene.values.get(folder) for scene in (self.scene, self.scene.other) if scene is not None}
        return known - {None} | ({float(90_000 + folder.step)} if folder == self.acknowledged else set())

    def _sound(self) -> list[Folder]:
        """What counts, newest first, and is as it was saved."""
        return [folder for folder in self._counting() if self._is_same(folder, self.scene)]

    def _counting(self) -> list[Folder]:
        return [*([self.acknowledged] if self.acknowledged else []), *self.scene.counting]

    def _is_same(self, folder: Folder, scene: Scene | None, *, follows_links: bool = False) -> bool:
        assert scene is not None
        if folder == self.acknowledged:  # not damaged after it was saved: there, or not
            return is_sound(self.root / folder.manifest_key, None)
        files = {
            key: data for key, data in scene.content.items() if key.startswith(f"{folder}/") and "receipt" not in key
        }
        sound = (is_sound(self.root / key, data, follows_links=follows_links) for key, data in files.items())
        return bool(files) and all(sound)

    @contextlib.contextmanager
    def _nothing_lost(self, sound: list[Folder], what: str) -> Iterator[None]:
        """What was sound is there afterwards, or something newer that is: pinned ones, whatever else there is."""
        pins = [folder for folder in self.scene.pinned if is_sound(self.root / "pins" / str(folder), None)]
        try:
            yield
        finally:
            left = [f for f in self._counting() if self._is_same(f, self.scene, follows_links=True)]
            lost = [f for f in sound if f not in left and (f in pins or not any(other > f for other in left))]
            self._check(not lost, f"LOST in {what}: {[str(f) for f in lost]}, left: {[str(f) for f in left]}")

    def _check(self, is_right: bool, what: str) -> None:
        if not is_right:
            self.broken.append(what)

    def _guarded(self, act: Any) -> None:
        def hang(*_: object) -> None:
            self._check(False, f"HANG of more than {HANG_S} s in {act.__name__}")
            raise TimeoutError(f"a call hung for {HANG_S} s")

        signal.signal(signal.SIGALRM, hang)
        signal.setitimer(signal.ITIMER_REAL, HANG_S, 2)
        try:
            act()
        except CkptflowError:
            pass
        except Exception as error:
            self.broken.append(f"RAW {type(error).__name__} in {act.__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def is_sound(path: Path, data: bytes | None, *, follows_links: bool = False) -> bool:
    """Whether a regular file with these bytes is there, behind no link."""
    try:
        status, above = (each.stat(follow_symlinks=follows_links) for each in (path, path.parent))
        is_plain = stat.S_ISREG(status.st_mode) and stat.S_ISDIR(above.st_mode) and status.st_size < 2**24
        return is_plain and (data is None or path.read_bytes() == data)
    except OSError:
        return False


def restore_permissions(folder: Path) -> None:
    """So that all below `folder` can be removed."""
    for above, names, _ in os.walk(folder):
        for path in (Path(above, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755)
