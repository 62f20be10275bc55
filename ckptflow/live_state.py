"""The user's state as the manager works with it: walked once, planned once, until it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptflow.commit.resume import Load
from ckptflow.commit.team import Cluster
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest
from ckptflow.state.assign import Restore, match
from ckptflow.state.build import build_missing
from ckptflow.state.capture import Snapshot, capture
from ckptflow.state.tree import as_mapping, walk
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import WorkerPlan, plan_shards
from ckptflow.transfer.reader import check_sizes, read_tensors

logger = logging.getLogger("ckptflow")

Rename = Mapping[str, str] | Callable[[str], str]

_NAMES_SHOWN = 20


class LiveState:
    """Named objects, the tensors found in them, and this worker's plan for writing those."""

    def __init__(self, state: Any, cluster: Cluster, shard_bytes: int) -> None:
        self._objects = as_mapping(state)
        self._cluster = cluster
        self._shard_bytes = shard_bytes
        self._tree = walk(self._objects)
        self._plan: WorkerPlan | None = None

    def refresh(self) -> None:
        """Walks the objects again if anything was built, added or replaced since."""
        if self._tree.is_stale():
            self._tree, self._plan = walk(self._objects), None

    def plan(self) -> WorkerPlan:
        """This worker's plan, made at the first save and after each change.

        Called in the background, by one save at a time; `refresh` is called only between saves.
        """
        if self._plan is None:
            self._plan = plan_shards(
                self._tree.specs,
                worker=self._cluster.worker,
                world_size=self._cluster.world_size,
                shard_bytes=self._shard_bytes,
            )
        return self._plan

    def capture(self) -> Snapshot:
        """Holds every value as it is now, of whatever is there now. On the training thread, between two steps."""
        self.refresh()
        return capture(self._tree, is_chief=self._cluster.is_chief)

    def match(self, manifest: Manifest, *, partial: bool, rename: Rename | None) -> Restore:
        """What of `manifest` goes where, after building what is not built yet. Raises `StateMismatchError`."""
        build_missing(self._objects, manifest.models)
        self.refresh()
        return match(self._tree, manifest, partial=partial, rename=rename)

    def loader(
        self, store: Store, pool: BufferPool, *, partial: bool, rename: Rename | None
    ) -> tuple[Callable[[Manifest], None], Load]:
        """What a restore does with a manifest: check it against the state, and load its values into it."""

        def check(manifest: Manifest) -> None:
            self.match(manifest, partial=partial, rename=rename)

        def load(folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
            if files is None:
                entries = store.list(f"{folder}/")
                files = {entry.key.partition("/")[2]: entry.size_bytes for entry in entries}
            check_sizes(manifest, files, f"{store.url}/{folder}")
            restore = self.match(manifest, partial=partial, rename=rename)
            read_tensors(store, folder, manifest, restore.wanted, restore, pool)
            restore.complete()
            if restore.missing or restore.unexpected:  # a warm start
                logger.warning(
                    "%s/%s was restored in part: %d tensors of it; left as they were: %s; not used: %s",
                    store.url,
                    folder,
                    len(restore.wanted),
                    _some(restore.missing),
                    _some(restore.unexpected),
                )

        return check, load


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return (", ".join(names[:_NAMES_SHOWN]) or "nothing") + (f" and {more} more" if more > 0 else "")
