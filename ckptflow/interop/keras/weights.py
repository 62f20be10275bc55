"""A file's weights in a model that user code made, all of them or an error; and weights without a model."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, Literal

import h5py

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.format.offer import HINT, misfit_error
from ckptflow.format.words import some_of
from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras.called import pairs_by_place, warn_of_names
from ckptflow.interop.keras.config import build_optimizer_of
from ckptflow.interop.keras.described import Described, described_in
from ckptflow.interop.keras.hdf5 import Stored, damage, narrowing, opened
from ckptflow.interop.keras.named import counterparts
from ckptflow.interop.keras.optimizer import (
    called_optimizers,
    is_at,
    is_of_metrics,
    not_taken,
    optimizers_at,
    places_in,
    set_legacy,
)
from ckptflow.interop.keras.ordered import load_in_order, names_by_order
from ckptflow.interop.keras.places import Places, names_by_place, places_of, plain, shapes_of
from ckptflow.interop.keras.vocabularies import Vocabularies, vocabularies_in
from ckptflow.interop.tensors import NamedTensors
from ckptflow.interop.untrusted.hdf5_probe import WEIGHTS_MEMBER, check_survives
from ckptflow.interop.untrusted.keras_trust import Framework
from ckptflow.interop.untrusted.zips import check_directory, check_zip
from ckptflow.places.shown_as import private_file, private_folder
from ckptflow.state.configs import count_variables
from ckptflow.state.kinds import is_keras3_model, is_tf_keras_model, keras_models
from ckptflow.state.private.kerases import of

logger = logging.getLogger("ckptflow")

FileKind = Literal["keras", "whole", "legacy", "weights"]

_SEEDS = "seed_generator/"  # which some versions of Keras 3 write and others do not read
_SHOWN = 20


def kind_of_file(path: str) -> FileKind:
    """What a file of Keras's is, by its content: a `.keras`; a whole model in HDF5; weights in HDF5, as tf_keras and
    Keras 2 wrote them, or as `.weights.h5`. Raises `UsageError` for another zip, `CorruptCheckpointError` for
    anything else."""
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder, and a file of Keras's is wanted")
    with damage(path), open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
        if is_zip:
            _check_holds_model(file, path)
    check_survives(path)
    if is_zip:
        return "keras"
    with opened(path, path) as found:
        if "model_config" in found.attrs:
            return "whole"
        return "legacy" if {"layer_names", "layer_names0"} & set(found.attrs) else "weights"


def _check_holds_model(file: BinaryIO, path: str) -> None:
    check_directory(file)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if not {"config.json", WEIGHTS_MEMBER, "model.weights.npz"}.intersection(names):
        raise UsageError(
            f"{path} is a zip, but no .keras file: it holds {some_of(names, 5)}. If it is a packed model, unpack "
            "it, and name what is in it"
        )


def load_weights(path: str, model: Any, *, optimizer: bool = True) -> set[int]:
    """Gives a Keras model, made and built by user code, all weights of a `.weights.h5`, `.keras` or `.h5` file.

    All or nothing is checked before the first value is written: every variable of the model is in the file, and of its
    shape, and the file has none beside them. The optimizer's state comes along where `optimizer` is true, the file has
    it and it fits the model's. Vocabularies come where it is a whole model; the identities of the layers that have
    got one are returned. What else does not come is logged.
    Raises `StateMismatchError` with all differences, `CorruptCheckpointError`, `UsageError` for a model not yet built.
    """
    framework = framework_of_model(model)
    if not model.built or not count_variables(model):
        raise UsageError(
            f"{path}: the model has no variables yet; call it once on a batch before its weights are loaded"
        )
    kind = kind_of_file(path)
    if framework == "tf_keras" and getattr(model, "optimizer", None) is not None and optimizer:
        untold = "the learning rate, nor here which optimizer it was" if kind == "weights" else "the learning rate"
        logger.warning("%s: weights of tf_keras's do not tell %s; that is as your code made it", path, untold)
    if kind in ("whole", "legacy"):
        return _load_legacy(path, model, kind, framework, takes_optimizer=kind == "whole" and optimizer)
    if kind == "keras":
        check_zip(path)
    stored = datasets_of(path, kind)
    there = shapes_of(stored)
    if optimizer and places_in(there):
        build_optimizer_of(model)
    places, described = places_of(model, framework), described_in(path, kind)
    narrowed, optimizers = _narrowed(stored, places), optimizers_at(stored, model, places, described)
    words = _vocabularies(path, kind, model, framework, places, described)
    problems = [
        *words.problems,
        *_moved_in(places, described),
        *(text for name, text in narrowed.items() if not (is_of_metrics(name) or is_at(name, optimizers))),
    ]
    absent = _check_fit(path, there, places.shapes, problems, optimizers)
    warn_of_names(path, pairs_by_place(places, described.places, counterparts(places.layers, described.places)))
    left = not_taken(path, model, optimizers, places, described, stored, narrowed) if optimizer else optimizers
    skipped = [live for live in left.values() if live is not None]
    load_stock(path, model, kind, framework, absent=absent, skipped=skipped)
    if kind == "keras":
        load_assets(path, model, framework)
    words.write()
    return words.layers


def _vocabularies(
    path: str, kind: FileKind, model: Any, framework: Framework, places: Places, described: Described
) -> Vocabularies:
    there = counterparts(places.layers, described.places)
    return vocabularies_in(path, kind, model, framework, places, described, there)


def read_weights(path: str, state: Mapping[str, Any] | None = None, *, optimizer: bool = True) -> NamedTensors:
    """The tensors of a file of Keras's, without its model's code; names as `hdf5.named_tensors` says. A `.keras`,
    whose vocabularies are not among them, is read so only with `state`.

    With `state`, which holds one Keras model, those that lie where Keras would put a variable of that model have the
    name that the variable has in a checkpoint of the state, for a warm start; the optimizer's are among them only where
    `optimizer` is true and all of them fit. Raises `CorruptCheckpointError`, and `UsageError` where the state holds no
    model, or several.
    """
    kind = kind_of_file(path)
    if kind == "keras":
        if state is None:
            raise UsageError(f"{path} is a complete model: read it as one, or pass a model to load its weights into")
        check_zip(path)
    stored = datasets_of(path, kind)
    renamed: dict[str, str] = {}
    left: Collection[str] = () if optimizer else called_optimizers(stored, described_in(path, kind))
    if state is not None:
        models = keras_models(state)
        if len(models) != 1:
            raise UsageError(f"model= holds {len(models)} Keras models; {path} is for one")
        build_optimizer_of(models[0])
        if kind in ("weights", "keras"):
            places, described = places_of(models[0], framework_of_model(models[0])), described_in(path, kind)
            layers = counterparts(places.layers, described.places)
            renamed = names_by_place(places, state, layers)
            warn_of_names(path, pairs_by_place(places, described.places, layers))
            optimizers = left = optimizers_at(stored, models[0], places, described)
            if optimizer:
                narrowed, other = _narrowed(stored, places), _elsewhere(places, layers)
                left = not_taken(path, models[0], optimizers, places, described, stored, narrowed, other)
        else:
            with opened(path, path) as found:
                renamed = names_by_order(found, path, models[0], state)
    left_out = tuple(each.path for each in stored if is_at(plain(each.path), left))
    tensors = keras_hdf5.named_tensors(
        path, [each for each in stored if each.path not in left_out], lambda: _file_of(path, kind), renamed
    )
    return replace(tensors, left_out=left_out)


def framework_of_model(model: Any) -> Framework:
    """Which Keras a live model is of. Raises `UnsupportedStateError` for one of neither."""
    if is_keras3_model(model):
        return "keras"
    if is_tf_keras_model(model):
        return "tf_keras"
    raise UnsupportedStateError(
        f"a {type(model).__module__}.{type(model).__qualname__} is not a Keras model, and this is a Keras file"
    )


def datasets_of(path: str, kind: FileKind) -> list[Stored]:
    """Every dataset of a file, looked over. Raises `CorruptCheckpointError`."""
    with weights_of(path, kind) as (file, size_bytes):
        return keras_hdf5.check_file(file, path, size_bytes)


@contextlib.contextmanager
def _file_of(path: str, kind: FileKind) -> Iterator[h5py.File]:
    with weights_of(path, kind) as (file, _):
        yield file


@contextlib.contextmanager
def weights_of(path: str, kind: FileKind) -> Iterator[tuple[h5py.File, int]]:
    """The HDF5 file that a file is, or that lies in it, and its size."""
    if kind != "keras":
        with opened(path, path) as file:
            yield file, os.path.getsize(path)
        return
    with damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        if WEIGHTS_MEMBER not in archive.namelist() and "model.weights.npz" in archive.namelist():
            raise UnsupportedStateError(
                f"{path}: its weights are pickled in a .npz, which nothing here reads; save the model with its weights "
                "in HDF5, as Keras does by default"
            )
        with keras_hdf5.member(archive, WEIGHTS_MEMBER, path) as inside, opened(inside, path) as file:
            yield file, os.path.getsize(path)  # a budget for all layers of packing


# Does it fit?


def _elsewhere(places: Places, layers: Mapping[str, str | None]) -> str | None:
    """How slots that lie in the order of the layers are those of others; None where nothing tells so."""
    own = (place.rpartition("/vars/")[0] for place in places.variables)
    other = next((place for place in own if place in layers and layers[place] != place), None)
    return None if other is None else f"{places.layers[other].name} is not in its place among the layers there"


def _moved_in(places: Places, described: Described) -> list[str]:
    """The layers of a model that are by their names in another place in a file, in words."""
    found = counterparts(places.layers, described.places)
    return [
        f"{place}: in the file this is {described.places.get(place)!r}, and {places.layers[place].name!r} is at {there}"
        for place, there in found.items()
        if there not in (None, place)
    ]


def _narrowed(stored: list[Stored], places: Places) -> dict[str, str]:
    """The values that a model's variables could not hold as they are, in words, by their places. Keras casts them."""
    dtypes = {plain(each.path): each.dtype for each in stored}
    texts = {name: narrowing(name, dtypes[name], dtype) for name, dtype in places.dtypes.items() if name in dtypes}
    return {name: text for name, text in texts.items() if text is not None}


