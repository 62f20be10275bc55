"""The rules by which what has not changed is copied, taken out one at a time: see `mutations`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ckptflow.commit import coordinator as coordinator_module
from ckptflow.commit import reuse as reuse_module
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.resume import Resume
from ckptflow.commit.reuse import Existing, Reuse, choose_reuse
from ckptflow.commit.start import Start
from ckptflow.format.layout import Folder
from tests.protocol.explorer import ANY_VERSION
from tests.protocol.process import YieldingStore


def copied_without_the_condition(patch: pytest.MonkeyPatch) -> None:
    copies = YieldingStore.copy
    patch.setattr(YieldingStore, "copy", lambda self, source, key, _: copies(self, source, key, ANY_VERSION))


def one_family(patch: pytest.MonkeyPatch) -> None:
    def choose(existing: Sequence[Existing], kept: Collection[Folder], *, is_shared: bool) -> Reuse:
        return choose_reuse(existing, (), is_shared=is_shared)

    patch.setattr(coordinator_module, "choose_reuse", choose)


def copied_from_what_nobody_has_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reuse_module, "Existing", lambda folder, family, _: Existing(folder, family))


def damage_forgotten_by_the_next_life(patch: pytest.MonkeyPatch) -> None:
    runs = Resume.run

    def run(self: Any, step: int | None) -> Start:
        start = runs(self, step)
        return replace(start, sound_since=0) if start.reason == "resume" else start

    patch.setattr(Resume, "run", run)


def what_landed_late_is_not_chosen_by(patch: pytest.MonkeyPatch) -> None:
    prunes = Coordinator.prune

    def prune(self: Any) -> None:
        known = {each.folder for each in self._committed}
        prunes(self)
        self._committed = [each for each in self._committed if each.folder in known]

    patch.setattr(Coordinator, "prune", prune)
    patch.setattr(coordinator_module, "is_there", lambda *_: False)
