"""What the table of formats names for Keras's own files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ckptflow.errors import UsageError
from ckptflow.format.words import some_of
from ckptflow.interop.decisions import check_alone
from ckptflow.interop.keras import files, legacy, weights
from ckptflow.interop.model import LoadedModel, check_order
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.sources import Source
from ckptflow.state.bundles import VocabularyBundle
from ckptflow.state.kinds import keras_models
from ckptflow.state.leaves import PartLeaf
from ckptflow.state.tree import walk

logger = logging.getLogger("ckptflow")


def write_keras(path: str, loaded: LoadedModel, provenance: Provenance) -> None:
    check_order(loaded)
    files.write_keras(path, loaded.model, provenance)


def write_h5(path: str, loaded: LoadedModel, provenance: Provenance) -> None:
    check_order(loaded)
    files.write_h5(path, loaded.model, provenance)


def write_weights(path: str, loaded: LoadedModel, provenance: Provenance) -> None:
    check_order(loaded)
    files.write_weights(path, loaded.model, provenance)


def read(
    found: Source, *, unsafe: bool, imports: tuple[str, ...], optimizer: bool, state: Mapping[str, Any] | None
) -> Any:
    name, path = found.format.name, found.path
    if not (name == "keras" or (name == "h5" and files.is_whole_model(path))):
        return weights.read_weights(path, state, optimizer=optimizer)
    try:
        model = files.read_model(
            path, unsafe=unsafe, imports=imports, optimizer=optimizer, anew=state is None, is_private=found.is_private
        )
    except UsageError as error:
        if state is None or len(keras_models(state)) != 1:
            raise
        # The user has the model: no class need be known for its weights.
        logger.warning(
            "its weights are named by their position in the file and vocabularies are left out, since the model "
            "cannot be built: %s",
            str(error),
        )
        return weights.read_weights(path, state, optimizer=optimizer)
    if state is not None:
        legacy.check_implementations(path, model, state)
    return {"model": model}


def load_into(found: Source, state: Mapping[str, Any], *, optimizer: bool, where: str) -> None:
    models = keras_models(state)
    if len(models) != 1:
        raise UsageError(f"model= holds {len(models)} Keras models; the source has one")
    check_alone(state, models[0], found.format.name, where)
    given = weights.load_weights(found.path, models[0], optimizer=optimizer)
    _warn_of_vocabularies(state, found, given)


def _warn_of_vocabularies(state: Mapping[str, Any], found: Source, given: set[int]) -> None:
    parts = [leaf for leaf in walk(state).leaves if isinstance(leaf, PartLeaf) and id(leaf.bundle.obj) not in given]
    if found.format.name == "keras":  # which has all other tables
        parts = [leaf for leaf in parts if isinstance(leaf.bundle, VocabularyBundle)]
    names = [leaf.name for leaf in parts]
    if names:
        logger.warning(
            "this %s file does not give the model all vocabularies; these are as your code made them: %s",
            found.format.name,
            some_of(names, 5),
        )