def _check_fit(
    path: str,
    there: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    more: list[str],
    optimizers: Collection[str],
) -> list[str]:
    """Raises unless a model's weights are those of a file, by place; returns the model's places that may be absent."""
    missing: list[str] = []
    other: list[str] = []
    absent: list[str] = []
    for name, shape in wanted.items():
        if is_at(name, optimizers):
            continue
        if name not in there:
            (absent if is_of_metrics(name) else missing).append(name)
        elif there[name] != shape:
            other.append(f"{name}: shape {list(there[name])} in the file, {list(shape)} in the model")
    unexpected = _without_place(there, wanted, optimizers)
    problems = [f"{name}: in the model, not in the file" for name in missing]
    problems += [f"{name}: in the file, not in the model" for name in unexpected]
    if problems or other or more:
        hint = f"The names are those of the file. {HINT}"
        raise misfit_error(path, [*problems, *other, *more], hint=hint)
    return absent


def _without_place(there: Mapping[str, Any], wanted: Mapping[str, Any], optimizers: Collection[str]) -> list[str]:
    """The weights of a file for which a model has no place."""
    weights = [name for name in there if not (is_of_metrics(name) or _SEEDS in name or is_at(name, optimizers))]
    return [name for name in weights if name not in wanted]


# Loading


def load_stock(
    path: str,
    model: Any,
    kind: FileKind,
    framework: Framework,
    *,
    absent: Sequence[str] = (),
    skipped: Sequence[Any] = (),
) -> None:
    """Has Keras load the weights of a file that was found to fit.

    `absent` are the places of the model's metrics that the file lacks, `skipped` the optimizers that stay as they are.
    """
    # tf_keras raises for metrics that a file lacks unless told to pass over what does not fit; then it only warns.
    options = {"skip_mismatch": True} if absent and framework == "tf_keras" else {}
    with (
        named(path, ".keras" if kind == "keras" else ".weights.h5") as file,
        warnings.catch_warnings(record=True) as said,
        damage(path),
    ):
        warnings.simplefilter("always")
        if skipped:
            of(framework).load_without(skipped, file, model, **options)
        else:
            model.load_weights(file, **options)
    passed_over = [str(each.message) for each in said if "Could not load weights" in str(each.message)]
    if len(passed_over) > len({name.rpartition("/vars/")[0] for name in absent}):
        raise misfit_error(path, passed_over, is_changed=True, hint="")


