"""How one restore brings a checkpoint into the state, and the next one where that was damaged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial as bound

from ckptflow.commit.sameness import checksum
from ckptflow.format.dtypes import Array
from ckptflow.format.layout import Folder, parse_folder
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import Rename, Target, Wanted
from ckptflow.format.words import some_of
from ckptflow.job.live_state import LiveState
from ckptflow.reading import ArrayTarget
from ckptflow.state.put import rehearse
from ckptflow.state.restore import Restore
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import check_shards, read_tensors
from ckptflow.transfer.streams import Streams
from ckptflow.transfer.verify import verify_checkpoint

logger = logging.getLogger("ckptflow")

_NAMES_SHOWN = 20


class Loading:
    """What `Resume` does with a manifest, step by step, each on all workers before any of them begins the next.

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
    ) -> None:
        """`look` is called now and then while much is read, and raises if that is in vain."""
        self._live = live
        self._store = store
        self._pool = pool
        self._streams = streams
        self._partial = partial
        self._rename = rename
        self._look = look
        self._checked: tuple[Manifest, Restore] | None = None
        self._loaded: Restore | None = None
        self.manifest: Manifest | None = None  # of what was loaded
        self.missing: frozenset[str] = frozenset()  # what has got no value by it
        self.has_set_aside = False
        self._aside: dict[str, Array] = {}

    def check(self, manifest: Manifest) -> str:
        """A text that is the same on all workers if they take the same tensors of what they share.

        Raises `StateMismatchError`, and `CorruptCheckpointError` for what it reads. What is checked stays so.
        """
        if self._checked is not None and self._checked[0] == manifest:
            return checksum(self._checked[1].shared())
        self._checked = None
        restore = self._live.match(manifest, partial=self._partial, rename=self._rename)
        rehearse(restore, bound(self._read, manifest))
        if self._partial:
            self._read(manifest, restore.rest, restore, only_verify=True)
        self._set_aside(manifest, restore)
        self._checked = manifest, restore
        return checksum(restore.shared())

    def load(self, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
        """Checks the shards' sizes, in `files` or as they are listed, and assigns."""
        check_shards(self._store, folder, manifest, files)
        self.check(manifest)
        checked, self._checked = self._checked, None  # once: what is read again is checked again
        if checked is not None:
            self._read(manifest, checked[1].rest, checked[1])
            self._loaded, self.manifest = checked[1], manifest

    def complete(self) -> None:
        """Assigns what was kept back."""
        restore, self._loaded = self._loaded, None
        if restore is None:
            return
        restore.complete()
        self.missing = frozenset(restore.missing)
        if restore.missing or restore.unexpected:  # a warm start
            logger.warning(
                "%s/%s was restored in part: %d tensors of it; left as they were: %s; not used: %s",
                self._store.url,
                restore.origin,
                len(restore.wanted),
                some_of(restore.missing, _NAMES_SHOWN) or "nothing",
                some_of(restore.unexpected, _NAMES_SHOWN) or "nothing",
            )

    def take_aside(self, name: str) -> dict[str, Array]:
        """The tensors under a name that was attached when they were read, by their full names; once."""
        found = {tensor: array for tensor, array in self._aside.items() if tensor.startswith(f"{name}/")}
        self._aside = {tensor: array for tensor, array in self._aside.items() if tensor not in found}
        return found

    def find_damage(self, folder: Folder, manifest: Manifest) -> str:
        """What is wrong with a checkpoint, other workers' parts as well, in words; empty where all of it is sound."""
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

    def _read(self, manifest: Manifest, wanted: Sequence[Wanted], target: Target, *, only_verify: bool = False) -> None:
        folder = parse_folder(manifest.folder)
        if folder is None or not wanted:  # a manifest that was read names its folder
            return
        read_tensors(
            self._store,
            folder,
            manifest,
            wanted,
            target,
            self._pool,
            only_verify=only_verify,
            streams=self._streams,
            look=self._look,
        )
