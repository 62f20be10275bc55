"""A checkpoint in memory: capture → bytes by name → match → open, finish, complete, without any other room."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ckptflow.format.manifest import Manifest, ShardRecord, SliceRecord, TensorRecord
from ckptflow.format.offer import Offer, offer_of
from ckptflow.format.spec import Target, TensorSpec, Wanted
from ckptflow.state.capture import Snapshot, capture
from ckptflow.state.kinds import LAYERS, Kind, kind_of, raw_variable
from ckptflow.state.leaves import PartLeaf, from_bytes, to_bytes
from ckptflow.state.private.tensorflow import Trackable
from ckptflow.state.put import put
from ckptflow.state.restore import Restore
from ckptflow.state.tree import Tree, as_mapping, walk

FOLDER = "000000000001-i0001"


@dataclass
class Saved:
    """What a checkpoint holds, in plain memory or in one .npz file."""

    specs: list[TensorSpec]
    shapes: list[tuple[int, ...]]
    data: list[npt.NDArray[np.uint8]]
    python_state: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)

    def by_name(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """dtype, shape and bytes of each tensor that is no metric's; a table's rows in the order of their keys."""
        places = {spec.name: place for place, spec in enumerate(self.specs) if not spec.metric}
        found = {}
        for name, place in places.items():
            data = self.data[place]
            keys = places.get(name.rsplit("/", 1)[0] + "/keys") if name.endswith(("/keys", "/values")) else None
            if keys is not None:
                order = np.argsort(self._array(keys))
                data = to_bytes(self._array(place)[order], self.specs[place].dtype)
            found[name] = (self.specs[place].dtype, self.shapes[place], data.tobytes())
        return found

    def _array(self, place: int) -> npt.NDArray[Any]:
        return from_bytes(self.data[place], self.specs[place].dtype, self.shapes[place])

    def manifest(self, components: bool = False) -> Manifest:
        """A manifest that says the same. With `components`, a tensor that has any holds those of all workers."""
        tensors = []
        offset = 0
        for spec, shape, data in zip(self.specs, self.shapes, self.data, strict=True):
            encoded = len(data) if spec.dtype == "string" else None
            box = (len(data),) if encoded is not None else shape
            piece = SliceRecord(shard=0, offset=offset, start=(0,) * len(box), shape=box, crc32c=0)
            offset += len(data)
            tensors.append(
                TensorRecord(
                    name=spec.name,
                    dtype=spec.dtype,
                    shape=shape,
                    slices=(piece,),
                    encoded_bytes=encoded,
                    components=spec.components if components else None,
                    aliases=spec.aliases,
                    metric=spec.metric,
                )
            )
        return Manifest(
            folder=FOLDER,
            step=1,
            incarnation=1,
            run_id="run",
            writer_id="writer",
            created_at="2026-01-01T00:00:00Z",
            world_size=1,
            reason="start",
            python_state=self.python_state,
            models=self.models,
            shards=(ShardRecord(name="shard-00000-of-00001-0000.safetensors", size_bytes=offset, crc32c=0),),
            tensors=tuple(tensors),
        )

    def offer(self, components: bool = False) -> Offer:
        """What that manifest offers."""
        return offer_of(self.manifest(components))

    def read(self, wanted: Sequence[Wanted], target: Target) -> None:
        """Plays the reader."""
        for each in wanted:
            memory = target.open(each)
            memory[:] = self.data[each.tensor]
            del memory
            target.finish(each)

    def write(self, path: Path) -> None:
        """Into files: `path`.npz and `path`.json."""
        np.savez(path.with_suffix(".npz"), *self.data)
        specs = [
            [spec.name, spec.dtype, list(spec.shape), spec.dynamic, spec.components, list(spec.aliases), spec.metric]
            for spec in self.specs
        ]
        text = json.dumps([specs, self.shapes, self.python_state, self.models])
        path.with_suffix(".json").write_text(text)


def read(path: Path) -> Saved:
    """What `Saved.write` wrote."""
    specs, shapes, python_state, models = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz")) as arrays:
        data = [arrays[f"arr_{position}"] for position in range(len(specs))]
    made = [
        TensorSpec(name, dtype, tuple(shape), dynamic, components, tuple(aliases), metric)
        for name, dtype, shape, dynamic, components, aliases, metric in specs
    ]
    return Saved(
        made,
        [tuple(shape) for shape in shapes],
        data,
        python_state,
        models,
    )


def save(state: Any) -> Saved:
    """A checkpoint of the state now; its bytes are copies."""
    return of_tree(walk(as_mapping(state)))


def of_tree(tree: Tree) -> Saved:
    """A checkpoint of what one worker has."""
    return of_snapshot(capture(tree, is_chief=tree.worker == 0))


def together(workers: list[Saved], per_worker: tuple[str, ...]) -> Manifest:
    """A manifest of several workers' checkpoints: the first one's, and what the others have for themselves."""
    manifests = [saved.manifest() for saved in workers]
    own = [tensor for manifest in manifests[1:] for tensor in manifest.tensors if "/worker-" in tensor.name]
    return msgspec.structs.replace(
        manifests[0], world_size=len(workers), per_worker=per_worker, tensors=(*manifests[0].tensors, *own)
    )


def of_snapshot(snapshot: Snapshot) -> Saved:
    """The bytes that a snapshot holds."""
    indices = range(len(snapshot.specs))
    return Saved(
        list(snapshot.specs),
        [snapshot.shape(index) for index in indices],
        [snapshot.data(index).copy() for index in indices],
        snapshot.python_state,
        snapshot.models,
    )


def restore(state: Any, saved: Saved, **options: Any) -> Restore:
    """Puts a checkpoint into a state, building what is unbuilt, as a manager does."""
    _, restoring = put(saved.offer(), saved.read, as_mapping(state), **options)
    return restoring


def fill(restoring: Restore, saved: Saved) -> None:
    """Gives it all values in one go."""
    saved.read(restoring.wanted, restoring)
    restoring.complete()


def lost(state: dict[str, Any]) -> list[str]:
    """What TensorFlow or Keras lists of the state, by their own words alone, and the walk has not found."""
    tree = walk(as_mapping(state))
    of_bundles = [leaf.bundle.obj for leaf in tree.leaves if isinstance(leaf, PartLeaf)]
    found = {*map(id, of_bundles), *(id(vars(leaf).get("variable")) for leaf in tree.leaves)}
    # What a layer counted its words with is no state of it: the vocabulary is. Nor is what an optimizer trains.
    found |= {id(value) for obj in of_bundles if kind_of(obj) in LAYERS for value in vars(obj).values()}
    trained = [vars(node.optimizer).get("_trainable_variables", ()) for node in tree.optimizers.values()]
    found |= {id(raw_variable(each)) for variables in trained for each in variables}
    listed: dict[int, Any] = {}
    for obj in state.values():
        if isinstance(obj, Trackable):
            listed |= {id(raw_variable(each)): each for each in _variables_of(obj)}
            listed |= {id(each): each for each in tf.train.TrackableView(obj).descendants() if kind_of(each) in _STATE}
    return [f"{type(each).__name__} {each.name}" for key, each in listed.items() if key not in found]


_STATE = (Kind.TABLE, Kind.ITERATOR)


def _variables_of(obj: Any) -> list[Any]:
    listed = [each for each in tf.train.TrackableView(obj).descendants() if kind_of(each) is Kind.VARIABLE]
    try:
        variables = getattr(obj, "variables", ())
        listed += variables() if callable(variables) else variables
    except ValueError:  # not built yet
        pass
    return [each for each in listed if kind_of(each) is Kind.VARIABLE and raw_variable(each) is not None]


@dataclass(frozen=True)
class Case:
    """One kind of state: how it is made (equal each time, but for what is random), trained, and asked for an answer.

    `train(state)` changes it and must be able to run on a restored state, too; `answer(state)` is what must be equal,
    bit for bit, too. Without `exact_bytes` the answer alone is compared: two equal states may be saved differently.
    """

    make: Callable[[], dict[str, Any]]
    train: Callable[[dict[str, Any]], None]
    answer: Callable[[dict[str, Any]], Any] | None = None
    exact_bytes: bool = True


def assert_equal(first: Saved, second: Saved) -> None:
    """Both hold the same tensors, bit for bit, and the same Python state."""
    left, right = first.by_name(), second.by_name()
    assert sorted(left) == sorted(right)
    different = [name for name in left if left[name] != right[name]]
    assert not different, {name: (left[name][:2], right[name][:2]) for name in different}
    assert first.python_state == second.python_state


def answer_bytes(answer: Any) -> bytes:
    """The bytes of an array, or of a list of them."""
    arrays = answer if isinstance(answer, list) else [answer]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