def load_assets(path: str, model: Any, framework: Framework) -> None:
    """Gives a model the files (vocabularies) that a `.keras` holds for its layers."""
    with private_folder("ckptflow-keras-", path) as folder, damage(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.startswith("assets/")]
            archive.extractall(folder, names)
        if names:
            of(framework).load_assets(f"{folder}/assets", model)


def _load_legacy(path: str, model: Any, kind: FileKind, framework: Framework, *, takes_optimizer: bool) -> set[int]:
    datasets_of(path, "whole")
    optimizer = getattr(model, "optimizer", None) if takes_optimizer else None
    if optimizer is not None:
        build_optimizer_of(model)
    described, places = described_in(path, kind), places_of(model, framework)
    words = _vocabularies(path, kind, model, framework, places, described)
    if words.problems:
        raise misfit_error(path, words.problems)
    load_in_order(path, path, model)
    words.write()
    if optimizer is not None:
        with opened(path, path) as found:
            other = _elsewhere(places, counterparts(places.layers, described.places))
            set_legacy(path, model, found, described, other=other)
    return words.layers


@contextlib.contextmanager
def named(path: str, suffix: str) -> Iterator[str]:
    """A name of a file that ends as Keras wants it to."""
    if path.endswith(suffix) and not (suffix == ".h5" and path.endswith(".weights.h5")):
        yield path
        return
    with private_file("ckptflow-keras-", f"model{suffix}", path) as link:
        os.symlink(os.path.abspath(path), link)
        yield link


