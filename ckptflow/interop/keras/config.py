"""Keras models and optimizers made again from the configs that a manifest, or a file of Keras's, holds of them."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.format.words import some_of
from ckptflow.interop.untrusted.budget import limited_variables
from ckptflow.interop.untrusted.keras_trust import (
    Framework,
    check_config,
    check_model_config,
    keras_module,
    without_files,
)
from ckptflow.state.build import build_missing
from ckptflow.state.configs import NO_KERAS, inputs_of, part_of
from ckptflow.state.kinds import is_built
from ckptflow.state.private import kerases
from ckptflow.state.private.tf_keras import BUILT_WITH, make_slots
from ckptflow.state.tf_keras import symbols
from ckptflow.state.tree import walk
from ckptflow.state.weights import trainable_of

logger = logging.getLogger("ckptflow")

_SHOWN = 300  # characters of what Keras says


def build_model(
    described: Mapping[str, Any],
    path: str,
    *,
    unsafe: bool = False,
    imports: tuple[str, ...] = (),
    stored_bytes: int | None = None,
    optimizer_class: str = "",
) -> Any:
    """The model that a manifest's entry describes, of the Keras that it was of: built, compiled as far as it can be,
    its optimizer built as well. Its values are those it is made with; the caller gives it the checkpoint's by name.

    Nothing is made before `keras_trust.check_config` has seen every name in the configs. `imports` are the modules that
    the user named, imported by now. What cannot be had of the compile config (a loss that is a lambda) is left out and
    logged; the optimizer comes alone then. `stored_bytes`, what is stored
    of it, bounds what its variables may take together. `optimizer_class`:
    what it was, as Keras scales losses under a mixed precision policy, of which the compile config is silent.
    Raises `UsageError` where there is no config, or it names what is not known, or Keras cannot make the model of it,
    or its variables would be far larger than what is stored.
    """
    framework = framework_of(described, path)
    config = part_of(described, "config")
    if not isinstance(config, dict):
        name, left_out = described.get("class"), described.get("left_out")
        if isinstance(left_out, dict):
            raise UsageError(
                f"{path} ({name}): its description was left out of the checkpoint, since there is too much data in it "
                f"({str(left_out.get('config'))[:_SHOWN]}); pass the model (model=), made by your code"
            )
        raise UsageError(
            f"{path} ({name}) has no config in the checkpoint, as its class has no get_config that could be stored: "
            f"pass the model (model=), made by your code; or give {name} a get_config, register it with "
            "register_keras_serializable and save again, then import its module (--import)"
        )
    full = {**config, "build_config": part_of(described, "build_config"), "compile_config": None}
    where = f"{path} ({described.get('class')})"
    if not unsafe:
        full = without_files(full, where)
    with limited_variables(stored_bytes, where):
        model = deserialize(full, framework, where, imports=imports, unsafe=unsafe, is_model=True)
        check_is_model(model, framework, where)
        build_missing(walk({path: model}), {path: dict(described)})
        if framework == "tf_keras":
            _call_once(model, described, where)
            # Noted only by a call that builds; a file without it cannot be loaded.
            build_config = part_of(described, "build_config")
            if isinstance(build_config, dict) and getattr(model, BUILT_WITH, None) is None:
                setattr(model, BUILT_WITH, build_config.get("input_shape"))
        compile_config = part_of(described, "compile_config")
        if isinstance(compile_config, dict):
            is_scaled = "LossScaleOptimizer" in optimizer_class
            compile_model(model, compile_config, framework, where, imports=imports, unsafe=unsafe, is_scaled=is_scaled)
    return model


def build_with_optimizer(
    models: Mapping[str, Any],
    path: str,
    optimizer_path: str | None,
    *,
    unsafe: bool = False,
    imports: tuple[str, ...] = (),
    stored_bytes: int | None = None,
) -> Any:
    """The model at `path` of what a manifest says of its models, as `build_model` makes it; if that has no optimizer,
    with the one that is described at `optimizer_path`, built for it. `stored_bytes` bounds what either may take."""
    model = build_model(
        models[path],
        path,
        unsafe=unsafe,
        imports=imports,
        stored_bytes=stored_bytes,
        optimizer_class=_class_of(models.get(f"{path}/optimizer")),
    )
    if optimizer_path is None or getattr(model, "optimizer", None) is not None:
        return model
    with limited_variables(stored_bytes, optimizer_path):
        optimizer = build_optimizer(models[optimizer_path], optimizer_path, unsafe=unsafe, imports=imports)
        if optimizer is not None and compile_with(model, {"optimizer": optimizer}):
            logger.warning("%s is left out: compile() of its model does not take it alone", optimizer_path)
        elif optimizer is not None:
            # In the model's order, in which Keras's files are read, whatever it was built for: slots have names here.
            build_optimizer_of(model)
    return model


def _class_of(described: object) -> str:
    return str(described.get("class", "")) if isinstance(described, dict) else ""


def build_optimizer(
    described: Mapping[str, Any], path: str, *, unsafe: bool = False, imports: tuple[str, ...] = ()
) -> Any:
    """The optimizer that a manifest's entry describes, not yet built; None, which is logged, where there is no config
    or it is one of TensorFlow 1.

    Raises `UsageError` as `build_model` does.
    """
    if described.get("framework") == NO_KERAS:
        logger.warning("%s (%s) is not an optimizer of Keras: it is left out", path, described.get("class"))
        return None
    framework = framework_of(described, path)
    config = part_of(described, "config")
    if not isinstance(config, dict):
        why = described.get("left_out") or "its class has none that could be stored"
        logger.warning(
            "%s (%s) has no config in the checkpoint (%.300s): it is left out", path, described.get("class"), why
        )
        return None
    return deserialize(config, framework, f"{path} ({described.get('class')})", imports=imports, unsafe=unsafe)


def framework_of(described: Mapping[str, Any], where: str) -> Framework:
    """Which Keras an entry of a manifest is of. Raises `CorruptCheckpointError` for another word."""
    if described.get("framework") == "keras":
        return "keras"
    if described.get("framework") == "tf_keras":
        return "tf_keras"
    raise CorruptCheckpointError(f"{where}: its framework {str(described.get('framework'))[:80]!r} is not known")


def deserialize(
    config: Any,
    framework: Framework,
    where: str,
    *,
    imports: tuple[str, ...] = (),
    unsafe: bool = False,
    is_model: bool = False,
) -> Any:
    """What a config describes, once every name in it has been looked up. Raises `UsageError`; where `is_model`, also
    `CorruptCheckpointError` for what is not a model's."""
    check = check_model_config if is_model else check_config
    own = check(config, framework, where, imports=imports, unsafe=unsafe)
    keras = keras_module(framework)
    with _quiet(), _sharing(framework), safe_mode(framework, unsafe=unsafe):
        try:
            return keras.saving.deserialize_keras_object(
                copy.deepcopy(config), custom_objects=own, safe_mode=not unsafe
            )
        except Exception as error:  # whatever the classes raise, the user's among them
            raise_unbuildable(error, where)


