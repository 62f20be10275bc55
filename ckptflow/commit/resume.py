"""Which checkpoint a life of the job starts from: look, claim, list, restore, and what is to be saved again.

Rules 1 to 5 of the protocol. All workers run this in lockstep on the main thread; the chief alone lists and claims. The
order is what makes it safe: nothing is claimed before the newest checkpoint was checked against the state, and nothing
is believed that was listed before the claim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckptflow.commit.catalog import Summaries, Summary, read_manifest, summarize
from ckptflow.commit.choosing import Chooser, View
from ckptflow.commit.lineage import Held, claim_next, pack_writer_id, unpack_writer_id
from ckptflow.commit.team import Cluster, Outcome, Vote, chief_says, raise_together, vote, vote_for
from ckptflow.commit.together import check_claim_is_seen, check_manifest_is_seen
from ckptflow.errors import CheckpointGoneError, CorruptCheckpointError, ObjectNotFoundError, UsageError
from ckptflow.events import Damaged, Tell, tell_nobody
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, Reason
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow")

Load = Callable[[Folder, Manifest, Mapping[str, int] | None], None]


@dataclass(frozen=True, slots=True)
class Start:
    """How a life of the job began. `held` is None for a reader; `restored` is None on a root where nothing counts.

    `save_again`: what was restored is not the newest that counted, so nothing protects it, nor the decision to start
    there, until this incarnation has saved it as its own.
    """

    held: Held | None
    reason: Reason = "start"
    restored: Summary | None = None
    lineage: frozenset[Folder] = frozenset()
    barrier: int = 0
    fresh_since: int = 0
    save_again: bool = False


class Resume:
    """One restore: `check` refuses a manifest that does not fit the state, `load` brings its values back.

    `check(manifest)`, `load(folder, manifest, files)` and `complete()` run on every worker, each only once the one
    before has gone well on all of them. `load` may assign only what every other checkpoint that fits the state
    replaces; `complete` assigns the rest. They raise `CorruptCheckpointError` only where bytes came whole and wrong or
    a shard is missing; whatever else they raise stops the restore on all workers.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        summaries: Summaries,
        *,
        check: Callable[[Manifest], int | None],
        load: Load,
        complete: Callable[[], None] = lambda: None,
        read_only: bool = False,
        claim_timeout_s: float = 60.0,
        tell: Tell = tell_nobody,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._summaries = summaries
        self._check = check
        self._load = load
        self._complete = complete
        self._has_loaded = False
        self._read_only = read_only
        self._claim_timeout_s = claim_timeout_s
        self._tell = tell
        self._chooser = Chooser(store, summaries)
        self.has_claimed = False

    def start_anew(self, *, fresh: bool) -> Start:
        """Claims without restoring: on an empty root, or over what is there with `fresh`."""
        reason: Reason = "fresh" if fresh else "start"
        if not fresh:
            chief_says(self._cluster, self._chooser.refuse_used_root)
        held = self._claim(reason)

        def look_after_claim() -> tuple[int, ...]:
            return self._chooser.warn_of_fresh(held) if fresh else self._chooser.refuse_used_root(held)

        chief_says(self._cluster, look_after_claim)
        barrier = held.number if fresh else 0
        return Start(held, reason, barrier=barrier, fresh_since=barrier)

    def run(self, step: int | None) -> Start:
        """Restores the newest valid checkpoint, or the one of `step` and no other. See the module's docstring."""
        reason = self._look(step)
        held = None if self._read_only else self._claim(reason)
        if self._view is not None and held is not None:
            self._view.is_stale, self._view.is_last = True, False
        problems: list[str] = []
        while True:
            found, number, folder_step, call, again, outside = chief_says(
                self._cluster, lambda: self._chooser.choose(step, held)
            )[:6]
            if not found:
                if self._has_loaded:
                    raise CheckpointGoneError(
                        f"{self._store.url}: the checkpoint that was being restored is gone, and there is no other. "
                        "Start again with a state that is made anew"
                    )
                logger.warning("%s: no checkpoint is here, starting anew", self._store.url)
                return Start(held)
            folder = Folder(folder_step, number, call)
            summary, votes = self._attempt(folder)
            if summary is not None:
                return self._start(held, summary, step, bool(again), bool(outside), problems)
            outcomes = {v.outcome for v in votes}
            if Outcome.DAMAGED in outcomes:
                problems.append(self._met_damage(folder, step, votes))
            else:
                self._met_gone(folder)

    @property
    def _view(self) -> View | None:
        return self._chooser.view

    # What all workers do

    def _claim(self, reason: Reason) -> Held:
        mine: list[Held] = []

        def claim() -> tuple[int, ...]:
            held = claim_next(self._store, self._summaries, reason, self._claim_timeout_s)
            mine.append(held)
            return (held.number, *unpack_writer_id(held.writer_id))

        number, first, second = chief_says(self._cluster, claim)[:3]
        self.has_claimed = True
        held = mine[0] if mine else Held(number, "", pack_writer_id((first, second)))
        check_claim_is_seen(self._cluster, self._store, held)
        return held

    def _look(self, step: int | None) -> Reason:
        """Rule 1: checks the state against what would be restored now; a refusal costs no claim."""
        reason: list[Reason] = ["resume"]

        def choose() -> tuple[int, ...]:
            numbers = self._chooser.choose(step, None)
            view = self._view
            is_rollback = step is not None and view is not None and bool(numbers[4])
            reason[0] = "rollback" if is_rollback else "resume" if numbers[0] else "start"
            return numbers

        found, number, folder_step, call = chief_says(self._cluster, choose)[:4]
        if not found:
            return reason[0]
        folder = Folder(folder_step, number, call)
        manifests: list[Manifest] = []
        votes = self._in_parts(folder, lambda: manifests.append(self._read(folder)), lambda: self._check(manifests[0]))
        check_manifest_is_seen(self._cluster, self._store, folder, votes)
        return reason[0]

    def _read(self, folder: Folder) -> Manifest:
        """The manifest. The chief, who knows the run, takes another run's in its place for damage."""
        manifest = read_manifest(self._store, folder)
        view = self._view
        if view is not None and folder in view.counting.folders and view.counting.is_of_another(manifest.run_id):
            raise CorruptCheckpointError(f"{self._store.url}/{folder}: it is a checkpoint of another run")
        return manifest

    def _attempt(self, folder: Folder) -> tuple[Summary | None, list[Vote]]:
        """Reads one checkpoint whole into the state; None where it did not go well on every worker."""
        view = self._view
        files = view.listing.folders.get(folder) if view is not None and self._cluster.is_chief else None
        manifests: list[Manifest] = []
        found: list[Summary] = []

        def load() -> None:
            self._has_loaded = True
            self._load(folder, manifests[0], files)

        def complete() -> None:
            self._complete()
            found.append(summarize(manifests[0], self._store.url))
            if view is not None and self._cluster.is_chief:
                view.lineage = self._chooser.lineage_of(found[0], view)

        votes = self._in_parts(
            folder,
            lambda: manifests.append(self._read(folder)),
            lambda: self._check(manifests[0]),
            load,
            complete,
        )
        return (found[0] if all(v.outcome is Outcome.FINE for v in votes) else None), votes

    def _in_parts(self, folder: Folder, *parts: Callable[[], int | None]) -> list[Vote]:
        """Does part after part, as long as each goes well on every worker; whatever happens is a vote.

        A part may return a number, which must be the same on every worker: else their copies would differ. Checking
        may make variables, a collective: who could not read must have said so before the others begin to.
        """
        votes: list[Vote] = []
        for part in parts:
            error, mine = self._try(folder, part)
            votes = vote(self._cluster, mine)
            raise_together(votes, error if mine.outcome is Outcome.FAILED else None, worker=self._cluster.worker)
            if any(v.outcome is not Outcome.FINE for v in votes):
                break
            if len({v.numbers for v in votes}) > 1:
                raise UsageError(
                    f"{self._store.url}/{folder}: the workers would not take the same tensors of it, and nothing of "
                    "it was restored: call restore with the same partial= and rename= on each; what is a worker's own "
                    "goes into PerWorker"
                )
        return votes

    def _try(self, folder: Folder, part: Callable[[], int | None]) -> tuple[BaseException | None, Vote]:
        try:
            number = part()
        except ObjectNotFoundError as error:
            return error, Vote(Outcome.GONE, str(error))
        except CorruptCheckpointError as error:
            return error, self._is_it_damage(folder, error)
        except BaseException as error:
            return error, vote_for(error)
        return None, Vote(Outcome.FINE, "", () if number is None else (number,))

    def _is_it_damage(self, folder: Folder, error: CorruptCheckpointError) -> Vote:
        """A prune deletes the manifest first: where that is gone by now, the rest was on its way out, not damaged."""
        try:
            read_manifest(self._store, folder)
        except ObjectNotFoundError:
            return Vote(Outcome.GONE, str(error))
        except CorruptCheckpointError:
            pass
        except BaseException as unreadable:  # no proof of damage
            return vote_for(unreadable)
        return Vote(Outcome.DAMAGED, str(error))

    def _met_damage(self, folder: Folder, step: int | None, votes: list[Vote]) -> str:
        """All workers agree that this one is damaged, or all raise: one worker's bad disk must cut nothing off."""
        worker, text = next((i, v.text) for i, v in enumerate(votes) if v.outcome is Outcome.DAMAGED)
        if votes[0].outcome is not Outcome.DAMAGED:
            raise CorruptCheckpointError(
                f"worker {worker} reads damage that the chief does not see, so nothing is given up: {text}"
            )
        if step is not None:
            raise CorruptCheckpointError(f"{text}; restore(step) takes no other step, restore_latest() would")
        if self._view is not None:
            self._view.damaged[folder] = text
        self._tell(Damaged(step=folder.step, folder=str(folder), error=text))
        logger.error("damaged checkpoint, trying the one before: %s", text)
        return text

    def _met_gone(self, folder: Folder) -> None:
        if self._view is not None:
            self._view.is_stale = True
            self._view.gone += 1
        logger.info("%s/%s went while it was read; listing again", self._store.url, folder)

    def _start(
        self, held: Held | None, restored: Summary, step: int | None, again: bool, outside: bool, problems: list[str]
    ) -> Start:
        """What the incarnation builds on, now that every worker holds `restored`."""
        if problems:
            logger.warning("restored step %d instead (%s)", restored.checkpoint.step, restored.checkpoint.url)
        reason: Reason = "resume"
        if again:
            reason = "rollback" if step is not None else "outside" if outside else "damage"
        view = self._view
        if outside and step is None and self._cluster.is_chief:
            logger.warning("%s is outside what counts; nothing that counts could be restored", restored.checkpoint.url)
        if view is None or held is None or not self._cluster.is_chief:
            return Start(held, reason, restored, save_again=again and held is not None)
        counting = view.counting
        return Start(
            held=held,
            reason=reason,
            restored=restored,
            lineage=view.lineage,
            barrier=held.number if reason == "rollback" else max(counting.barrier, restored.barrier),
            fresh_since=max(counting.fresh_since, restored.fresh_since),
            save_again=again,
        )
