"""The user's state as the manager works with it: walked once, until it changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckptflow.commit.sameness import checksum, raise_differences
from ckptflow.errors import CkptflowError, UsageError
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest
from ckptflow.format.offer import offer_of
from ckptflow.format.spec import Rename
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.team import Done
from ckptflow.printable import lines
from ckptflow.spans import span
from ckptflow.state.assign import all_of_it_but, match
from ckptflow.state.capture import Snapshot, capture, prepare, read_metrics
from ckptflow.state.kinds import raw_variable
from ckptflow.state.own_stores import what_is_lost
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.put import build
from ckptflow.state.restore import Restore
from ckptflow.state.strategies import check_strategy, join_scheduled
from ckptflow.state.tree import Tree, as_mapping, count_save, entries_now, walk
from ckptflow.state.unbuilt import find_empty, find_unbuilt, has_values
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.streams import Streams

logger = logging.getLogger("ckptflow")


class LiveState:
    """Named objects, and the tensors found in them."""

    def __init__(self, state: Any, cluster: Cluster) -> None:
        self._state = state
        self._objects = as_mapping(state)
        self._seen = _identities(self._objects)
        self.attached: dict[str, Any] = {}
        self.unfinished: dict[str, str] = {}  # what a restore has assigned, and of which folder, until one succeeds
        self.built: set[str] = set()  # what restores have built of optimizers, until one succeeds
        self._told: set[str] = set()
        self._held_metrics: dict[str, Any] = {}
        self._told_lost: set[str] = set()
        self._told_unbuilt: set[str] = set()
        self._checked: Tree | None = None  # the last one whose models were looked at
        self._cluster = cluster
        self._tree = self._walk(self._objects, self.attached)

    def refresh(self) -> None:
        """Walks the objects again if anything was built, added or replaced since."""
        objects, changed = entries_now(self._state, self._objects)
        for name in changed.keys() - self._told:
            text = "state[%r] was %s since the manager was made: a new manager saves what is there when it is made"
            logger.warning(text, name, changed[name])
        self._told |= changed.keys()
        if _identities(objects) != self._seen or self._tree.is_stale():
            tree = self._walk(objects, self.attached)  # what it refuses, it refuses the next time, too
            self._tree, self._objects, self._seen = tree, objects, _identities(objects)

    def attach(self, name: str, obj: Any) -> None:
        """Makes `obj` part of what is captured, under a reserved name: a restore passes over it."""
        attached = {**self.attached, name: obj}
        self._tree, self.attached = self._walk(self._objects, attached), attached

    def models(self) -> list[Any]:
        """The models of either Keras in the state."""
        self.refresh()
        return list(self._tree.models.values())

    def names_of(self, variables: Iterable[Any]) -> set[str]:
        """What these are called in the state."""
        self.refresh()
        ids = {id(raw_variable(each)) for each in variables}
        return {name for name, each in self._tree.variables.items() if id(raw_variable(each)) in ids}

    def has_optimizer(self, optimizer: Any) -> bool:
        """Whether the state holds this optimizer."""
        self.refresh()
        return any(node.optimizer is optimizer for node in self._tree.optimizers.values())

    def _walk(self, objects: Mapping[str, Any], attached: Mapping[str, Any]) -> Tree:
        tree = walk({**objects, **attached}, worker=self._cluster.worker, world_size=self._cluster.world_size)
        check_strategy(tree.variables, self._cluster.strategy)
        self._tell_lost(what_is_lost(tree.own_stores), "make it a weight (add_weight(trainable=False))")
        hidden = {path: f"{names}, which nothing tracks," for path, names in tree.unseen.items()}
        self._tell_lost(hidden, "give it a name of its own in the state, or make it an attribute of what is there")
        return tree

    def _tell_lost(self, lost: Mapping[str, str], way: str) -> None:
        """Warns, once, of what seems to be state and is not saved."""
        for path in lost.keys() - self._told_lost:
            self._told_lost.add(path)
            logger.warning(
                "%s: %s is not saved, and not restored. If it is state: %s, or give its class get_state() and "
                "set_state(state)",
                path,
                lost[path],
                way,
            )

    def checksum(self) -> str:
        """A text that is the same on all workers if they hold the same tensors; empty if there is one worker."""
        if self._cluster.world_size == 1:
            return ""
        self.refresh()
        if self._tree.checksum is None:
            self._tree.checksum = checksum(_lines_of(self._tree))
        return self._tree.checksum

    def check_same(self, checksums: Sequence[str]) -> None:
        """Raises `UsageError` on all workers, naming what differs, unless every worker's checksum is the same."""
        if len(set(checksums)) > 1:
            raise_differences(self._cluster, _lines_of(self._tree))

    def capture(self, *, again: bool = False) -> Snapshot:
        """Holds every value as it is now, of whatever is there now. On the training thread, between two steps.

        A `tf.train.Checkpoint` counts it as one more save, unless it is what was restored that is saved `again`.
        Raises `UsageError` after a restore that failed in the middle, and for a model that has nothing to save yet.
        """
        if self.unfinished:
            raise UsageError(
                f"nothing was saved: {self.mixture}. Call restore_latest() or restore(step) until one succeeds, or "
                "build the state anew and make a new manager"
            )
        with span("capture"):
            self.refresh()
            if not again:
                if reason := self.why_empty():
                    raise UsageError(f"nothing was saved: {reason}")
                count_save(self._state)
            join_scheduled(self._cluster.strategy)
            snapshot = capture(self._tree, is_chief=self._cluster.is_chief)
            snapshot.put_metrics(self._held_metrics)
        return snapshot

    def why_empty(self) -> str:
        """Why there is nothing to save, in words: models whose weights their first call will make, and no other value;
        else empty. Warns, once, of models that wait beside other values, and of any other that has no weights."""
        self.refresh()
        if self._checked is self._tree:
            return ""
        way = "call it once on a batch, or give a Sequential a keras.Input(shape) as its first layer"
        unbuilt = find_unbuilt(self._tree)
        if unbuilt and not has_values(self._tree):
            model, layers = unbuilt[0]
            return f"{model} is not built, so that the weights of {layers} do not exist yet; {way}"
        told = dict.fromkeys(
            find_empty(self._tree), "has no weights (yet): nothing of it is saved but counters. If it will have some"
        )
        for model, layers in unbuilt:
            told[model] = f"is not built: the weights of {layers} do not exist yet, and are not saved. If they are used"
        for model, why in told.items():
            if model not in self._told_unbuilt:
                self._told_unbuilt.add(model)
                logger.warning("%s %s: %s", model, why, way)
        self._checked = self._tree
        return ""

    def capture_again(self, attached: Mapping[str, Any]) -> Snapshot:
        """Holds what was restored, with what was attached to it then in the place of what is now."""
        now = self.attached
        if not (now or attached):
            return self.capture(again=True)
        self.attached = dict(attached)
        try:
            self._tree = self._walk(self._objects, self.attached)
            return self.capture(again=True)
        finally:
            self.attached = now
            self._tree = self._walk(self._objects, self.attached)

    @property
    def mixture(self) -> str:
        """What the state holds after a restore that failed in the middle; empty where none has."""
        folders = sorted(set(self.unfinished.values()))
        if not folders:
            return ""
        return (
            f"the state holds a mixture, since a restore failed in the middle: {len(self.unfinished)} of its values "
            f"are of {' and '.join(folders)}, the others as they were before"
        )

    def tell_of_mixture(self, error: BaseException) -> None:
        """Makes an error say what the restore that it ended has left behind."""
        if not self.unfinished:
            return
        text = f"Now {self.mixture}. Do not go on with it: nothing is saved until a restore succeeds"
        if isinstance(error, CkptflowError):
            error.args = (lines(error.args[0] if error.args else "", text),)
        else:
            error.add_note(text)

    def prepare(self) -> Done:
        """Works out how to capture, so that the first save blocks no longer than the later ones."""
        self.refresh()
        prepare(self._tree)
        return Done()

    def hold_metrics(self) -> None:
        """From here on, until `release_metrics`, metrics are captured as they are now."""
        self.refresh()
        self._held_metrics = read_metrics(self._tree)

    def release_metrics(self) -> None:
        self._held_metrics = {}

    def restore_metrics(
        self, store: Store, folder: Folder, manifest: Manifest, pool: BufferPool, streams: Streams
    ) -> None:
        """Brings back the variables of metrics alone, those that are there by now."""
        self.refresh()
        restore = match(self._tree, offer_of(manifest), partial=True).only_metrics()
        read_tensors(store, folder, manifest, restore.wanted, restore, pool, streams=streams)
        restore.complete()

    def match(self, manifest: Manifest, url: str, *, partial: bool, rename: Rename | None) -> Restore:
        """What of `manifest`, in the root `url`, goes where, after building what is not built yet.

        Raises `StateMismatchError`.

        What was built of an optimizer for a newer checkpoint, which was then found damaged, this one need not have: it
        is as an optimizer begins.
        """
        offer = replace(offer_of(manifest), origin=f"{url}/{manifest.folder}")
        self.refresh()
        before = {leaf.name for leaf in self._tree.leaves}
        build(self._tree, offer, self._cluster.strategy)
        self.refresh()
        decide = None if partial else all_of_it_but(frozenset(self.built - self.unfinished.keys()))
        restore = match(self._tree, offer, partial=partial, rename=rename, assigned=self.unfinished, decide=decide)
        # Only what that checkpoint has: the rest is refused the next time, too.
        made = ({leaf.name for leaf in self._tree.leaves} - before) & restore.names
        self.built |= {name for name in made if any(name.startswith(f"{path}/") for path in self._tree.optimizers)}
        return restore


def _identities(objects: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What tells that an entry, or the object in a `PerWorker`, was replaced: the tree keeps both alive."""
    return [(name, id(obj), id(obj.obj) if isinstance(obj, PerWorker) else 0) for name, obj in objects.items()]


def _lines_of(tree: Tree) -> list[str]:
    """What a worker holds, but for what is its own, as lines that are the same wherever the same is held."""
    lines = {
        f"{spec.name}: {spec.dtype} {'of any shape' if spec.dynamic else spec.shape}"
        + (f", kept per replica ({spec.components})" if spec.components else "")
        + (", of which copies may differ" if spec.may_differ else "")
        for spec in tree.specs
        if not spec.own
    }
    written = {spec.name for spec in tree.specs}  # a client of DTensor need not write a block of each
    lines |= {f"{leaf.name}: {leaf.dtype} {leaf.shape}" for leaf in tree.leaves if leaf.name not in written}
    lines |= {f"{name}: Python state" for name in tree.python if name not in tree.own_names}
    return sorted(lines | {f"{entry}: PerWorker" for entry in tree.per_worker})
