"""The tf_keras model that a SavedModel of tf_keras holds, from its metadata: the graph is neither loaded nor run.

tf_keras's own loader is TensorFlow's: it runs the initialisers in the graph, which can read and write files, and makes
layers that call what the graph says. `keras_metadata.pb` says of each layer what its class and its config are, so that
a model of Keras's own layers, or of known ones, can be made without all that; its values are then read as tensors.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

from ckptflow.errors import CkptflowError, CorruptCheckpointError, UsageError
from ckptflow.format.words import some_of
from ckptflow.interop.keras.described import Described, described_by
from ckptflow.interop.keras.legacy import compile_by, model_of
from ckptflow.interop.tensorflow.bundle import files_of
from ckptflow.interop.untrusted.budget import limited_variables
from ckptflow.interop.untrusted.keras_allowed import keras_module
from ckptflow.interop.untrusted.private_copy import open_regular
from ckptflow.state.leaves import PartLeaf
from ckptflow.state.tree import walk
from ckptflow.storage.faults import os_errors
from ckptflow.storage.local_calls import filled_bytes

logger = logging.getLogger("ckptflow")

METADATA = "keras_metadata.pb"
_MAX_BYTES = 2**28
_SHOWN = 5
_WAYS = (
    "Hand over the model, made by your code (model=), or name the module that registers its classes (imports=, "
    "--import); unsafe=True (--unsafe) has tf_keras load and run the graph, only for what you would run as a program"
)


def is_keras_saved_model(folder: str) -> bool:
    """Whether tf_keras saved a model there."""
    return os.path.isfile(os.path.join(folder, METADATA))


def model_by_metadata(root: Mapping[str, Any], folder: str, imports: tuple[str, ...] = ()) -> Any:
    """A tf_keras model of the class and config in what `root_of` returned, compiled as far as it can be; its values are
    those it is made with.

    Raises `UsageError`, which says what can be done, where a class is not known or there is no config to make it from;
    `CorruptCheckpointError` for damaged metadata.
    """
    config = {"class_name": root.get("class_name"), "config": root.get("config")}
    if not isinstance(config["config"], dict):
        raise UsageError(f"{folder}: its model ({config['class_name']}) was saved without a config. {_WAYS}")
    with limited_variables(_stored_bytes(folder), folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(config, "tf_keras", folder, imports=imports, of_saved_model=True)
        _build(model, root.get("build_input_shape"))
        training = root.get("training_config")
        if isinstance(training, dict):
            compile_by(training, model, "tf_keras", folder, imports=imports, of_saved_model=True)
    return model


def check_vocabularies(folder: str, state: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `UsageError` where a vocabulary of the state is neither in a config nor among the tensors `given`: it is
    in the graph."""
    parts = [leaf for leaf in walk(state).leaves if isinstance(leaf, PartLeaf) and leaf.name not in given]
    lost = sorted(leaf.name for leaf in parts if not len(leaf.bundle.read()[leaf.part]))
    if lost:
        raise UsageError(f"{folder}: {some_of(lost, _SHOWN)} lies in the graph alone, which was not run. {_WAYS}")


def root_of(folder: str) -> dict[str, Any]:
    """What the metadata say of the model itself."""
    keras_module("tf_keras")
    from tf_keras.protobuf import saved_metadata_pb2

    path = os.path.join(folder, METADATA)
    metadata = saved_metadata_pb2.SavedMetadata()
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"longer than {_MAX_BYTES:,} bytes")
        metadata.ParseFromString(data)
        root = next(json.loads(node.metadata) for node in metadata.nodes if node.node_path == "root")
        if not isinstance(root, dict):
            raise TypeError("its root is not an object")
    except CkptflowError:
        raise
    except StopIteration as error:
        raise UsageError(f"{folder}: its {METADATA} describe no model. {_WAYS}") from error
    except Exception as error:  # protobuf's errors have no common class
        raise CorruptCheckpointError(f"{path} cannot be read: {error}") from error
    return root


def optimizer_in(folder: str) -> Described:
    """What the metadata of tf_keras's say of the optimizer, where there are some and tf_keras is there to read them."""
    if not is_keras_saved_model(folder):
        return Described()
    try:
        training = root_of(folder).get("training_config")
    except UsageError:
        return Described()
    return described_by(training if isinstance(training, dict) else {})


def _build(model: Any, described: Any) -> None:
    """Gives a model that was made without its inputs the variables for those that it had."""
    items = described.get("items") if isinstance(described, dict) else described
    if model.built or not isinstance(items, list) or not all(isinstance(each, int | None) for each in items):
        return
    try:
        model.build(tuple(items))
    except Exception as error:  # whatever a class's build raises; what is missing is said later
        logger.debug("%s is not built: %s", type(model).__name__, str(error))


def _stored_bytes(folder: str) -> int:
    """What is stored for a model's variables, without holes, and of nothing else that lies beside them."""
    place, total = os.path.join(folder, "variables"), 0
    for path in files_of(os.path.join(place, "variables")) if os.path.isdir(place) else ():
        with os_errors("read", path), open_regular(path) as file:
            total += filled_bytes(file.fileno())
    return total
