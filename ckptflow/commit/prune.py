"""Deleting what need not be kept: a pure plan with a reason for everything, and the act.

Rule 9 of the protocol. Called only after the incarnation's own commit has passed its fence check, with the listing made
between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ckptflow.commit.catalog import (
    Counting,
    Listing,
    Summaries,
    Summary,
    SummaryReader,
    Unreadable,
    find_counting_now,
    list_claims,
    list_pins,
    list_root,
    read_manifest,
    summarize,
)
from ckptflow.commit.freed import freed_bytes
from ckptflow.commit.lineage import find_run_id
from ckptflow.commit.listing import list_run
from ckptflow.commit.retention import KeepBest, Policy, reasons_to_keep
from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError, StorageError, UnknownVersionError, UsageError
from ckptflow.format.layout import MANIFEST_NAME, Folder, claim_key, parse_shard_name
from ckptflow.storage.again import is_there, renew
from ckptflow.storage.store import Store

_ANOTHERS = "of another run: deleted only by hand"
_LISTED_OTHERWISE = "two listings of it differ: the next prune checks it again"
_COMMITTED = "committed, but its manifest is missing from listings: the next prune checks it again"
_PINNED = "pinned"
_UNWANTED = "no policy retains it"
UNCERTAIN = "it is not certain which checkpoints are current"
_NEWER = "written by a newer ckptflow: its contents are not known"
CLAIMS_KEPT = 100  # a starter that stalled finds its number taken, as long as it is among these


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one folder, and why; and which one is there instead of it, where that is why. `is_best`: others
    are not kept because it is better."""

    folder: Folder
    keep: bool
    reason: str
    instead: Folder | None = None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """All decisions of one prune, and the claims that are old enough to go.

    `is_asked_for`: a person named these folders, so if one of them has to stay, none goes.
    """

    decisions: tuple[Decision, ...]
    claims: tuple[int, ...] = ()
    is_asked_for: bool = False

    @property
    def deletions(self) -> tuple[Folder, ...]:
        return tuple(decision.folder for decision in self.decisions if not decision.keep)

    @property
    def refused(self) -> str | None:
        """Why what was asked for is not done, or None."""
        kept = [f"{decision.folder}: {decision.reason}" for decision in self.decisions if decision.keep]
        return "; ".join(kept) if self.is_asked_for and kept else None


Planner = Callable[[Listing, Counting, SummaryReader], PrunePlan]


def plan_prune(
    listing: Listing,
    counting: Counting,
    read: Callable[[Folder], Summary | Unreadable],
    policies: Sequence[Policy],
    *,
    incarnation: int,
    given_up: Collection[Folder] = (),
) -> PrunePlan:
    """Decides for every folder in `listing`; `incarnation` is the one that prunes.

    `given_up`: own folders whose manifest was never sent, so that it cannot appear any more. Raises what a policy
    raises: then nothing is deleted.
    """
    decisions, newest = decide_counting(listing, counting, read, policies)
    for folder in counting.outside:
        decisions[folder] = decide_outside(folder, read(folder), counting, newest, folder in listing.pins)
    for folder in listing.folders:
        if folder not in decisions:
            is_pinned, is_given_up = folder in listing.pins, folder in given_up
            decisions[folder] = decide_partial(folder, incarnation, is_given_up, is_pinned)
    old_claims = sorted(listing.claims, reverse=True)[CLAIMS_KEPT:]
    return PrunePlan(tuple(decisions[folder] for folder in sorted(decisions)), tuple(old_claims))


