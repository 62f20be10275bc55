"""Keras's own files: `.keras`, whole models in `.h5` and `.weights.h5`, of Keras 3 and tf_keras, both ways.

Whatever is written is what the model's own Keras writes, and is read by it without ckptflow. Whatever is read is looked
over first: the archive, the HDF5 file, every name in the configs; see `untrusted` and `hdf5`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from ckptflow.errors import CkptflowError, UnsupportedStateError, UsageError
from ckptflow.interop import provenance
from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras import legacy as keras_legacy
from ckptflow.interop.keras.config import check_is_model, compile_model, raise_unbuildable, safe_mode
from ckptflow.interop.keras.described import COMPILED, described_in
from ckptflow.interop.keras.hdf5 import check_file, damage, json_of, opened, text_of
from ckptflow.interop.keras.legacy import check_dtypes, save_h5
from ckptflow.interop.keras.optimizer import (
    drop_if_several,
    has_slots,
    is_at,
    optimizers_at,
    places_in,
    takes_state,
    variables_of,
    warn_of_none,
)
from ckptflow.interop.keras.places import places_of, shapes_of
from ckptflow.interop.keras.provenance import CONFIG, copy_members, member, metadata_of, zip_folder
from ckptflow.interop.keras.weights import (
    check_filled,
    datasets_of,
    framework_of_model,
    kind_of_file,
    load_held,
    load_stock,
    named,
    total_bytes,
)
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.untrusted.budget import limited_variables
from ckptflow.interop.untrusted.keras_trust import Framework, check_config, check_model_config, keras_module
from ckptflow.interop.untrusted.model_probe import check_model
from ckptflow.interop.untrusted.private_copy import private_copy
from ckptflow.interop.untrusted.zips import bound_of, check_zip
from ckptflow.places.room import ensure_room
from ckptflow.places.shown_as import private_file
from ckptflow.state.private.kerases import loading_without
from ckptflow.state.private.tf_keras import BUILT_WITH, make_metrics
from ckptflow.storage.faults import from_os_error

logger = logging.getLogger("ckptflow")

_FILE_BYTES, _DATASET_BYTES = 2**20, 4096  # more than HDF5 adds to a file, and to a tensor


def write_keras(path: str, model: Any, origin: Provenance) -> None:
    """Writes a live model as the `.keras` file of its own Keras, with its optimizer's state and its vocabularies.

    The provenance is in `metadata.json` under `ckptflow`: for one more member stock `load_model` would unpack all of
    the archive to a temporary folder. For Keras 3 no second copy of the weights is in memory; tf_keras's writer makes
    two. Raises `UnsupportedStateError` where Keras cannot write the model, `StorageError`.
    """
    framework = _framework_of_built(model)
    with _writing(path, ".keras", "models that have a get_config") as target:
        folder = os.path.dirname(target)
        ensure_room(folder, 2 * _size_bytes(model))  # what is zipped, and the zip
        if framework == "keras":
            inside = os.path.join(folder, "model")
            keras_module(framework).saving.save_model(model, inside, zipped=False)
            zip_folder(inside, target, origin)
            return
        check_dtypes(model, ".keras")
        _warn_of_legacy(model, ".keras")
        inside = os.path.join(folder, "inside.keras")
        model.save(inside, save_format="keras")
        with zipfile.ZipFile(inside) as archive:
            copy_members(archive, target, origin)


def write_h5(path: str, model: Any, origin: Provenance) -> None:
    """Writes a live model as a legacy HDF5 file: config, weights, and the optimizer with its state.

    Stock tf_keras takes all of it back, and so does `read_model`. Of the optimizer's state, which lies where Keras 3
    puts it, stock Keras 3 takes the step and the learning rate alone, and has to be compiled anew before it trains.
    Raises `UnsupportedStateError` where Keras cannot write the model, or could not read it again; `StorageError`.
    """
    framework = _framework_of_built(model)
    with _writing(path, ".h5", "functional and sequential models, those of tf_keras without vocabularies") as target:
        ensure_room(os.path.dirname(target), _size_bytes(model))
        if framework == "keras" and getattr(model, "optimizer", None) is not None:
            logger.warning(
                "of an optimizer in a .h5 file stock Keras 3 restores only the step and the learning rate, and the "
                "model "
                "must be compiled again before it trains; a .keras file has no such limit"
            )
        save_h5(target, model)
        keras_hdf5.write_provenance(target, provenance.encode(origin))


def write_weights(path: str, model: Any, origin: Provenance) -> None:
    """Writes a live model's weights, with its optimizer's state if it is compiled, as a `.weights.h5` file.

    Takes no memory beside one tensor. Raises `UnsupportedStateError` where Keras cannot write it, `StorageError`.
    """
    if _framework_of_built(model) == "tf_keras":
        check_dtypes(model, ".weights.h5")
        _warn_of_legacy(model, ".weights.h5")
        _build_metrics(model)
    with _writing(path, ".weights.h5", "models that are built") as target:
        ensure_room(os.path.dirname(target), _size_bytes(model))
        model.save_weights(target)
        keras_hdf5.write_provenance(target, provenance.encode(origin))


def is_whole_model(path: str) -> bool:
    """Whether a file holds a model's config beside its weights. Raises `CorruptCheckpointError`."""
    return kind_of_file(path) in ("keras", "whole")


