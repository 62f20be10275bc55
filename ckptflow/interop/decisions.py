"""What of a source, and of a state, an import or export may leave: decisions over names, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any

from ckptflow.format.offer import HINT, Offer, misfit_error
from ckptflow.format.words import some_of
from ckptflow.state.assign import Comparison, Decide, Verdict
from ckptflow.state.kinds import OF_PREPROCESSING, kind_of
from ckptflow.state.leaves import PartLeaf
from ckptflow.state.tree import Tree

_SHOWN = 20
_SCRATCH = re.compile(r"/(num_documents|summary|token_(document_)?counts/(keys|values))$")


def is_of_optimizer(name: str, paths: Iterable[str]) -> bool:
    """Whether a tensor is an optimizer's: one of those at `paths`, or what Keras and TensorFlow's guides call so."""
    return "optimizer" in name.split("/")[:-1] or _is_below(name, paths)


def optimizers_in(models: Mapping[str, Any]) -> list[str]:
    """The paths of the optimizers in a manifest's models."""
    return [path for path, each in models.items() if isinstance(each, dict) and each.get("kind") == "optimizer"]


def by_name(*, partial: bool, optimizer: bool) -> Decide:
    """For what goes by its name into objects of the user's."""

    def decide(tree: Tree, offer: Offer, found: Comparison) -> Verdict:
        ours, theirs = list(tree.optimizers), optimizers_in(offer.models)
        if not optimizer:
            return without_optimizers(found, ours, theirs, partial=partial)
        if partial:
            return Verdict()
        return optimizers_as_a_whole(found, ours, theirs, other=other_class(tree, offer, found))

    return decide


def other_class(tree: Tree, offer: Offer, found: Comparison) -> str | None:
    """How an optimizer of the state is of another class than the source says of the one that has its tensors; None
    where nothing tells so."""
    classes = {path: type(node.optimizer).__name__ for path, node in tree.optimizers.items()}
    theirs = {path: str(offer.models[path].get("class") or "") for path in optimizers_in(offer.models)}
    for name, own in found.matched.items():
        saved = theirs.get(_deepest_above(name, theirs), "").rpartition(".")[2]
        live = classes.get(_deepest_above(own, classes))
        if saved and live and saved != live:
            return f"it is that of {saved}, another class than the model's {live}"
    return None


def _deepest_above(name: str, paths: Iterable[str]) -> str:
    return max((path for path in paths if name.startswith(f"{path}/")), key=len, default="")


def in_halves(tree: Tree, lost: Collection[str]) -> set[str]:
    """All parts of what is restored as a whole, as a vocabulary with its weights, and has lost a part."""
    parts = [leaf for leaf in tree.leaves if isinstance(leaf, PartLeaf)]
    halves = {id(leaf.bundle) for leaf in parts if leaf.name in lost}
    return {leaf.name for leaf in parts if id(leaf.bundle) in halves}


def without_scratch(tree: Tree, found: Comparison) -> Comparison:
    """The same, but for what preprocessing layers count while they adapt: one that is given its words has none."""
    if not any(kind_of(layer) in OF_PREPROCESSING for layer in tree.layers):
        return found
    kept = {name: why for name, why in found.unexpected.items() if not _SCRATCH.search(name)}
    return found._replace(unexpected=kept)


def without_optimizers(
    found: Comparison,
    ours: Collection[str],
    theirs: Collection[str],
    *,
    may_lack: Set[str] = frozenset(),
    partial: bool = False,
) -> Verdict:
    """As if there were no optimizers, which are at the paths `ours` in the state and `theirs` in the source. All of the
    rest, but for what the source `may_lack` of the state, or with `partial` what there is of it."""
    passed_over = {name for name in (*found.matched.values(), *found.missing) if is_of_optimizer(name, ours)}
    passed_over |= {name for name in found.unexpected if is_of_optimizer(name, [*ours, *theirs])}
    # What a pair is of, the state says: a source may call anything an optimizer's.
    passed_over |= {name for name, own in found.matched.items() if is_of_optimizer(own, ours)}
    refused = set() if partial else {*(found.missing.keys() - may_lack), *found.unexpected} - passed_over
    return Verdict(frozenset(refused), frozenset(passed_over))


def optimizers_as_a_whole(
    found: Comparison,
    ours: Collection[str],
    theirs: Collection[str],
    *,
    may_lack: Set[str] = frozenset(),
    other: str | None = None,
) -> Verdict:
    """All of both sides, but for what the source `may_lack` of the state. If nothing differs but tensors of optimizers,
    at the paths `ours` in the state and `theirs` in the source, all optimizers stay as they are; so they do where they
    are `other` ones, which is said."""
    missing = found.missing.keys() - may_lack
    first = sorted(name for name in missing if _is_below(name, ours))
    first += sorted(name for name in found.unexpected if is_of_optimizer(name, theirs))
    differing = frozenset(missing | found.unexpected.keys())
    left = without_optimizers(found, ours, theirs)
    if not (first or other) or differing - left.passed_over:
        return Verdict(differing)
    why = f"{first[0]}: {found.missing.get(first[0]) or found.unexpected[first[0]]}" if first else other
    text = f"the optimizer's state does not match and is not restored, it starts fresh: {why}"
    return Verdict(passed_over=left.passed_over, said=(text,))


def of_optimizers(found: Comparison, ours: Collection[str], theirs: Collection[str]) -> Comparison:
    """The same without what differs of anything but the optimizers at these paths, in the state and in the source."""
    return found._replace(
        missing={name: why for name, why in found.missing.items() if _is_below(name, ours)},
        unexpected={name: why for name, why in found.unexpected.items() if is_of_optimizer(name, theirs)},
    )


def all_of_the_state(found: Comparison, *, may_lack: Set[str] = frozenset(), hint: str = HINT) -> Verdict:
    """All of the state has to be in the source, which may hold more, but for what it `may_lack`."""
    lost = sorted(name for name in found.missing if name in may_lack)
    said = (f"does not have {some_of(lost, _SHOWN)}: they keep their initial values",) if lost else ()
    return Verdict(frozenset(found.missing).difference(lost), said=said, hint=hint)


def _is_below(name: str, paths: Iterable[str]) -> bool:
    return any(name.startswith(f"{path}/") for path in paths)


def check_alone(state: Mapping[str, Any], model: Any, format_name: str, where: str) -> None:
    """Raises where the state holds more than the one model that such a source is of."""
    optimizer = getattr(model, "optimizer", None)
    others = [name for name, obj in state.items() if obj is not model and (obj is not optimizer or optimizer is None)]
    if others:
        what = f"A source of the format {format_name!r} has one model, and nothing for {some_of(others, 5)}"
        raise misfit_error(
            where,
            [f"{name}: in the state, not in the source" for name in others],
            hint=f"{what} of model=: leave that out, or pass partial=True, which leaves it as it is.",
        )
