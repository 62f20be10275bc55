"""A source's way into a tree: what can fail without touching the state first, what an older one may lack last."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import StateMismatchError, UsageError
from ckptflow.format import dtypes
from ckptflow.format.boxes import Box, volume
from ckptflow.format.components import aggregate
from ckptflow.format.dtypes import Array
from ckptflow.format.manifest import TensorRecord
from ckptflow.format.offer import misfit_error
from ckptflow.format.spec import Bytes1D, Wanted
from ckptflow.format.words import size_text
from ckptflow.state import keras3
from ckptflow.state.bundle import OUT_OF_MEMORY, Bundle, NotPutBackError, said
from ckptflow.state.kinds import is_feature_space, is_keras3_layer, is_normalization, raw_variable
from ckptflow.state.leaves import Landing, Leaf, PartLeaf, as_tensor, from_bytes
from ckptflow.state.strategies import server_is_gone
from ckptflow.state.traced import constants_of, trace_anew
from ckptflow.state.tree import RESERVED_PREFIX, SAVE_COUNTER, Tree

logger = logging.getLogger("ckptflow")


@dataclass(frozen=True)
class Pair:
    """A tensor of a source and the leaf that it goes to."""

    record: TensorRecord
    leaf: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value, of one component where there are several."""
        return self.record.shape[1:] if self.record.components else self.record.shape

    @property
    def is_plain(self) -> bool:
        """Whether its bytes in storage are the variable's value, or one box of them a block of it."""
        record = self.record
        return not isinstance(self.leaf, PartLeaf) and record.encoded_bytes is None and record.components is None

    @property
    def is_optional(self) -> bool:
        """Whether another checkpoint may lack it and yet fit the same state."""
        return self.record.metric or self.leaf.metric or is_optional(self.record.name)


def is_optional(name: str) -> bool:
    """Whether a checkpoint, or a state, may do without what has this name."""
    return name == SAVE_COUNTER or name.startswith(RESERVED_PREFIX)


@dataclass
class _BundleParts:
    """The parts of a bundle that have been read, and the leaves that they are for.

    `not_put_back` says why it has no state to go back to, if a rehearsal has left it none.
    """

    bundle: Bundle
    leaves: list[PartLeaf] = field(default_factory=list)
    parts: dict[str, Array] = field(default_factory=dict)
    size_bytes: int = 0
    not_put_back: NotPutBackError | None = None

    @property
    def names(self) -> set[str]:
        return {leaf.name for leaf in self.leaves}

    @property
    def name(self) -> str:
        leaf = self.leaves[0]
        return leaf.name.removesuffix(f"/{leaf.part}")

    def misfit(self) -> str:
        """Why they cannot be written; empty if they can. Raises `NotPutBackError`, and what ends a trial early."""
        lacking = sorted(self.bundle.dtypes.keys() - self.parts.keys())
        if lacking:
            return f"the checkpoint has no {' and no '.join(lacking)} for it"
        try:
            return self.bundle.misfit(self.parts)
        except (NotPutBackError, *OUT_OF_MEMORY):
            raise
        except Exception as error:  # whatever a user's object, or a TensorFlow of another age, raises
            return said(error)