def read_model(
    path: str,
    *,
    unsafe: bool = False,
    imports: tuple[str, ...] = (),
    framework: str | None = None,
    optimizer: bool = True,
    anew: bool = True,
    is_private: bool = False,
) -> Any:
    """The model in a `.keras` or whole `.h5` file, of the Keras that wrote it: compiled as far as it can be, with its
    optimizer's state and its vocabularies, every weight filled from the file.

    The file is copied first, and the copy is looked over and loaded; with `is_private` it is one already that nobody
    else can change. An optimizer whose state is not wanted (`optimizer`), or does not fit, which is logged, is made
    anew by its config; without `anew` the model has none then. A file that names no optimizer gives a model that is
    not compiled. `framework` is "keras" or "tf_keras", where the file's own word on that is not to be taken. `unsafe`
    and `imports` are as in `config.build_model`.
    Raises `CorruptCheckpointError` where the file is damaged, or names anything outside of itself, or asks for far more
    memory than it stores; `StateMismatchError` where its weights are not those of its config; `UsageError` for what it
    names and nobody has registered, and for marshalled code.
    """
    with contextlib.nullcontext(path) if is_private or os.path.isdir(path) else private_copy(path) as copy:
        model, has_state = _read_model(copy, path, framework, unsafe=unsafe, imports=imports, optimizer=optimizer)
    if not (has_state or anew):
        model.optimizer = None
    return model


def _read_model(
    path: str, where: str, framework: str | None, *, unsafe: bool, imports: tuple[str, ...], optimizer: bool
) -> tuple[Any, bool]:
    kind = kind_of_file(path)
    if kind not in ("keras", "whole"):
        raise UsageError(f"{where} has weights but no model: pass the model that they are for (model=)")
    config, version = _config_of(path) if kind == "keras" else _config_of_h5(path)
    chosen = _framework(framework, version, config, where)
    if not unsafe:  # else its code runs here anyway
        check_model(
            "ckptflow.interop.keras.files:read_model",
            path,
            [path],
            {**config, "compile_config": None},  # of which what cannot be had is left out
            chosen,
            imports=imports,
            arguments={"framework": chosen, "optimizer": optimizer, "is_private": True},
            scratch_bytes=bound_of(os.path.getsize(path)),
        )
    read = _read_keras if kind == "keras" else keras_legacy.read_h5
    return read(path, where, config, chosen, unsafe=unsafe, imports=imports, optimizer=optimizer)


def _config_of(path: str) -> tuple[dict[str, Any], Any]:
    """The config in a `.keras`, and the version of the Keras that wrote it."""
    check_zip(path)
    with damage(path), zipfile.ZipFile(path) as archive:
        config = json_of(member(archive, CONFIG, path), CONFIG, path)
        return config, metadata_of(archive, path).get("keras_version")


def _config_of_h5(path: str) -> tuple[dict[str, Any], Any]:
    with opened(path, path) as file:
        check_file(file, path, os.path.getsize(path))
        return json_of(text_of(file, "model_config"), "model_config", path), text_of(file, "keras_version")


def _framework(given: str | None, version: Any, config: dict[str, Any], where: str) -> Any:
    """Which Keras wrote a file: by the version that it says, else by what its config looks like."""
    if given is not None:
        if given not in ("keras", "tf_keras"):
            raise UsageError(f'framework is "keras" or "tf_keras", not {given!r}')
        return given
    major = str(version or "").partition(".")[0]
    if major in ("1", "2"):
        return "tf_keras"
    if major.isdecimal():
        return "keras"
    logger.info("%s does not say which Keras wrote it", where)
    text = json.dumps(config)
    return "tf_keras" if "keras.src.engine" in text or '"batch_input_shape"' in text else "keras"