def decide_counting(
    listing: Listing,
    counting: Counting,
    read: Callable[[Folder], Summary | Unreadable],
    policies: Sequence[Policy],
) -> tuple[dict[Folder, Decision], Folder | None]:
    """What counts: the newest, the pinned and what the policies keep stay; of equal steps the newest stands for all.

    Also the newest that is whole, as far as its manifest and the listing tell: no other has reached any step.
    """
    whole: dict[int, Summary] = {}
    decisions: dict[Folder, Decision] = {}
    for folder in reversed(counting.folders):  # oldest first, so that the newest of a step is the last
        summary = read(folder)
        if isinstance(summary, CorruptCheckpointError):
            decisions[folder] = Decision(folder, False, "its manifest is damaged")
        elif isinstance(summary, UnknownVersionError):
            decisions[folder] = Decision(folder, True, _NEWER)
        elif isinstance(summary, StorageError):
            decisions[folder] = Decision(folder, True, unread(summary))
        elif counting.is_of_another(summary.run_id):
            decisions[folder] = Decision(folder, True, _ANOTHERS)
        elif not summary.is_complete(listing.folders[folder]):
            decisions[folder] = Decision(folder, False, "shards are missing or have the wrong size")
        else:
            older = whole.get(folder.step)
            if older is not None:
                why = f"saved again at the same step: {folder}"
                decisions[older.folder] = Decision(older.folder, False, why, instead=folder)
            whole[folder.step] = summary
    steps = sorted(whole)
    reasons = reasons_to_keep([whole[step].checkpoint for step in steps], policies)
    ranking = [policy for policy in policies if isinstance(policy, KeepBest)]
    ranks = reasons_to_keep([whole[step].checkpoint for step in steps], ranking)
    best = {whole[step].folder for step, place in zip(steps, ranks, strict=True) if place}
    for step, reason in zip(steps, reasons, strict=True):
        folder = whole[step].folder
        decisions[folder] = Decision(folder, reason is not None, reason or _UNWANTED, is_best=folder in best)
    for folder in counting.folders:
        if folder == counting.newest or (whole and folder == whole[steps[-1]].folder):
            decisions[folder] = Decision(folder, True, "the newest")
        elif folder in listing.pins:
            decisions[folder] = Decision(folder, True, _PINNED, is_best=folder in best)
    return decisions, whole[steps[-1]].folder if whole else None


def decide_outside(
    folder: Folder,
    summary: Summary | Unreadable,
    counting: Counting,
    newest: Folder | None,
    is_pinned: bool,
) -> Decision:
    """Outside the lineage: kept until what counts has reached its step; after a fresh start, for ever."""
    if is_pinned:
        return Decision(folder, True, _PINNED)
    if isinstance(summary, UnknownVersionError):
        return Decision(folder, True, _NEWER)
    if isinstance(summary, StorageError):
        return Decision(folder, True, unread(summary))
    if isinstance(summary, Summary) and summary.run_id != counting.run_id:
        return Decision(folder, True, _ANOTHERS)
    if folder.incarnation < counting.fresh_since:
        return Decision(folder, True, "from before a fresh start: deleted only by hand")
    if folder.incarnation > counting.incarnation or newest is None or newest.step < folder.step:
        return Decision(folder, True, "superseded, but no current checkpoint has reached its step")
    return Decision(folder, False, f"superseded: a current checkpoint has reached step {newest.step:,}")


def unread(error: StorageError) -> str:
    """What is said of a checkpoint whose manifest the storage does not give."""
    return f"cannot be read: {error}"


def doubt_of(summaries: Summaries) -> str | None:
    """Why what has just been decided by `summaries` is not sure: the storage did not give a file that decides."""
    refused = summaries.refused
    return None if refused is None else f"{UNCERTAIN}, since a file {unread(refused)}"


def decide_partial(folder: Folder, incarnation: int, is_given_up: bool, is_pinned: bool) -> Decision:
    """Never committed: what dead incarnations left, and own calls that were given up before their manifest was sent.

    Only a checkpoint is pinned: where one is, a listing that shows no manifest in it lacks it.
    """
    if is_pinned:
        return Decision(folder, True, _PINNED)
    if folder.incarnation < incarnation:
        return Decision(folder, False, f"never committed, and incarnation {folder.incarnation} is over")
    if folder.incarnation == incarnation and is_given_up:
        return Decision(folder, False, "never committed: the save failed")
    return Decision(folder, True, "not committed yet")


def listed_again(
    store: Store, plan: PrunePlan, listing: Listing, found: Mapping[Folder, Summary | Unreadable]
) -> PrunePlan:
    """The plan without what would go because a listing lacks some of it, and which the storage then shows otherwise.

    One listing alone may leave out what is there, a pin as well, or give it another size. And no listing says that
    there is no manifest: it is asked for by its name.
    """
    if not plan.deletions:
        return plan

    def doubt(decision: Decision) -> str | None:
        folder, files = decision.folder, listing.folders[decision.folder]
        summary = found.get(folder)
        if decision.keep or (isinstance(summary, Summary) and summary.is_complete(files)):
            return None
        prefix = f"{folder}/"
        renew(store, prefix)
        if files != {entry.key.removeprefix(prefix): entry.size_bytes for entry in store.list(prefix)}:
            return _LISTED_OTHERWISE
        return _COMMITTED if MANIFEST_NAME not in files and is_there(store, folder.manifest_key) else None

    doubts = {decision.folder: doubt(decision) for decision in plan.decisions}
    doubts |= dict.fromkeys(list_pins(store), _PINNED)  # last: who pins looks afterwards whether it is still there
    decided = (
        Decision(d.folder, True, why) if not d.keep and (why := doubts.get(d.folder)) else d for d in plan.decisions
    )
    return replace(plan, decisions=tuple(decided))


