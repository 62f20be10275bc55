"""What is read of a checkpoint once the state was restored from it: positions of `fit`, metrics, what was attached."""

from __future__ import annotations

from typing import Any

from ckptflow.commit.catalog import Summaries
from ckptflow.format.dtypes import Array
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import Rename
from ckptflow.job.carried import read_attached
from ckptflow.job.live_state import LiveState
from ckptflow.job.loading import Loading, load_again
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.team import Call
from ckptflow.reading import OpenCheckpoint
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.streams import Streams


class Rereading:
    """Reads checkpoints of one root, with the buffers of its manager.

    `loading` is the newest restore, until the first save after it: its manifest is not read again.
    """

    def __init__(
        self,
        live: LiveState,
        cluster: Cluster,
        store: Store,
        summaries: Summaries,
        pool: BufferPool,
        streams: Streams,
    ) -> None:
        self.loading: Loading | None = None
        self._live = live
        self._cluster = cluster
        self._store = store
        self._summaries = summaries
        self._pool = pool
        self._streams = streams

    def begin_loading(self, *, partial: bool, rename: Rename | None, is_shared: bool) -> Loading:
        """What one restore loads with. `is_shared`: several workers read together."""
        return Loading(
            self._live,
            self._store,
            self._pool,
            self._streams,
            partial=partial,
            rename=rename,
            look=self._cluster.looking_after(str(Call.LOAD)),
            readers=self._cluster if is_shared and len(self._cluster.peers) > 1 else None,
        )

    def load_again(self, folder: Folder) -> None:
        """Assigns what `loading` has loaded, `folder`, once more. Called by all workers."""
        if self.loading is None:
            return
        manifest = self.manifest(folder)
        try:
            load_again(self._cluster, self.loading, folder, manifest)
        except BaseException as error:
            self._live.tell_of_mixture(error)
            raise
        self._live.unfinished.clear()

    @property
    def loaded(self) -> Manifest | None:
        """The manifest of the newest restore, until the first save after it."""
        return self.loading.manifest if self.loading is not None else None

    def manifest(self, folder: Folder) -> Manifest:
        """That of `folder`. Raises as `read_manifest` does."""
        loaded = self.loaded
        return loaded if loaded is not None and loaded.folder == str(folder) else self._summaries.read_manifest(folder)

    def open(self, folder: Folder) -> OpenCheckpoint:
        """A checkpoint of this root, to be read with this manager's buffers."""
        return OpenCheckpoint(self._store, self.manifest(folder), self._pool, self._streams)

    def read_attached(self, name: str, folder: Folder) -> tuple[Any, dict[str, Array]] | None:
        """What a checkpoint of this root holds of what was attached under `name`; see `carried.read_attached`."""
        return read_attached(self.open(folder), name, self.loading, with_metrics=True)

    def restore_metrics(self, folder: Folder) -> None:
        """Brings back the variables of metrics alone, those that are there by now."""
        self._live.restore_metrics(self._store, folder, self.manifest(folder), self._pool, self._streams)