def _read_keras(
    path: str,
    where: str,
    config: dict[str, Any],
    framework: Any,
    *,
    unsafe: bool,
    imports: tuple[str, ...],
    optimizer: bool,
) -> tuple[Any, bool]:
    """The model, and whether its optimizer has the state that the file holds."""
    stored = datasets_of(path, "keras")
    there = places_in(shapes_of(stored))
    compile_config = config.get("compile_config")
    bare = {**config, "compile_config": None}
    own = check_model_config(bare, framework, where, imports=imports, unsafe=unsafe)
    # Without an optimizer in its config, Keras would compile the model with RMSprop.
    is_named = isinstance(compile_config, dict) and compile_config.get("optimizer") is not None
    is_trusted = is_named and optimizer
    try:
        own |= check_config(compile_config, framework, where, imports=imports, unsafe=unsafe)
    except UsageError:  # a lambda as the loss, say: the rest of the model can be had
        is_trusted = False

    def load(file: str, *, compiled: bool) -> Any:
        def is_left(obj: Any, place: str) -> bool:  # whether its state is wanted and fits is known once it is made
            return hasattr(obj, "apply_gradients") and not (compiled and is_at(f"{place}/", [COMPILED]))

        with (
            loading_without(framework, is_left),
            limited_variables(total_bytes(stored), where),
            warnings.catch_warnings(),
            safe_mode(framework, unsafe=unsafe),
        ):
            warnings.simplefilter("ignore")
            return keras_module(framework).models.load_model(
                file, custom_objects=own, compile=compiled, safe_mode=not unsafe
            )

    model = None
    with named(path, ".keras") as file:
        if is_trusted:
            with contextlib.suppress(Exception):  # said by the second try, which leaves out what is less needed
                model = load(file, compiled=True)
        # What a policy of mixed precision wraps an optimizer in is in no config, and the policy may be another now.
        is_scaled = any(name.startswith("optimizer/inner_optimizer/") for name in there)
        if is_scaled and "LossScale" not in type(getattr(model, "optimizer", None)).__name__:
            model = None
        is_loaded = model is not None
        if model is None:
            try:
                model = load(file, compiled=False)
            except Exception as error:  # whatever the classes raise, the user's among them
                raise_unbuildable(error, where)
            check_is_model(model, framework, where)
            if is_named:
                how: dict[str, Any] = {"imports": imports, "unsafe": unsafe, "is_scaled": is_scaled}
                compile_model(model, config["compile_config"], framework, where, **how)
    check_is_model(model, framework, where)
    places, described = places_of(model, framework), described_in(path, "keras")
    optimizers = optimizers_at(stored, model, places, described)
    check_filled(where, places, stored, optimizers)
    held = {place: live for place, live in optimizers.items() if place != COMPILED}
    skipped = load_held(path, where, model, places, stored, described, held) if optimizer else []
    wanted = places_in(places.shapes)
    if getattr(model, "optimizer", None) is None:
        if there:
            warn_of_none(where, is_named=is_named)
        return model, False
    if not optimizer or (not has_slots(there) and there != wanted):  # saved before its first step
        return model, False
    has_state = takes_state(where, model.optimizer, there, wanted)
    if not has_state:
        drop_if_several(where, model)
    elif not is_loaded:
        load_stock(path, model, "keras", framework, skipped=skipped)
    return model, has_state


def _framework_of_built(model: Any) -> Framework:
    """Which Keras a model is of. Raises where it has no variables to write yet: Keras would write a file without."""
    framework = framework_of_model(model)
    if not model.built:
        raise UsageError(f"the model ({type(model).__name__}) has no variables yet; call it once on a batch")
    return framework


def _build_metrics(model: Any) -> None:
    """Gives a compiled model of tf_keras the variables of its metrics, which it makes with its first batch.

    They are in the file then, and stock tf_keras wants them there when it loads it into a model that has been trained.
    """
    if getattr(model, "optimizer", None) is None:
        return
    shape = getattr(model, BUILT_WITH, None)
    with contextlib.suppress(Exception):  # without them, the file serves models that have not been trained
        if model.outputs is None and shape is not None:  # a subclassed one is asked on symbols
            outputs = model(keras_module("tf_keras").Input(batch_shape=tuple(shape)))
            model.compiled_loss.build(outputs)
            model.compiled_metrics.build(outputs, outputs)
            return
        make_metrics(model)


def _warn_of_legacy(model: Any, suffix: str) -> None:
    if isinstance(getattr(model, "optimizer", None), keras_module("tf_keras").optimizers.legacy.Optimizer):
        logger.warning("tf_keras writes no state of a legacy optimizer into a %s file; a .h5 file has it", suffix)


def _size_bytes(model: Any) -> int:
    """What a file of the model takes at most: its weights, its optimizer's variables, and HDF5 around each of them."""
    variables = [*model.weights, *variables_of(getattr(model, "optimizer", None))]
    held = [variable for variable in variables if hasattr(variable, "shape")]  # a vocabulary has none
    sizes = [math.prod(size or 0 for size in each.shape) * (tf.as_dtype(each.dtype).size or 0) for each in held]
    return int(_FILE_BYTES + sum(sizes) + _DATASET_BYTES * len(sizes))


@contextlib.contextmanager
def _writing(path: str, suffix: str, what_it_takes: str) -> Iterator[str]:
    """A path to write to, which ends as Keras wants it to; what is there at the end takes the place of `path`."""
    with private_file(".ckptflow-", f"model{suffix}", path, beside=os.path.dirname(path) or ".") as target:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that HDF5 is legacy, that a layer is not built: nothing to act on
                yield target
            os.replace(target, path)
        except CkptflowError:
            raise
        except OSError as error:
            raise from_os_error(error, "write", path) from error
        except Exception as error:  # whatever the classes raise, the user's among them
            said = " ".join(str(error).split())[:300]
            raise UnsupportedStateError(
                f"Keras cannot write this model as a {suffix} file, which takes {what_it_takes} "
                f"({type(error).__name__}: {said}). Any model can be exported as a tf-checkpoint or as safetensors"
            ) from error
