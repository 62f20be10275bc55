"""What a source of tensors offers to a state: names and specs, no values; of a checkpoint, a file, or live objects."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ckptflow.errors import StateMismatchError
from ckptflow.format import dtypes
from ckptflow.format.manifest import Manifest, TensorRecord
from ckptflow.format.object_graph import ObjectGraph
from ckptflow.format.spec import TensorSource
from ckptflow.printable import lines as text_lines

HINT = "For a warm start, pass partial=True, or rename={name there: name in the state}."
MOST_LINES = 20  # of differences, in a message


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is to put into a state. Tensors are asked for by their position in `tensors`; slices do not matter.

    `origin` says in messages where it comes from, and `kind` what that is; `size_bytes` is what is stored of it. The
    rest is as in a manifest.
    """

    origin: str
    tensors: tuple[TensorRecord, ...]
    python_state: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    object_graph: ObjectGraph | None = None
    per_worker: tuple[str, ...] = ()
    world_size: int = 1
    size_bytes: int = 0
    kind: str = "checkpoint"


class Captured(TensorSource, Protocol):
    """What a save is made of, and what can be put into a state: a snapshot of live objects, or tensors of a file.

    As in a manifest; `own_names` are the names, in a checkpoint, of the entries `per_worker`.
    """

    @property
    def python_state(self) -> Mapping[str, Any]: ...
    @property
    def models(self) -> Mapping[str, Any]: ...
    @property
    def object_graph(self) -> ObjectGraph | None: ...
    @property
    def per_worker(self) -> tuple[str, ...]: ...
    @property
    def own_names(self) -> frozenset[str]: ...


def offer_of(manifest: Manifest) -> Offer:
    """What a checkpoint offers."""
    return Offer(
        manifest.folder,
        manifest.tensors,
        manifest.python_state,
        manifest.models,
        manifest.object_graph,
        manifest.per_worker,
        manifest.world_size,
        manifest.size_bytes,
    )


def offer_of_captured(captured: Captured, origin: str, kind: str) -> Offer:
    """What one process offers that holds all of it, no tensor in blocks; its models as they come out of storage."""
    records = tuple(record_of(captured, index) for index in range(len(captured.specs)))
    return Offer(
        origin,
        records,
        captured.python_state,
        msgspec.json.decode(msgspec.json.encode(captured.models)),
        captured.object_graph,
        captured.per_worker,
        size_bytes=sum(record.size_bytes for record in records),
        kind=kind,
    )


def record_of(source: TensorSource, index: int, world_size: int = 1) -> TensorRecord:
    """What a manifest says of a tensor, but for its slices."""
    spec = source.specs[index]
    shape = source.shape(index) if spec.dynamic else spec.shape
    return TensorRecord(
        name=spec.name,
        dtype=spec.dtype,
        shape=(world_size, *spec.shape) if spec.components else shape,
        slices=(),
        encoded_bytes=source.data(index).size if dtypes.is_encoded(spec.dtype) else None,
        components=spec.components,
        aliases=spec.aliases,
        metric=spec.metric,
    )


def grouped(differences: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each name and what is wrong with it; where they are many, for each prefix and what is wrong. Pure."""
    if len(differences) <= MOST_LINES:
        return [f"{name}: {why}" for name, why in differences]
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in differences:
        groups.setdefault((name.partition("/")[0], why), []).append(name)
    return [_group_line(names, why) for (_, why), names in groups.items()]


def _group_line(names: Sequence[str], why: str) -> str:
    if len(names) == 1:
        return f"{names[0]}: {why}"
    return f"{posixpath.commonpath(names)}/…: {len(names):,} names, such as {names[0]}: {why}"


def misfit_error(
    origin: str, differences: Iterable[str], *, is_changed: bool = False, hint: str = HINT
) -> StateMismatchError:
    """The error for a source that does not fit the state, with a line for each difference, of many the first ones.
    There is no other."""
    head = f"{origin} does not fit the state{'' if is_changed else '; no value was changed'}."
    told = [f"  {line}" for line in differences]
    more = len(told) - MOST_LINES
    if more > 0:
        told[MOST_LINES:] = [f"  and {more:,} more"]
    return StateMismatchError(text_lines(head, *told, *([hint] if hint else [])))
