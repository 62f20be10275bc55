"""Which checkpoint a life of the job starts from: look, claim, list, restore, and what is to be saved again.

Rules 1 to 5 of the protocol. All workers run this in lockstep on the main thread; the chief alone lists and claims. The
order is what makes it safe: nothing is claimed before the newest checkpoint was checked against the state, and nothing
is believed that was listed before the claim. What is only read is claimed later, by `Beginning.take_up`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from ckptflow.commit.beginning import Beginning
from ckptflow.commit.catalog import Summaries, Summary, read_manifest, summarize
from ckptflow.commit.choosing import Choice, View
from ckptflow.commit.handing import pack, unpack
from ckptflow.commit.lineage import NO_CLAIMS, Held, Own, newest_claim
from ckptflow.commit.outcomes import Outcome, PartResult, are_fine, outcome_of
from ckptflow.commit.start import Seen, begun
from ckptflow.commit.start import Start as Start
from ckptflow.commit.together import check_manifest_is_seen, not_the_same_storage
from ckptflow.errors import (
    LEAVING,
    CheckpointGoneError,
    CorruptCheckpointError,
    ObjectNotFoundError,
    StorageError,
    UsageError,
)
from ckptflow.events import Damaged, Tell, tell_nobody
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, Reason
from ckptflow.format.words import some_of
from ckptflow.peers.exchange import Terms
from ckptflow.peers.team import Call, Team, agree, chief_says
from ckptflow.storage.again import is_there
from ckptflow.storage.store import Store
from ckptflow.threads import at_once
from ckptflow.transfer.reader import check_shards

logger = logging.getLogger("ckptflow")

_READERS = 8  # files looked for at once
Load = Callable[[Folder, Manifest, Mapping[str, int] | None], None]
_Do = Callable[[Folder], str | Terms | None]  # one worker's part, and what it tells the others


class _Handed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the chief says of a manifest: how reading it went, and the manifest, `packed` for the others.

    Where nothing is packed they have it already, or it is too large for their messages: then each reads it.
    """

    part: PartResult
    packed: bytes = b""


class _Look(msgspec.Struct, frozen=True):
    """What would be restored now, and what the claim is to say of it."""

    folder: Folder | None
    reason: Reason