def raise_unbuildable(error: Exception, where: str) -> NoReturn:
    """Raises a `UsageError` that says what Keras said, unless the error is one of ours."""
    if isinstance(error, (UsageError, CorruptCheckpointError)):
        raise error
    said = " ".join(str(error).split())[:_SHOWN]
    raise UsageError(
        f"{where}: Keras cannot make it from its config ({type(error).__name__}: {said}). If a class of yours is "
        "missing, import the module that registers it (--import); or pass the model (model=)"
    ) from error


def compile_model(
    model: Any,
    config: dict[str, Any],
    framework: Framework,
    where: str,
    *,
    imports: tuple[str, ...] = (),
    unsafe: bool = False,
    is_scaled: bool = False,
) -> None:
    """Compiles a model as its compile config says and builds its optimizer; what cannot be had is left out and logged.

    A lambda cannot be had without `unsafe`, nor can what is not registered. Nothing of a loss or a metric is state, so
    that a model which lacks them still holds all that its checkpoint does. Never raises for what a config names.
    """
    base = keras_module(framework).Model
    if type(model).compile_from_config is not base.compile_from_config or type(model).compile is not base.compile:
        _compile_own(model, config, framework, where, imports=imports, unsafe=unsafe)
        return
    arguments: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in config.items():
        try:
            arguments[name] = deserialize(value, framework, f"{where}: {name}", imports=imports, unsafe=unsafe)
        except UsageError as error:
            dropped.append(name)
            logger.info("%s", str(error))
    if is_scaled and arguments.get("optimizer") is not None:
        arguments["optimizer"] = _scaled(arguments["optimizer"], framework)
    if "loss" in dropped and arguments.pop("loss_weights", None) is not None:
        dropped.append("loss_weights")
    if arguments.get("optimizer") is None:
        dropped = list(config)
    else:
        dropped += compile_with(model, arguments)
        build_optimizer_of(model)
    if dropped:
        logger.warning(
            "%s is compiled without its %s, which cannot be had from its config; compile it again to train it",
            where,
            some_of(sorted(dropped), len(dropped)),
        )


