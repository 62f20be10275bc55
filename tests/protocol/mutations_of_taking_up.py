"""The rules by which what was only read is taken up by a save, taken out one at a time: see `mutations`."""

from __future__ import annotations

from typing import Any

import pytest

from ckptflow.commit import beginning as beginning_module
from ckptflow.commit.beginning import Beginning, changed_since
from ckptflow.commit.catalog import Counting, Listing, Summaries, list_root
from ckptflow.commit.lineage import Held, Own, claim_next
from ckptflow.commit.resume import Resume
from ckptflow.commit.start import Seen, Start
from ckptflow.format.manifest import Reason
from ckptflow.storage.store import Store


def taken_up_whoever_has_claimed(patch: pytest.MonkeyPatch) -> None:
    def changed(seen: Seen, now: Seen) -> str:
        return changed_since(seen, seen._replace(newest=now.newest))

    patch.setattr(beginning_module, "changed_since", changed)


def taken_up_whatever_was_saved(patch: pytest.MonkeyPatch) -> None:
    def changed(seen: Seen, now: Seen) -> str:
        return changed_since(seen, now._replace(newest=seen.newest))

    patch.setattr(beginning_module, "changed_since", changed)


def taken_up_by_a_claim_of_any_number(patch: pytest.MonkeyPatch) -> None:
    def claims(store: Store, summaries: Summaries, reason: Reason, timeout_s: float, check: Any, *rest: Any) -> Held:
        check(list_root(store))
        return claim_next(store, summaries, reason, timeout_s, lambda _: None, *rest)

    patch.setattr(beginning_module, "claim_next", claims)


def taken_up_by_what_was_listed_before_the_claim(patch: pytest.MonkeyPatch) -> None:
    checks = Beginning.check_unchanged

    def check(self: Any, read: Start, listing: Listing, counting: Counting) -> None:
        if self.writer_id not in map(self._summaries.holder, listing.claims):
            checks(self, read, listing, counting)

    patch.setattr(Beginning, "check_unchanged", check)


def own_claim_forgotten_by_a_restore(patch: pytest.MonkeyPatch) -> None:
    reads = Resume.read

    def read(self: Any, step: int) -> Start:
        self._own = Own()
        return reads(self, step)

    patch.setattr(Resume, "read", read)


def own_claim_forgotten_by_a_save_that_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Own, "but_tried", lambda self, writer_id: Own(None, self.tried | {writer_id}))
