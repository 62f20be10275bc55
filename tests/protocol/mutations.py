"""The rules of the protocol taken out one at a time, each as a small patch of the real code.

Rows are those of the protocol's table; `breaks` is the invariant that the row names, None where it says "holds". Rows
of the first draft that this code cannot express are in `NOT_EXPRESSIBLE`, with why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ckptflow.commit import beginning as beginning_module
from ckptflow.commit import catalog as catalog_module
from ckptflow.commit import choosing as choosing_module
from ckptflow.commit import coordinator as coordinator_module
from ckptflow.commit import lineage as lineage_module
from ckptflow.commit import prune as prune_module
from ckptflow.commit import receipts as receipts_module
from ckptflow.commit import resume as resume_module
from ckptflow.commit import start as start_module
from ckptflow.commit.assembly import Draft, refuse_receipt
from ckptflow.commit.catalog import Counting, Listing, list_root
from ckptflow.commit.choosing import Choice, Chooser
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held, create_once
from ckptflow.commit.outcomes import Outcome, PartResult, outcome_of
from ckptflow.commit.prune import Decision, PrunePlan, decide_partial
from ckptflow.commit.resume import Resume
from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.format.layout import MANIFEST_NAME, Folder, parse_folder
from ckptflow.format.manifest import Receipt
from ckptflow.storage.store import Store
from tests.protocol import lives
from tests.protocol.mutations_of_copies import (
    copied_from_what_nobody_has_read,
    copied_without_the_condition,
    damage_forgotten_by_the_next_life,
    one_family,
    what_landed_late_is_not_chosen_by,
)
from tests.protocol.mutations_of_taking_up import (
    own_claim_forgotten_by_a_restore,
    own_claim_forgotten_by_a_save_that_failed,
    taken_up_by_a_claim_of_any_number,
    taken_up_by_what_was_listed_before_the_claim,
    taken_up_whatever_was_saved,
    taken_up_whoever_has_claimed,
)
from tests.protocol.process import current

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutation:
    """A rule that is taken out: how, where it is looked for, and what must break."""

    patch: Patch
    scenarios: tuple[str, ...]
    breaks: str | None


class _Blind(Listing):
    """A listing in which nobody looks for newer incarnations."""

    __slots__ = ()

    @property
    def top_number(self) -> int:
        return 0


def _blind(listing: Listing) -> Listing:
    return _Blind(listing.folders, listing.claims, listing.pins)


def no_listing_after_the_claim(patch: pytest.MonkeyPatch) -> None:
    choose = Chooser.choose

    def chooses(self: Any, step: int | None, held: Held | None) -> Choice:
        if held is not None and not hasattr(self, "is_mutated"):
            self.is_mutated = True
            self.view.is_stale = False
            current().show(number=held.number)
        return choose(self, step, held)

    patch.setattr(lives, "MERGE_AT_CLAIM", False)
    patch.setattr(Chooser, "choose", chooses)


def no_fence_check_after_a_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(coordinator_module, "check_fence", lambda *_: lives.acknowledge())
    patch.setattr(coordinator_module, "list_root", lambda store: _blind(list_root(store)))


def newer_claim_in_a_prunes_listing_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(coordinator_module, "newer_number", lambda *_: 0)


def acknowledged_before_the_fence_check(patch: pytest.MonkeyPatch) -> None:
    def acknowledges(store: Store, key: str, data: bytes, deadline: Callable[[], float]) -> bool:
        is_ours = create_once(store, key, data, deadline)
        if is_ours:
            lives.acknowledge()
        return is_ours

    patch.setattr(coordinator_module, "create_once", acknowledges)


def no_writer_id(patch: pytest.MonkeyPatch) -> None:
    for module in (lineage_module, beginning_module):
        patch.setattr(module, "new_writer_id", lambda: "0" * 32)


def claim_not_create_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lineage_module, "create_once", _put)


def manifest_not_create_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(coordinator_module, "create_once", _put)


def _put(store: Store, key: str, data: bytes, deadline: Callable[[], float]) -> bool:
    store.put(key, memoryview(data))
    return True


def newest_step_wins(patch: pytest.MonkeyPatch) -> None:
    def counts(listing: Listing, run_id: str | None, *_: Any) -> Counting:
        folders = tuple(sorted(listing.committed, reverse=True))
        return Counting(max((f.incarnation for f in folders), default=0), run_id, folders)

    patch.setattr(catalog_module, "find_counting", counts)


def not_saved_again(patch: pytest.MonkeyPatch) -> None:
    runs = Resume.run
    patch.setattr(Resume, "run", lambda self, step: replace(runs(self, step), save_again=False))


def shards_deleted_first(patch: pytest.MonkeyPatch) -> None:
    def act(store: Store, plan: PrunePlan, files: Mapping[Folder, Mapping[str, int]]) -> None:
        rest = [folder.key(name) for folder in plan.deletions for name in files[folder] if name != MANIFEST_NAME]
        store.delete(rest)
        store.delete([folder.manifest_key for folder in plan.deletions])

    patch.setattr(coordinator_module, "act", act)


def partial_swept_though_its_manifest_was_sent(patch: pytest.MonkeyPatch) -> None:
    def takes_no_reply_for_a_refusal(store: Store, key: str, data: bytes, deadline: Callable[[], float]) -> bool:
        try:
            return create_once(store, key, data, deadline)
        except StorageUnavailableError as error:
            raise StorageError(f"mutated: {error}") from error

    patch.setattr(coordinator_module, "create_once", takes_no_reply_for_a_refusal)


def time_out_taken_as_damage(patch: pytest.MonkeyPatch) -> None:
    def outcome(error: BaseException) -> PartResult | None:
        is_lost = isinstance(error, StorageUnavailableError)
        return PartResult(Outcome.DAMAGED, str(error)) if is_lost else outcome_of(error)

    patch.setattr(resume_module, "outcome_of", outcome)


def number_above_claims_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Listing, "top_number", property(lambda self: max(self.claims, default=0)))


def prune_by_hand_during_a_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prune_module, "refuse_by_hand", lambda *_: None)


def newer_claim_ignored_at_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(choosing_module, "check_fence", lambda *_: None)
    patch.setattr(choosing_module, "list_root", lambda store: _blind(list_root(store)))


def partials_of_newer_incarnations_swept(patch: pytest.MonkeyPatch) -> None:
    def decide(folder: Folder, incarnation: int, is_given_up: bool, is_pinned: bool) -> Decision:
        if folder.incarnation > incarnation:
            return Decision(folder, False, "mutated")
        return decide_partial(folder, incarnation, is_given_up, is_pinned)

    patch.setattr(prune_module, "decide_partial", decide)


def claim_not_read_back(patch: pytest.MonkeyPatch) -> None:
    for module in (lineage_module, coordinator_module):
        patch.setattr(module, "check_own_claim", lambda *_: None)


def listing_need_not_show_the_claim(patch: pytest.MonkeyPatch) -> None:
    def check(store: Store, held: Held, claims: object, top_number: int) -> None:
        if top_number > held.number:
            raise lineage_module.fenced(store, held, top_number)

    for module in (lineage_module, choosing_module):
        patch.setattr(module, "check_listing", check)


def names_shared_by_all_writers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Held, "tag", property(lambda self: "0" * 8))


def all_who_held_a_number_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(catalog_module, "of_one_writer", lambda own, *_: [*own])
    anothers_run_counts(patch)  # a root that is emptied begins another run, which is a second line


def all_of_our_number_is_ours(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(start_module, "is_written_by", lambda held, folder, *_: folder.incarnation == held.number)
    anothers_run_counts(patch)


def anothers_run_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Counting, "is_of_another", lambda *_: False)


def claim_not_read_before_the_first_manifest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Coordinator, "check_claim_before", lambda self: None)


def create_believed_to_be_exclusive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lineage_module, "is_create_exclusive", lambda store, *_: store.is_create_only)


def newest_not_read_before_a_prune(patch: pytest.MonkeyPatch) -> None:
    for module in (prune_module, coordinator_module):
        patch.setattr(module, "doubt_newest", lambda *_: None)


def not_listed_again(patch: pytest.MonkeyPatch) -> None:
    for module in (prune_module, coordinator_module):
        patch.setattr(module, "listed_again", lambda store, plan, *_: plan)


def manifest_not_asked_for_by_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prune_module, "is_there", lambda *_: False)


def planned_before_a_verification(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prune_module, "changed_meanwhile", lambda *_: None)
    patch.setattr(prune_module, "unchanged", lambda plan, *_: plan)


def claim_read_before_the_first_manifest_alone(patch: pytest.MonkeyPatch) -> None:
    checks = Coordinator.check_claim_before

    def check(self: Any) -> None:
        if not self._committed:
            checks(self)

    patch.setattr(Coordinator, "check_claim_before", check)


def folders_fence_by_their_numbers(patch: pytest.MonkeyPatch) -> None:
    def newer(store: Store, held: Held, listing: Listing) -> int:
        return listing.top_number if listing.top_number > held.number else 0

    for module in (lineage_module, coordinator_module):
        patch.setattr(module, "newer_number", newer)


def one_folder_for_both_calls(patch: pytest.MonkeyPatch) -> None:
    one_folder_though_receipts_name_the_call(patch)

    def refuse(draft: Draft, held: Held, receipt: Receipt, worker: int) -> str | None:
        folder = parse_folder(receipt.folder)
        return refuse_receipt(replace(draft, folder=folder) if folder else draft, held, receipt, worker)

    patch.setattr(receipts_module, "refuse_receipt", refuse)


def one_folder_though_receipts_name_the_call(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Folder, "key", lambda self, name: f"{Folder(self.step, self.incarnation)}/{name}")
    patch.setattr(prune_module, "act", lambda *_: None)


MUTATIONS: dict[str, Mutation] = {
    "listing after the claim": Mutation(no_listing_after_the_claim, ("takeover",), "I1"),
    "fence check after a commit": Mutation(no_fence_check_after_a_commit, ("takeover", "rollback"), "I1"),
    "a newer claim in the listing of a prune": Mutation(
        newer_claim_in_a_prunes_listing_ignored, ("takeover", "rollback", "root emptied"), None
    ),
    "acknowledgement after it": Mutation(acknowledged_before_the_fence_check, ("takeover",), "I2"),
    "writer id": Mutation(no_writer_id, ("cold",), "I3"),
    "create-only claim": Mutation(claim_not_create_only, ("cold",), "I3"),
    "lineage (newest step wins)": Mutation(newest_step_wins, ("rollback in a running process", "rollback"), "I2"),
    "saving again": Mutation(not_saved_again, ("rollback", "prune by hand during a rollback"), "I1"),
    "manifest deleted first": Mutation(shards_deleted_first, ("takeover",), "I5"),
    "keeping a partial whose manifest was sent": Mutation(
        partial_swept_though_its_manifest_was_sent, ("give up",), "I5"
    ),
    "confirmed damage": Mutation(time_out_taken_as_damage, ("read times out",), "I2"),
    "numbers above folder names": Mutation(number_above_claims_only, ("no claims",), "I4"),
    "refusal of a prune by hand during a start": Mutation(prune_by_hand_during_a_start, ("prune by hand",), "I1"),
    "standing down, claims trimmed": Mutation(newer_claim_ignored_at_start, ("cold, three, claims trimmed",), "I3"),
    "standing down, claims kept": Mutation(
        newer_claim_ignored_at_start, ("takeover", "rollback", "damage", "cold", "no claims"), None
    ),
    "partials of lower incarnations only": Mutation(
        partials_of_newer_incarnations_swept, ("takeover", "rollback", "damage", "cold", "no claims", "give up"), None
    ),
    "our claim, read back": Mutation(claim_not_read_back, ("root emptied",), "I2"),
    "our claim in every listing": Mutation(listing_need_not_show_the_claim, ("an answer that is no listing",), "I2"),
    "names of its own for each writer": Mutation(names_shared_by_all_writers, ("root emptied",), "I2"),
    "of two that held a number, the one whose claim is there": Mutation(
        all_who_held_a_number_count, ("root emptied", "lineage/ deleted"), None
    ),
    "what another wrote under our number": Mutation(all_of_our_number_is_ours, ("root emptied",), None),
    "what counts is of this run": Mutation(anothers_run_counts, ("root emptied",), None),
    "a further create, which must be refused": Mutation(
        create_believed_to_be_exclusive, ("creates not exclusive",), "I3"
    ),
    "our claim, read before the first manifest": Mutation(
        claim_not_read_before_the_first_manifest, ("lineage/ deleted, numbers skipped",), "I2"
    ),
    "the newest, read before a prune": Mutation(
        newest_not_read_before_a_prune, ("a manifest that cannot be read",), "I2"
    ),
    "what goes as uncommitted, listed again": Mutation(
        not_listed_again, ("a sweep, and listings that lack manifests",), "I5"
    ),
    "its manifest, asked for by name": Mutation(
        manifest_not_asked_for_by_name, ("a sweep, and listings that lack manifests",), "I5"
    ),
    "by hand, what is still as it was planned": Mutation(
        planned_before_a_verification, ("root emptied, prune by hand",), "I2"
    ),
    "a folder alone fences nobody": Mutation(
        folders_fence_by_their_numbers, ("root emptied, numbers skipped and committed",), "I4"
    ),
    "our claim, read before each manifest": Mutation(
        claim_read_before_the_first_manifest_alone, ("root emptied, numbers skipped and committed",), None
    ),
    "a copy of the version that is known": Mutation(
        copied_without_the_condition, ("copies, the source is replaced",), "I2"
    ),
    "after a fallback, a source that was read": Mutation(
        copied_from_what_nobody_has_read, ("copies on a disk, damage",), "I2"
    ),
    "damage, remembered by later lives": Mutation(
        damage_forgotten_by_the_next_life,
        ("copies on a disk, damage, and the life that met it is pruned",),
        "I2",
    ),
    "a choice by what landed late": Mutation(
        what_landed_late_is_not_chosen_by, ("copies on a disk, a reply lost",), "I6"
    ),
    "two families": Mutation(one_family, ("copies on a disk",), "I6"),
    "the newest claim is the one that was seen": Mutation(
        taken_up_whoever_has_claimed, ("read and taken up, beside a start",), "I7"
    ),
    "that, in a root that was emptied": Mutation(
        taken_up_whoever_has_claimed, ("read and taken up, root emptied",), "I2"
    ),
    "the newest checkpoint is the one that was seen": Mutation(
        taken_up_whatever_was_saved, ("read and taken up, beside a job",), "I2"
    ),
    "both, by the listing of the claim": Mutation(
        taken_up_by_a_claim_of_any_number, ("read and taken up, beside a start",), "I7"
    ),
    "both, by the listing after the claim": Mutation(
        taken_up_by_what_was_listed_before_the_claim, ("read and taken up, beside a job",), "I2"
    ),
    "a running process is to find its own claim": Mutation(
        own_claim_forgotten_by_a_restore, ("read and taken up in a running process",), "I7"
    ),
    "also after a save that could not take up": Mutation(
        own_claim_forgotten_by_a_save_that_failed, ("read again and taken up in a running process",), "I7"
    ),
    "create-only manifest": Mutation(
        manifest_not_create_only, ("takeover", "rollback", "damage", "cold", "no claims"), None
    ),
}

CALL_MUTATIONS: dict[str, Patch] = {
    "one folder for both calls of a save": one_folder_for_both_calls,
    "one folder, and receipts name the call": one_folder_though_receipts_name_the_call,
}

NOT_EXPRESSIBLE = {
    "as written": "a claim holds no lineage here, so no patch can let one decide; its I2 is 'acknowledgement after it'",
    "+ acknowledge after the fence check": "the same: needs claims that decide",
    "+ a claim decides from its first commit": "the same; its I1 is 'saving again'",
    "that, without the second listing": "is 'listing after the claim'",
    "that, without list-before-prune": "is 'fence check after a commit'",
    "that, without the writer id": "is 'writer id'",
}
