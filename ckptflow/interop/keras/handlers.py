"""What the table of formats names for Keras's own files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptflow.interop.keras import files, legacy, weights
from ckptflow.interop.model import LoadedModel, check_order
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.sources import Source


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
    model = files.read_model(
        path, unsafe=unsafe, imports=imports, optimizer=optimizer, anew=state is None, is_private=found.is_private
    )
    if state is not None:
        legacy.check_implementations(path, model, state)
    return {"model": model}