def act(store: Store, plan: PrunePlan, files: Mapping[Folder, Mapping[str, int]]) -> None:
    """Deletes what the plan says: manifests first, the rest in a later request.

    The names in the later one, of shards and receipts, are their writer's own: whatever has happened to the root since
    it was listed, it deletes nothing of another job's.
    """
    deletions = plan.deletions
    manifests = [folder.manifest_key for folder in deletions if MANIFEST_NAME in files[folder]]
    rest = [folder.key(name) for folder in deletions for name in sorted(files[folder]) if name != MANIFEST_NAME]
    for keys in (manifests + [claim_key(number) for number in plan.claims], rest):
        if keys:
            store.delete(keys)


def refuse_by_hand(listing: Listing, counting: Counting) -> str | None:
    """Why nothing may be pruned from outside now, or None.

    An incarnation that has started and committed nothing may be resuming from any of the checkpoints that count, and
    whatever an older one has committed since looks newest and is not.
    """
    if listing.top_number <= counting.incarnation:
        return None
    return (
        f"incarnation {listing.top_number} has started and committed nothing yet, and may be resuming from what would "
        "be deleted; prune after its first save, or, if no job is starting or running on this root, with "
        "--even-if-starting"
    )


@dataclass(frozen=True, slots=True)
class ByHand:
    """A prune from outside: its plan, what is in the folders, and why it may not be done now, if so."""

    plan: PrunePlan
    listing: Listing
    why_not: str | None
    newest: Folder | None = None

    def size_bytes(self, folder: Folder) -> int:
        """That of its shards, as sizes of checkpoints are everywhere."""
        return sum(size for name, size in self.listing.folders[folder].items() if parse_shard_name(name))

    @property
    def freed_bytes(self) -> dict[Folder, int]:
        """How many bytes become free by each folder that goes: less than it has where others share its files."""
        return freed_bytes(self.listing, self.plan.deletions)


def doubt_newest(store: Store, listing: Listing, newest: Folder | None) -> str | None:
    """Why nothing may be deleted in favour of the newest that counts, or None. Its manifest is read now, by this call.

    What decides must be sound: else a deletion is justified by a checkpoint that nobody can restore.
    """
    if newest is None:
        return None
    try:
        summary = summarize(read_manifest(store, newest), store.url)
    except ObjectNotFoundError:
        return f"{newest}, the newest checkpoint, was deleted meanwhile"
    except (CorruptCheckpointError, UnknownVersionError) as error:
        return f"the manifest of the newest checkpoint cannot be read, so {UNCERTAIN}: {error}"
    if not summary.is_complete(listing.folders[newest]):
        return f"{newest}, the newest checkpoint, has shards that are missing or have the wrong size"
    return None


def plan_by_hand(
    store: Store, summaries: Summaries, what: Sequence[Policy] | Planner, *, even_if_starting: bool = False
) -> ByHand:
    """Plans, from outside and without a claim, what an incarnation with these policies would prune, or what a planner
    says. Deletes nothing.

    `even_if_starting`: somebody says that no job is starting or running here, which no storage can tell.
    """
    listing = list_run(store)
    claims = list_claims(store)  # listed last, as in an incarnation's own fence check
    found = summaries.read_there(listing)
    listing = listing.without(set(listing.committed) - set(found))  # a job may have deleted them meanwhile
    counting = find_counting_now(listing, find_run_id(store, listing, summaries), found.__getitem__, summaries.holder)
    if callable(what):
        plan = what(listing, counting, found.__getitem__)
    else:
        plan = plan_prune(listing, counting, found.__getitem__, what, incarnation=counting.incarnation)
    plan = listed_again(store, plan, listing, found)
    why_not = None
    if not even_if_starting:
        why_not = refuse_by_hand(replace(listing, claims=(*listing.claims, *claims)), counting)
    if max(listing.claims, default=0) > max(claims, default=0):
        why_not = f"a listing of lineage/ does not show claim {max(listing.claims)}, so a running job may be overlooked"
    if (doubt := doubt_of(summaries)) is not None:  # to act on this raises
        why_not = f"{why_not}; and {doubt}" if why_not else doubt
    elif why_not is None:
        why_not = doubt_newest(store, listing, counting.newest)
        why_not = f"{why_not}. {_HOW_TO_GO_ON}" if why_not else plan.refused
    return ByHand(plan, listing, why_not, counting.newest)