def check_filled(path: str, places: Places, stored: list[Stored], optimizers: Collection[str]) -> None:
    """Raises `StateMismatchError` where a model that Keras read from a file has weights, at `places`, that the file has
    not; warns of those in the file that the model has no place for. What is at `optimizers` is none.

    Keras only warns where the file lacks a group of layers, and says nothing of what it does not read.
    """
    there = shapes_of(stored)
    wanted = {name: shape for name, shape in places.shapes.items() if not is_at(name, optimizers)}
    missing = [name for name, shape in wanted.items() if there.get(name) != shape and not is_of_metrics(name)]
    if missing:
        raise misfit_error(
            path,
            [f"{name}: in the model that its config makes, not in the file, or of another shape" for name in missing],
            is_changed=True,
            hint="If your layers create their variables differently now, pass the model (model=).",
        )
    more = _without_place(there, wanted, optimizers)
    if more:
        logger.warning("%s: the model that its config makes has no place for %s", path, some_of(more, _SHOWN))


def load_held(
    path: str,
    where: str,
    model: Any,
    places: Places,
    stored: list[Stored],
    described: Described,
    held: Mapping[str, Any],
) -> list[Any]:
    """Gives the optimizers that a model holds at these places, beside the one that it is compiled with, the state that
    a `.keras` has for them; returns those that do not take it and stay as they are, why is logged."""
    left = not_taken(where, model, held, places, described, stored, _narrowed(stored, places))
    staying = [live for live in left.values() if live is not None]
    if any(places_in(places.shapes, place) for place in held.keys() - left.keys()):
        there = shapes_of(stored)
        absent = [name for name in places.shapes if is_of_metrics(name) and name not in there]
        compiled = getattr(model, "optimizer", None)
        is_another = compiled is not None and all(live is not compiled for live in held.values())
        skipped = [*staying, compiled] if is_another else staying
        load_stock(path, model, "keras", framework_of_model(model), absent=absent, skipped=skipped)
    return staying


def total_bytes(stored: list[Stored]) -> int:
    """What all that is stored in a file takes."""
    return sum(each.size_bytes for each in stored)