class Restore:
    """Takes a source's tensors over; implements `format.spec.Target`. Nothing is assigned before `finish`.

    `wanted` is what to read of the source, largest first: whole tensors, or those boxes that are held here. `early`
    of it, tables, iterators and vocabularies, can be read first: `rehearse` then finds out, before any value is
    changed, whether they can be written. The `rest` is assigned as it comes, but for what another checkpoint may lack,
    metrics above all: `complete` assigns that, when everything else is there and verified. So a checkpoint that turns
    out to be damaged leaves nothing behind that an older one does not replace.

    `names` are all names in the state that get a value, and `assigned` has those that have got one, with what it
    came from. After `partial`, `missing` names what the state has and the checkpoint has not, `unexpected` the
    opposite; what has another shape or dtype, or could not be written, is in both.
    """

    def __init__(
        self,
        tree: Tree,
        origin: str,
        pairs: dict[int, Pair],
        python_state: dict[str, Any],
        missing: Iterable[str],
        unexpected: Iterable[str],
        *,
        partial: bool = False,
        assigned: dict[str, str] | None = None,
    ) -> None:
        self._tree = tree
        self.origin = origin
        self._pairs = pairs
        self._python_state = python_state
        self._is_partial = partial
        self._is_rehearsed = False
        self._landings: dict[Wanted, Landing | Bytes1D] = {}
        self._held: dict[int, _BundleParts] = {}
        self._blocks: dict[int, dict[Box | None, Any]] = {}  # of what is assigned only when all of it is there
        self._last: list[tuple[Pair, Mapping[Box | None, Any]]] = []
        # The largest first: the memory that their old values free serves the smaller ones.
        self.wanted = tuple(
            Wanted(index, box)
            for index in sorted(pairs, key=lambda index: (-pairs[index].record.size_bytes, index))
            for box in (pairs[index].leaf.boxes if pairs[index].is_plain else (None,))
        )
        self.early = tuple(each for each in self.wanted if isinstance(pairs[each.tensor].leaf, PartLeaf))
        self.rest = tuple(each for each in self.wanted if not isinstance(pairs[each.tensor].leaf, PartLeaf))
        self.names = frozenset({pair.leaf.name for pair in pairs.values()} | python_state.keys())
        self.assigned = {} if assigned is None else assigned
        self.missing = tuple(sorted(missing))
        self.unexpected = tuple(sorted(unexpected))

    def shared(self) -> list[str]:
        """What is taken of what the workers share, a line for each: the same on all, or their copies would differ."""
        pairs = [pair for pair in self._pairs.values() if pair.leaf.name in self.names and not pair.leaf.own]
        python = self._python_state.keys() - self._tree.own_names
        return [f"{pair.leaf.name}: {pair.record.name}" for pair in pairs] + sorted(python)

    def only_metrics(self) -> Restore:
        """The same for the variables of metrics alone."""
        pairs = {index: pair for index, pair in self._pairs.items() if pair.record.metric}
        return Restore(self._tree, self.origin, pairs, {}, (), (), partial=True)

    def open(self, wanted: Wanted) -> Bytes1D:
        """Memory for what is wanted as it is in storage, to be filled; once for each. Drop it before `finish`.

        Raises `UsageError`, here and when values are assigned, if there is not so much.
        """
        pair = self._pairs[wanted.tensor]
        record = pair.record
        with self._memory_for(pair.leaf.name, record.size_bytes):
            if pair.is_plain:
                shape = record.shape if wanted.box is None else wanted.box[1]
                size_bytes = volume(shape) * dtypes.item_size_bytes(record.dtype)
                landing = self._landings[wanted] = Landing(record.dtype, shape, size_bytes)
                return landing.bytes
            memory = self._landings[wanted] = np.empty(record.size_bytes, np.uint8)
            return memory

    @contextlib.contextmanager
    def _memory_for(self, name: str, size_bytes: int) -> Iterator[None]:
        try:
            yield
        except OUT_OF_MEMORY as error:
            raise UsageError(
                f"{self.origin}: {name} takes {size_text(size_bytes)}, and there is not enough "
                "memory to restore it. Free some, give the manager a smaller memory_budget_bytes, or restore where "
                "there is more memory"
            ) from error

    def finish(self, wanted: Wanted) -> None:
        """Takes it over: a variable has its value afterwards, what is optional or no variable after `complete`."""
        pair = self._pairs[wanted.tensor]
        with self._memory_for(pair.leaf.name, pair.record.size_bytes):
            self._finish(wanted)

    def _finish(self, wanted: Wanted) -> None:
        pair, landing = self._pairs[wanted.tensor], self._landings.pop(wanted)
        leaf, record = pair.leaf, pair.record
        if isinstance(landing, Landing):
            blocks = self._blocks.pop(wanted.tensor, {}) | {wanted.box: landing.take()}
            if leaf.needs_all and len(blocks) < len(leaf.boxes):
                self._blocks[wanted.tensor] = blocks
            else:
                self._take(pair, blocks)
            return
        array = from_bytes(landing, record.dtype, record.shape)
        if record.components:
            array = aggregate(list(array), record.components)
        if isinstance(leaf, PartLeaf):
            held = self._held.setdefault(id(leaf.bundle), _BundleParts(leaf.bundle))
            held.leaves.append(leaf)
            held.parts[leaf.part] = array
            held.size_bytes += record.size_bytes
            return
        pieces = {box: array if box is None else array[tuple(map(_range, *box))] for box in leaf.boxes}
        with tf.device("CPU:0"):
            copies = {box: as_tensor(piece) for box, piece in pieces.items()}
        self._take(pair, copies)

    def rehearse(self) -> None:
        """Finds out whether the tables, iterators and vocabularies that have been read can be written.

        Changes nothing; what it tries when it is stopped in the middle counts as assigned. Raises `UsageError` if
        memory does not suffice, and `StateMismatchError` with a line for each that cannot; with `partial` these are
        warned of, and left as they are. Raises it, too, if values of another checkpoint, assigned before, would stay.
        """
        self._is_rehearsed = True
        misfits: dict[int, str] = {}
        for key, held in self._held.items():
            earlier = self._enter(held.names)
            try:
                with self._memory_for(held.name, held.size_bytes):
                    reason = held.misfit()
            except NotPutBackError as error:
                if error.fits:  # what it began with is no state to go back to; `complete` writes it, if need be
                    held.not_put_back = error
                    continue
                raise self._refused(f"{held.name}: {error}") from error
            self._withdraw(held.names, earlier)
            if reason:
                misfits[key] = reason
        lines = sorted(f"{self._held[key].name}: {reason}" for key, reason in misfits.items())
        if lines and not self._is_partial:
            raise misfit_error(self.origin, lines, is_changed=bool(self.assigned))
        for line in lines:
            logger.warning("%s: left as it was: %s", self.origin, line)
        self._leave({name for key in misfits for name in self._held.pop(key).names})
        stuck = sorted(self.assigned.keys() - self.names)
        if stuck:
            lines = [f"{name}: has its value of {self.assigned[name]} already, and would keep it" for name in stuck]
            raise misfit_error(self.origin, lines, is_changed=True, hint="")

    def complete(self) -> None:
        """Call once after the last `finish`: sets what is optional, tables, iterators, vocabularies and Python state,
        and lets layers that keep something computed from their variables compute it again.

        Raises `StateMismatchError` for what does not take its state over, with its name.
        """
        if not self._is_rehearsed:
            self.rehearse()
        before = constants_of(self._tree.layers)
        for pair, values_of in self._last:
            with self._memory_for(pair.leaf.name, pair.record.size_bytes):
                self._assign(pair.leaf, values_of)
        self._last.clear()
        for held in self._held.values():
            self._write(held)
        self._held.clear()
        variables = self._tree.variables
        given = {id(raw_variable(variables[name])) for name in self.assigned if name in variables}
        for layer in self._tree.layers:
            if is_normalization(layer):
                layer.finalize_state()
            elif is_feature_space(layer):
                _fit_encoders(layer)
            elif is_keras3_layer(layer):
                keras3.calibrate(layer, given)
        if constants_of(self._tree.layers) != before:
            trace_anew(self._tree.models.values())
        for name, state in self._python_state.items():
            self._set_python_state(name, state)

    def _take(self, pair: Pair, values_of: Mapping[Box | None, Any]) -> None:
        if pair.is_optional:
            self._last.append((pair, values_of))
        else:
            self._assign(pair.leaf, values_of)

    def _assign(self, leaf: Leaf, values_of: Mapping[Box | None, Any]) -> None:
        self.assigned[leaf.name] = self.origin
        try:
            leaf.assign(values_of)
        except tf.errors.UnavailableError as error:
            raise server_is_gone(error, f"{leaf.name} cannot be restored") from error

    def _leave(self, names: set[str]) -> None:
        """What is left as it was."""
        self.names -= names
        self.missing = tuple(sorted({*self.missing, *names}))
        self.unexpected = tuple(sorted({*self.unexpected, *names}))

    def _write(self, held: _BundleParts) -> None:
        bundle = held.bundle
        if held.not_put_back is None:
            self._give(held.name, held.names, held.parts, bundle.held, bundle.write)
        elif not _holds(held):  # some can be written only once
            what = f"does not take its state of {self.origin} over a second time ({held.not_put_back})"
            self._called(held.name, what, lambda: bundle.write(held.parts))

    def _set_python_state(self, name: str, state: Any) -> None:
        entry = self._tree.python[name]
        self._give(name, {name}, state, entry.get_state, entry.set_state)

    def _give(
        self, name: str, names: set[str], state: Any, read: Callable[[], Any], write: Callable[[Any], object]
    ) -> None:
        """Writes what code of others takes, or, in part, warns and puts back what was there: with `names` of it."""
        before = self._called(name, "does not report its state to put back", read) if self._is_partial else None
        earlier = self._enter(names)
        try:
            write(state)
        except Exception as error:  # whatever a user's object raises
            why = f"does not take its state of {self.origin} over: {type(error).__name__}: {error}"
            if not self._is_partial:
                raise self._refused(f"{name} {why}") from error
            self._called(name, f"{why}; and does not accept its previous state", lambda: write(before))
            self._withdraw(names, earlier)
            self._leave(names)
            logger.warning("%s: left as it was: %s %s", self.origin, name, why)

    def _enter(self, names: set[str]) -> dict[str, str]:
        """Counts these as assigned, before they are. Returns what they had, for `_withdraw`."""
        earlier = {each: self.assigned[each] for each in names if each in self.assigned}
        self.assigned |= dict.fromkeys(names, self.origin)
        return earlier

    def _withdraw(self, names: set[str], earlier: Mapping[str, str]) -> None:
        """What was put back counts as it did before."""
        self.assigned |= earlier
        for each in names - earlier.keys():
            del self.assigned[each]

    def _called(self, name: str, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise self._refused(f"{name} {what}: {type(error).__name__}: {error}") from error

    def _refused(self, line: str) -> StateMismatchError:
        return misfit_error(self.origin, [line], is_changed=True, hint="")


def _fit_encoders(features: Any) -> None:
    """Those that a FeatureSpace has made for the vocabularies that it had before encode those that it has now."""
    for name, encoder in features.one_hot_encoders.items():
        preprocessor = features.preprocessors.get(name)
        if hasattr(preprocessor, "vocabulary_size"):
            encoder.num_tokens = preprocessor.vocabulary_size()


def _holds(held: _BundleParts) -> bool:
    try:
        return held.bundle.holds(held.parts)
    except Exception:  # whatever a user's object raises: `write` tells
        return False


def _range(start: int, extent: int) -> slice:
    return slice(start, start + extent)