_AGAIN = "Run it again"
_BEST = "among the best by a metric"
_WITHOUT_IT = "Look with ckptflow ls and ckptflow verify, and delete its folder by hand: then the next best stays"
Verify = Callable[[Store, Folder], str | None]
_HOW_TO_GO_ON = (
    "Start the job: it restores the newest valid checkpoint, saves it again, and then prunes by itself; or check with "
    "ckptflow ls and ckptflow verify, and delete the folder of the damaged checkpoint by hand"
)


def prune_by_hand(
    store: Store,
    summaries: Summaries,
    what: Sequence[Policy] | Planner,
    verify: Verify = lambda store, folder: None,
    *,
    even_if_starting: bool = False,
) -> ByHand:
    """Does it. Raises `UsageError` if `why_not` says why not; then nothing was deleted.

    `verify` is asked before what is wrong with the newest checkpoint, which is what a restart will be left with, with
    those that are there instead of what was saved earlier at the same step, and with the best, in whose favour others
    are not kept. It may take long, so the root is listed again after it, and only what is still as it was goes.
    """
    found = plan_by_hand(store, summaries, what, even_if_starting=even_if_starting)
    why_not = found.why_not
    if why_not is None and found.plan.deletions:
        roles = dict.fromkeys((d.instead for d in found.plan.decisions if d.instead), "saved again at its step")
        if any(d.reason == _UNWANTED and not d.keep for d in found.plan.decisions):
            roles |= {d.folder: _BEST for d in found.plan.decisions if d.is_best}
        roles |= {found.newest: "the newest checkpoint"} if found.newest else {}
        needed = {folder: role for folder, role in roles.items() if folder not in found.plan.deletions}
        doubts = (_doubt(store, folder, role, verify) for folder, role in needed.items())
        why_not = next(filter(None, doubts), None)
        if why_not is None:
            list_claims(store)  # on a network share it makes the listing of the root a new one, as that of pins does
            pins = list_pins(store)
            now = list_root(store)
            # The manifest last: shards are named after who wrote them, so that it also says whether the root is still
            # the one that was listed.
            why_not = changed_meanwhile(found.listing, now, needed) or doubt_newest(store, now, found.newest)
            found = replace(found, plan=unchanged(found.plan, found.listing, now, pins))
            why_not = why_not or found.plan.refused
    if why_not is not None:
        raise UsageError(f"{store.url}: nothing was deleted: {why_not}")
    act(store, found.plan, found.listing.folders)
    return found


def _doubt(store: Store, folder: Folder, role: str, verify: Verify) -> str | None:
    """Why nothing may be deleted in favour of `folder`, by all of its bytes, or None."""
    try:
        damage = verify(store, folder)
    except ObjectNotFoundError as error:
        damage = str(error)
    if damage is None:
        return None
    if not is_there(store, folder.manifest_key):  # a job prunes the manifest first: the rest was on its way out
        return f"{folder}, {role}, was deleted meanwhile. {_AGAIN}"
    return f"{folder}, {role}, is damaged: {damage}. {_WITHOUT_IT if role == _BEST else _HOW_TO_GO_ON}"


def changed_meanwhile(then: Listing, now: Listing, needed: Iterable[Folder]) -> str | None:
    """Why what was planned by one listing may not be done by a later one, or None.

    A claim since then may be of a job that resumes from what would go. Without one, the job that is there has only
    saved and pruned: what is still as it was may go, as long as what is `needed`, and what was verified, is there.
    """
    if now.top_number > then.top_number:
        return f"incarnation {now.top_number} has started meanwhile. {_AGAIN}"
    if max(now.claims, default=0) != max(then.claims, default=0):
        return f"claims were deleted meanwhile. {_AGAIN}"
    changed = [str(folder) for folder in needed if now.folders.get(folder) != then.folders[folder]]
    return f"{', '.join(changed)} was deleted or replaced meanwhile. {_AGAIN}" if changed else None


def unchanged(plan: PrunePlan, then: Listing, now: Listing, pins: Collection[Folder]) -> PrunePlan:
    """What of a plan may still be done: without what has been pinned since, or is no longer as it was.

    Names of shards are their writer's own, so another run's checkpoint in the place of one is not as it was.
    """

    def decide(decision: Decision) -> Decision:
        folder = decision.folder
        if decision.keep:
            return decision
        if folder in now.pins or folder in pins:
            return Decision(folder, True, _PINNED)
        is_same = now.folders.get(folder) == then.folders[folder]
        return decision if is_same else Decision(folder, True, "deleted or replaced meanwhile")

    claims = tuple(number for number in plan.claims if number in now.claims)
    return replace(plan, decisions=tuple(map(decide, plan.decisions)), claims=claims)