class Resume(Beginning):
    """One restore: `check` refuses a manifest that does not fit the state, `load` brings its values back.

    `divide` is for several workers that read together: it refuses as `check` does, and returns what this one wants;
    `share` is called with what all of them want, before anything is read. `check(manifest)`,
    `load(folder, manifest, files)` and `complete()` run on every worker, each only once the one before has gone well on
    all of them. The manifest is read by the chief, who hands it on; `files` are all shards at their sizes, as it has
    found them listed. `load` may assign only what every other checkpoint that fits the state
    replaces; `complete` assigns the rest. They raise `CorruptCheckpointError` only where bytes came whole and wrong or
    a shard is missing; whatever else they raise stops the restore on all workers.
    """

    def __init__(
        self,
        store: Store,
        cluster: Team,
        summaries: Summaries,
        *,
        check: Callable[[Manifest], str | None],
        load: Load,
        divide: Callable[[Manifest], Terms] | None = None,
        share: Callable[[Manifest, Sequence[Terms]], None] = lambda manifest, terms: None,
        complete: Callable[[], None] = lambda: None,
        verify: Callable[[Folder, Manifest], str] = lambda folder, manifest: "",
        read_only: bool = False,
        own: Own = NO_CLAIMS,
        claim_timeout_s: float = 60.0,
        tell: Tell = tell_nobody,
    ) -> None:
        super().__init__(store, cluster, summaries, own=own, claim_timeout_s=claim_timeout_s)
        self._check = check
        self._load = load
        self._divide = divide
        self._share = share
        self._complete = complete
        self._verify = verify
        self._has_loaded = False
        self._manifest: Manifest | None = None  # the last one that was read: on all workers, or on none
        self._read_only = read_only
        self._tell = tell
        self._seen: Seen | None = None

    def run(self, step: int | None) -> Start:
        """Restores the newest valid checkpoint, or the one of `step` and no other. See the module's docstring."""
        with self._summaries.keeping_newest():
            reason = self._look(step)
            return self._restore(step, None if self._read_only else self._claim(reason))

    def read(self, step: int) -> Start:
        """Restores the checkpoint of `step` and no other, and writes nothing: `take_up` is to claim.

        What it must find there then is the claim that this process holds, fenced or not, or else the newest of another.
        """

        def see() -> None:
            view, held = self._view, self._own.held
            if view is not None:
                newest = newest_claim(view.listing.claims, self._summaries, self._own.tried)
                self._seen = Seen(*((held.number, held.writer_id) if held is not None else newest))

        with self._summaries.keeping_newest():
            self._look(step, see)
            return self._restore(step, None)

    def _restore(self, step: int | None, held: Held | None) -> Start:
        if self._view is not None and held is not None:
            self._view.is_stale, self._view.is_last = True, False
        problems: list[str] = []
        while True:
            choice = chief_says(self._cluster, Call.LOOK, lambda: self._chooser.choose(step, held), Choice)
            if choice.folder is None:
                if self._has_loaded:
                    raise CheckpointGoneError(
                        f"{self._store.url}: the checkpoint that was being restored is gone, and there is no other. "
                        "Start again with a state that is made anew"
                    )
                logger.info("%s: no checkpoint is here, starting anew", self._store.url)
                return Start(held)
            logger.debug("%s/%s is tried: %s", self._store.url, choice.folder, choice.reason)
            summary, parts = self._attempt(choice.folder)
            if summary is not None:
                return self._start(held, summary, step, choice, problems)
            self._manifest = None
            self._check_same_storage(choice.folder, parts)
            damaged = self._find_damage(choice.folder, parts)
            if damaged:
                problems.append(self._met_damage(choice.folder, step, damaged))
            else:
                self._met_gone(choice.folder)

    @property
    def _view(self) -> View | None:
        return self._chooser.view

    # What all workers do

    def _look(self, step: int | None, see: Callable[[], None] = lambda: None) -> Reason:
        """Rule 1: checks the state against what would be restored now; a refusal costs no claim. The chief `see`s more,
        before anything is read."""

        def choose() -> _Look:
            choice = self._chooser.choose(step, None)
            see()
            is_rollback = step is not None and choice.save_again
            return _Look(choice.folder, "rollback" if is_rollback else "resume" if choice.folder else "start")

        look = chief_says(self._cluster, Call.LOOK, choose, _Look)
        if look.folder is not None:
            parts = self._in_parts(look.folder, None, self._checks())
            self._check_same_storage(look.folder, parts)
        return look.reason

    def _has(self, folder: Folder) -> bool:
        return self._manifest is not None and self._manifest.folder == str(folder)

    def _sound(self) -> Manifest:
        if self._manifest is None:
            raise ValueError("the manifest is read first")
        return self._manifest

    def _read(self, files: Mapping[str, int] | None, folder: Folder) -> None:
        """The manifest, once, on the chief: it knows the run, and takes another run's in its place for damage.

        `files`: what was listed of the folder, for the sizes of all shards. They are compared here for all workers.
        """
        manifest = self._manifest if self._has(folder) else None
        self._manifest = None
        if manifest is None:
            manifest = self._summaries.read_manifest(folder)
        view = self._view
        if view is not None and folder in view.counting.folders and view.counting.is_of_another(manifest.run_id):
            raise CorruptCheckpointError(f"{self._store.url}/{folder}: it is a checkpoint of another run")
        if files is not None:
            check_shards(self._store, folder, manifest, files)
        self._manifest = manifest

    def _hand_on(self, folder: Folder, files: Mapping[str, int] | None) -> list[PartResult]:
        """Brings the manifest to every worker: the chief reads it, and hands it on. How that went on each.

        What the chief meets holds for all. One that is too large for a message, or does not arrive whole, is read, and
        so is each where a message is a reduction.
        """

        def read() -> _Handed:
            is_known = self._has(folder)
            part = self._try(folder, partial(self._read, files))
            is_for_others = not is_known and self._cluster.world_size > 1 and self._cluster.carries_much
            return _Handed(part, pack(self._sound()) if is_for_others and part.outcome is Outcome.FINE else b"")

        def take(folder: Folder) -> None:
            if self._cluster.is_chief or (self._has(folder) and not handed.packed):
                return
            where = f"{self._store.url}/{folder.manifest_key}, as worker 0 has read it"
            found = unpack(handed.packed, folder, where) if handed.packed else None
            self._manifest = found or self._summaries.read_manifest(folder)

        handed = chief_says(self._cluster, Call.READ, read, _Handed)
        parts = [handed.part] * self._cluster.world_size
        if handed.part.outcome is Outcome.FINE:
            parts = agree(self._cluster, Call.READ, partial(self._try, folder, take))
        if not are_fine(parts):
            self._manifest = None
        return parts

    def _check_read(self, folder: Folder) -> str | None:
        return self._check(self._sound())

    def _checks(self) -> dict[Call, _Do]:
        """What is done with a checkpoint before any value is changed."""
        divide = self._divide
        if divide is None:
            return {Call.CHECK: self._check_read}
        return {Call.DIVIDE: lambda _: divide(self._sound()), Call.CHECK: self._check_read}

    def _attempt(self, folder: Folder) -> tuple[Summary | None, list[PartResult]]:
        """Reads one checkpoint whole into the state; None where it did not go well on every worker."""
        view = self._view
        files = view.listing.folders.get(folder) if view is not None and self._cluster.is_chief else None

        def load(folder: Folder) -> None:
            self._has_loaded = True
            manifest = self._sound()
            self._load(folder, manifest, manifest.shard_sizes)  # as the chief has found them listed

        def complete(folder: Folder) -> None:
            self._complete()
            if view is not None and self._cluster.is_chief:
                view.lineage = self._chooser.lineage_of(summarize(self._sound(), self._store.url), view)

        parts = self._in_parts(folder, files or {}, {**self._checks(), Call.LOAD: load, Call.COMPLETE: complete})
        return summarize(self._sound(), self._store.url) if are_fine(parts) else None, parts

    def _in_parts(self, folder: Folder, files: Mapping[str, int] | None, parts: Mapping[Call, _Do]) -> list[PartResult]:
        """Reads the manifest, and does part after part, as long as each goes well on every worker.

        Says how the last one went on each. What a part returns must be the same on every worker: else their copies
        would differ. Checking may make variables, a collective: who could not read must have said so before the others
        begin to.
        """
        found = self._hand_on(folder, files)
        for call, do in parts.items():
            if not are_fine(found):
                break
            found = agree(self._cluster, call, partial(self._try, folder, do))
            if are_fine(found) and len({part.taken for part in found}) > 1:
                raise UsageError(
                    f"{self._store.url}/{folder}: the workers would not take the same tensors of it, and nothing of "
                    "it was restored: call restore with the same partial= and rename= on each; what is a worker's own "
                    "goes into PerWorker"
                )
            if call is Call.DIVIDE and are_fine(found):
                self._share(self._sound(), [part.terms or Terms() for part in found])
        return found

    def _check_same_storage(self, folder: Folder, parts: Sequence[PartResult]) -> None:
        """Raises `StorageError` on all if a worker does not find the checkpoint that the chief has there."""
        check_manifest_is_seen(self._cluster, self._store, folder, [part.outcome is Outcome.GONE for part in parts])

    def _try(self, folder: Folder, do: _Do) -> PartResult:
        try:
            told = do(folder)
        except LEAVING:
            raise
        except BaseException as error:
            part = outcome_of(error)
            if part is None:
                raise
            return self._is_it_damage(folder, part) if part.outcome is Outcome.DAMAGED else part
        return PartResult(terms=told) if isinstance(told, Terms) else PartResult(taken=told or "")

    def _is_it_damage(self, folder: Folder, damaged: PartResult) -> PartResult:
        """A prune deletes the manifest first: where that is gone by now, the rest was on its way out, not damaged.

        If it cannot be asked for, there is no proof of damage.
        """
        try:
            read_manifest(self._store, folder)
        except ObjectNotFoundError:
            return PartResult(Outcome.GONE, damaged.why)
        except CorruptCheckpointError:
            pass
        return damaged

    def _find_damage(self, folder: Folder, parts: Sequence[PartResult]) -> str:
        """What all workers take for damage of a checkpoint that did not go well; empty where it is gone, or going.

        Only what the chief has seen is damage: one worker's bad disk must cut nothing off. What the chief did not read,
        as another worker's own entries, it looks at now. Raises `CorruptCheckpointError` where it finds all sound.
        """
        damaged = {worker: part.why for worker, part in enumerate(parts) if part.outcome is Outcome.DAMAGED}
        if parts[0].outcome is Outcome.GONE or not damaged:
            return ""
        worker, text = next(iter(damaged.items()))
        if 0 not in damaged:
            is_missing = all(parts[each].is_missing for each in damaged)
            look = self._raise_missing if is_missing else self._raise_damage
            seen = chief_says(self._cluster, Call.VERIFY, lambda: self._try(folder, look), PartResult)
            if seen.outcome is Outcome.FINE and is_missing:
                raise StorageError(not_the_same_storage(f"worker {worker} does not find what worker 0 does: {text}"))
            if seen.outcome is Outcome.FINE:
                raise CorruptCheckpointError(
                    f"worker {worker} reads damage in a checkpoint in which the chief finds none, so nothing is given "
                    f"up: {text}. Look at that worker's disk and network; rollback(step) goes on from an older one"
                )
            return text if seen.outcome is Outcome.DAMAGED else ""
        return text

    def _raise_missing(self, folder: Folder) -> None:
        """Looks for every file of a checkpoint, on the chief: that a listing shows one is no proof that it is there."""
        manifest = self._summaries.read_manifest(folder)
        check_shards(self._store, folder, manifest)
        names = [shard.name for shard in manifest.shards]
        there = at_once(_READERS, lambda name: is_there(self._store, folder.key(name)), names)
        missing = [name for name, is_here in zip(names, there, strict=True) if not is_here]
        if missing:
            raise CorruptCheckpointError(f"{self._store.url}/{folder}: {some_of(missing, 3)}: listed, and not found")

    def _raise_damage(self, folder: Folder) -> None:
        """Reads every byte of a checkpoint, other workers' parts as well. On the chief."""
        manifest = self._summaries.read_manifest(folder)
        check_shards(self._store, folder, manifest)
        found = self._verify(folder, manifest)
        if found:
            raise CorruptCheckpointError(found)

    def _met_damage(self, folder: Folder, step: int | None, text: str) -> str:
        """All workers agree that this one is damaged."""
        if step is not None:
            raise CorruptCheckpointError(f"{text}; no other step is taken in its place, restore_latest() would")
        if self._view is not None:
            self._view.damaged[folder] = text
            self._view.rest = None
        self._tell(Damaged(step=folder.step, folder=str(folder), error=text))
        logger.error("damaged checkpoint, trying the one before: %s", text)
        return text

    def _met_gone(self, folder: Folder) -> None:
        if self._view is not None:
            self._view.is_stale = True
            self._view.gone += 1
        logger.info("%s/%s went while it was read; listing again", self._store.url, folder)

    def _start(
        self, held: Held | None, restored: Summary, step: int | None, choice: Choice, problems: Sequence[str]
    ) -> Start:
        """What the incarnation builds on, now that every worker holds `restored`."""
        if problems:
            logger.warning("restored step %d instead (%s)", restored.checkpoint.step, restored.checkpoint.url)
        reason: Reason = "resume"
        if choice.save_again:
            reason = "rollback" if step is not None else "outside" if choice.is_outside else "damage"
        view = self._view
        if choice.is_outside and step is None and view is not None:
            logger.warning("%s is superseded; no current checkpoint could be restored", restored.checkpoint.url)
        if held is None:
            seen = self._seen._replace(newest=view.counting.newest) if view is not None and self._seen else None
            return Start(None, reason, restored, seen=seen)
        if view is None:
            return Start(held, reason, restored, save_again=choice.save_again)
        start = begun(held, reason, restored, view.lineage, view.counting)
        return replace(start, save_again=choice.save_again)
