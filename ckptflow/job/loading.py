"""How one restore brings a checkpoint into the state, and the next one where that was damaged."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial as bound

from msgspec.structs import replace

from ckptflow.commit.catalog import Summary
from ckptflow.commit.sameness import checksum
from ckptflow.events import Restored
from ckptflow.format.dtypes import Array
from ckptflow.format.layout import Folder, parse_folder
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import Rename, Target, Wanted
from ckptflow.format.words import some_of
from ckptflow.job.live_state import LiveState
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.exchange import Terms
from ckptflow.peers.pulls import Exchange, Phase
from ckptflow.peers.team import Call, Done, Team, agree, chief_says
from ckptflow.reading import ArrayTarget
from ckptflow.state.put import rehearse
from ckptflow.state.restore import Restore
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import check_shards, read_tensors
from ckptflow.transfer.sharing import Moved
from ckptflow.transfer.streams import Streams
from ckptflow.transfer.verify import verify_checkpoint

logger = logging.getLogger("ckptflow")

_NAMES_SHOWN = 20


class Loading:
    """What `Resume` does with a manifest, step by step, each on all workers before any of them begins the next.

    `divide` tells what this worker wants of it, where several read together, and `share` takes what all of them want.
    `check` finds what does not fit and changes no value: tables, iterators and vocabularies are read for that. With
    `partial` it verifies every byte, too, since an older checkpoint may have no value for what this one would leave.
    What is attached to the state is read, and set aside for whoever attached it, with metrics that are not built yet:
    damage in it is to be found while there still is a choice.
    `load` assigns whatever any other checkpoint that fits has, too; `complete` all the rest.
    """

    def __init__(
        self,
        live: LiveState,
        store: Store,
        pool: BufferPool,
        streams: Streams,
        *,
        partial: bool,
        rename: Rename | None,
        look: Callable[[], None],
        readers: Cluster | None = None,
    ) -> None:
        """`look` is called now and then while much is read, and raises if that is in vain. `readers`: the workers, if
        storage is to be read once for all of them."""
        self._live = live
        self._store = store
        self._pool = pool
        self._streams = streams
        self._partial = partial
        self._rename = rename
        self._look = look
        self._readers = readers
        self._exchange: Exchange | None = None  # while `together`
        self.moved = Moved()  # of shards, by what was read here so far
        self._matched: tuple[Manifest, Restore] | None = None
        self._checked: tuple[Manifest, Restore] | None = None
        self._loaded: Restore | None = None
        self.manifest: Manifest | None = None  # of what was loaded
        self.missing: frozenset[str] = frozenset()  # what has got no value by it
        self.has_set_aside = False
        self._aside: dict[str, Array] = {}

    @property
    def is_divided(self) -> bool:
        """Whether several workers read together, so that each has to know what the others want."""
        return self._readers is not None

    @contextmanager
    def together(self) -> Iterator[None]:
        """While it is open, other workers may come for what this one has read. For one restore."""
        if self._readers is None:
            yield
            return
        readers = self._readers
        with Exchange(readers.worker, readers.peers, self._pool, readers.storage_goes_on) as self._exchange:
            try:
                yield
            finally:
                self._exchange = None

    def divide(self, manifest: Manifest) -> Terms:
        """What this worker wants of a checkpoint. Raises `StateMismatchError`."""
        self._matched = None
        restore = self._match(manifest)
        if self._exchange is None:
            return Terms()
        return replace(
            self._exchange.terms(manifest, restore.early, restore.rest), is_checked=self._checked is not None
        )

    def share(self, manifest: Manifest, terms: Sequence[Terms]) -> None:
        """What is read of it from here on is read together.

        If a worker has not checked it, as after damage that it alone has met, all check it again: who did not would
        have nothing for those who do.
        """
        if not all(each.is_checked for each in terms):
            self._checked = self._matched = None
        if self._exchange is not None:
            self._exchange.share(manifest, terms)

    def check(self, manifest: Manifest) -> str:
        """A text that is the same on all workers if they take the same tensors of what they share.

        Raises `StateMismatchError`, and `CorruptCheckpointError` for what it reads. What is checked stays so.
        """
        if self._checked is not None and self._checked[0] == manifest:
            return checksum(self._checked[1].shared())
        with self._telling():
            restore, self._matched = self._match(manifest), None  # what a rehearsal has refused is matched again
            rehearse(restore, bound(self._read, manifest, phase=Phase.EARLY))
            if self._partial:
                self._read(manifest, restore.rest, restore, phase=Phase.VERIFY)
            self._set_aside(manifest, restore)
            self._checked = manifest, restore
            return checksum(restore.shared())

    def _match(self, manifest: Manifest) -> Restore:
        """What of it goes where, worked out once."""
        for known in (self._checked, self._matched):
            if known is not None and known[0] == manifest:
                return known[1]
        self._checked = None
        restore = self._live.match(manifest, self._store.url, partial=self._partial, rename=self._rename)
        self._matched = manifest, restore
        return self._matched[1]

    def check_listed(self, folder: Folder, manifest: Manifest) -> None:
        """Raises `CorruptCheckpointError` unless every shard is listed at its size."""
        check_shards(self._store, folder, manifest)

    def load(self, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
        """Checks the shards' sizes, in `files` or as they are listed, and assigns."""
        with self._telling():
            check_shards(self._store, folder, manifest, files)
            self.check(manifest)
            checked, self._checked = self._checked, None  # once: what is read again is checked again
            if checked is not None:
                self._read(manifest, checked[1].rest, checked[1], phase=Phase.REST)
                self._loaded, self.manifest = checked[1], manifest

    def _telling(self) -> AbstractContextManager[None]:
        """Whatever is raised in it, workers that wait for this one are told at once."""
        return self._exchange.telling() if self._exchange is not None else nullcontext()

    def complete(self) -> None:
        """Assigns what was kept back."""
        restore, self._loaded = self._loaded, None
        if restore is None:
            return
        restore.complete()
        self.missing = frozenset(restore.missing)
        if restore.missing or restore.unexpected:  # a warm start
            logger.warning(
                "%s was restored in part: %d tensors of it; left as they were: %s; not used: %s",
                restore.origin,
                len(restore.wanted),
                some_of(restore.missing, _NAMES_SHOWN) or "nothing",
                some_of(restore.unexpected, _NAMES_SHOWN) or "nothing",
            )

    def event(self, restored: Summary, *, restore_s: float, is_only_read: bool) -> Restored:
        """What is told of it, once it has gone well."""
        return Restored(
            step=restored.folder.step,
            folder=str(restored.folder),
            size_bytes=restored.checkpoint.size_bytes,
            restore_s=restore_s,
            created_at=restored.checkpoint.created_at,
            is_only_read=is_only_read,
            **self.moved._asdict(),
        )

    def take_aside(self, name: str) -> dict[str, Array]:
        """The tensors under a name that was attached when they were read, by their full names; once."""
        found = {tensor: array for tensor, array in self._aside.items() if tensor.startswith(f"{name}/")}
        self._aside = {tensor: array for tensor, array in self._aside.items() if tensor not in found}
        return found

    def find_damage(self, folder: Folder, manifest: Manifest) -> str:
        """What is wrong with a checkpoint, other workers' parts as well, in words; empty where all of it is sound.

        All workers have done with it before: what is kept for them would leave no buffer to read it through.
        """
        if self._exchange is not None:
            self._exchange.end_round()
        problems = verify_checkpoint(self._store, folder, manifest, self._pool, self._streams)
        return some_of(list(map(str, problems)), 3)

    def _set_aside(self, manifest: Manifest, restore: Restore) -> None:
        attached = self._live.attached
        if not attached or self.manifest == manifest:  # it was, when this was loaded
            return
        placed = {each.tensor for each in restore.wanted}
        target = ArrayTarget(manifest)
        wanted = [
            Wanted(index)
            for index, record in enumerate(manifest.tensors)
            if record.name.partition("/")[0] in attached or (record.metric and index not in placed)
        ]
        self._read(manifest, wanted, target)
        self._aside = {manifest.tensors[index].name: array for index, array in target.arrays.items()}
        self.has_set_aside = True

    def _read(
        self, manifest: Manifest, wanted: Sequence[Wanted], target: Target, *, phase: Phase | None = None
    ) -> None:
        """Without a phase it is read from storage by this worker alone, while others may still come for the rest."""
        folder = parse_folder(manifest.folder)
        if folder is None or not wanted:  # a manifest that was read names its folder
            return
        together = self._exchange.reading(phase) if self._exchange is not None else nullcontext()
        with together as sharing:
            moved = read_tensors(
                self._store,
                folder,
                manifest,
                wanted,
                target,
                self._pool,
                only_verify=phase is Phase.VERIFY,
                streams=self._streams,
                look=self._look,
                sharing=sharing,
            )
        self.moved = Moved(*map(operator.add, self.moved, moved))


def load_again(cluster: Team, loading: Loading, folder: Folder, manifest: Manifest) -> None:
    """Assigns what was loaded once more. Called by all workers; takes no other checkpoint in its place."""

    def list_shards() -> Done:
        loading.check_listed(folder, manifest)
        return Done()

    def load() -> Done:
        loading.load(folder, manifest, manifest.shard_sizes)  # as the chief has found them listed
        return Done()

    def complete() -> Done:
        loading.complete()
        return Done()

    chief_says(cluster, Call.CHECK, list_shards, Done)  # for all, and before any of them assigns
    with loading.together():
        if loading.is_divided:
            loading.share(manifest, agree(cluster, Call.DIVIDE, lambda: loading.divide(manifest)))
        agree(cluster, Call.CHECK, lambda: loading.check(manifest))
        agree(cluster, Call.LOAD, load)
        agree(cluster, Call.COMPLETE, complete)