def _scaled(optimizer: Any, framework: Framework) -> Any:
    """The optimizer inside of one that scales losses, as Keras itself wraps it where the policy is mixed_float16."""
    keras = keras_module(framework)
    optimizer = keras.optimizers.get(optimizer)
    base = keras.mixed_precision.LossScaleOptimizer
    return optimizer if "LossScaleOptimizer" in type(optimizer).__name__ else base(optimizer)


def compile_with(model: Any, arguments: dict[str, Any]) -> list[str]:
    """Compiles; returns what it had to leave out for that."""
    for keys in (list(arguments), ["optimizer", "loss"], ["optimizer"]):
        try:
            with _quiet():
                model.compile(**{key: arguments[key] for key in keys if key in arguments})
        except Exception as error:  # Keras checks losses and metrics in many ways
            logger.info("compile(%s): %s: %s", ", ".join(keys), type(error).__name__, str(error))
        else:
            return [key for key in arguments if key not in keys and arguments[key] is not None]
    return list(arguments)


def _compile_own(
    model: Any,
    config: dict[str, Any],
    framework: Framework,
    where: str,
    *,
    imports: tuple[str, ...],
    unsafe: bool,
) -> None:
    """A class that compiles itself in its own way does so from its config, too, if it can."""
    try:
        own = check_config(config, framework, where, imports=imports, unsafe=unsafe)
        with (
            _quiet(),
            keras_module(framework).saving.custom_object_scope(own),
            safe_mode(framework, unsafe=unsafe),
        ):
            model.compile_from_config(copy.deepcopy(config))
    except Exception as error:  # the user's code
        logger.warning("%s is not compiled: %s: %s", where, type(error).__name__, str(error)[:_SHOWN])
        return
    if getattr(model, "optimizer", None) is None:
        logger.warning("%s is not compiled: its class overrides compile() without compile_from_config()", where)
        return
    build_optimizer_of(model)


def build_optimizer_of(model: Any) -> None:
    """Gives a model's optimizer its slots, if the model has variables by now and the optimizer has none yet.

    Not every `build` of Keras 3 looks whether it was called before: a `LossScaleOptimizer`, or one that was written as
    its docstring says, would have some of its variables twice.
    """
    optimizer = getattr(model, "optimizer", None)
    variables = trainable_of(model)
    if optimizer is None or not variables or is_built(optimizer):
        return
    strategy = getattr(model, "distribute_strategy", None)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        if hasattr(optimizer, "build"):
            optimizer.build(variables)
        else:  # a legacy optimizer of tf_keras
            make_slots(optimizer, variables)


def _call_once(model: Any, described: Mapping[str, Any], where: str) -> None:
    """Calls a subclassed model of tf_keras on symbols: its files and signatures need what it was called with."""
    try:
        arguments = inputs_of(described)
    except ValueError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error
    if arguments is None or model.save_spec() is not None:
        return
    try:
        model(*symbols(arguments))
    except Exception as error:  # whatever a user's call raises
        logger.warning("%s cannot be called on what it was called with (%s): it has no signature", where, str(error))


def check_is_model(model: Any, framework: Framework, where: str) -> None:
    """Raises `CorruptCheckpointError` unless what a config made is a model."""
    if not isinstance(model, keras_module(framework).Model):
        raise CorruptCheckpointError(f"{where}: its config makes a {type(model).__name__}, which is not a model")


def _sharing(framework: Framework) -> Any:
    """Keras's own scope in which a layer that a config names twice is made once."""
    return kerases.of(framework).serialization().ObjectSharingScope()


def safe_mode(framework: Framework, *, unsafe: bool) -> Any:
    """Keras's own scope in which it unmarshals no lambda, unless `unsafe`. Its old formats look at nothing else."""
    return kerases.of(framework).serialization().SafeModeScope(not unsafe)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # of lambdas, of layers that are not built yet: what matters is said above
        warnings.simplefilter("ignore")
        yield
