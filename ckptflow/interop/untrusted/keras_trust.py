"""What a Keras config may name. Configs are read from storage, and Keras turns the names in them into classes and
functions, and, where it is let, into code.

What each Keras would do with a hostile one, by its source (Keras 3.15, tf_keras 2.21): tf_keras imports any module and
takes any attribute of it (`os.system` as an activation), its op layers call any symbol of TensorFlow while the model is
built (`io.gfile.remove` on a constant), its lookup layers read any file as a vocabulary, layers of its export module
load and run any SavedModel; Keras 3 hands out any public symbol but a few (`keras.datasets.imdb.load_data` as an
activation); both unmarshal lambdas, tf_keras from HDF5 without asking. So what a config names is looked up here first,
as Keras would, and nothing is handed to Keras that names anything but what `keras_allowed` and `tf_operations` list,
what is registered with Keras, and what comes from modules that the user named.

What is checked is the object that is handed to Keras, never a text that Keras would decode for itself: `decoded` makes
the one of the other, and refuses what would turn into more than it says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from inspect import isclass, ismodule
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.untrusted.keras_allowed import Framework as Framework
from ckptflow.interop.untrusted.keras_allowed import (
    at,
    is_allowed_class,
    is_allowed_function,
    kinds,
    of_tensorflow,
    public,
    runs_code,
)
from ckptflow.interop.untrusted.keras_allowed import keras_module as keras_module
from ckptflow.interop.untrusted.tf_operations import is_allowed_attribute, is_allowed_operation
from ckptflow.state.private import kerases, tf_keras

_PLAIN = frozenset(
    {"__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__keras_tensor__"}
)  # how Keras writes values
_TYPE_SPECS = frozenset({"TensorSpec", "RaggedTensorSpec", "SparseTensorSpec"})
_CALL_OPERATIONS = frozenset({"TFOpLambda", "SlicingOpLambda"})
_TAKE_ATTRIBUTES = frozenset({"InstanceMethod", "InstanceProperty"})
_HOLD_FUNCTIONS = frozenset({"Lambda", "DeviceWrapper", "DropoutWrapper", "ResidualWrapper"})
_NOT_CODE = ("function", "raw")  # how a layer of tf_keras may say that it holds a function
# What only `json_utils`, which reads configs from HDF5 and SavedModels, turns into something else.
_SPECIAL = frozenset({"TensorShape", "TypeSpec", "CompositeTensor", "__tuple__"})
_CONSTANT = "_TYPE"  # tf_keras's mark of a constant that holds a further text to decode
_WAYS = (
    "If it is yours, name the module that defines or registers it (imports=, --import), or hand the model over "
    "(model=). unsafe=True (--unsafe) lets through what Keras itself has or the file carries; only for a file that you "
    "would run as a program"
)

# Where a class or function without a module is found: the public places, and those that HDF5 files are read with.
_PLACES: dict[Framework, tuple[str, ...]] = {
    "keras": (
        "layers", "models", "optimizers", "optimizers.schedules", "losses", "metrics", "activations", "initializers",
        "regularizers", "constraints", "dtype_policies", "quantizers", "src.layers", "src.models.functional",
        "src.optimizers.loss_scale_optimizer", "src.losses.losses", "src.metrics.reduction_metrics",
    ),
    "tf_keras": (
        "layers", "models", "optimizers", "optimizers.legacy", "optimizers.schedules", "losses", "metrics",
        "activations", "initializers", "regularizers", "constraints", "mixed_precision", "src.engine.functional",
        "src.engine.base_layer", "src.layers.core.tf_op_layer", "src.layers.rnn.cell_wrappers",
        "src.layers.rnn.lstm_v1", "src.layers.rnn.gru_v1", "src.losses", "src.metrics", "src.metrics.base_metric",
        "src.regularizers", "src.constraints", "src.activations", "src.optimizers.schedules.learning_rate_schedule",
        "src.mixed_precision.loss_scale_optimizer", "src.initializers", "src.initializers.initializers_v1",
    ),
}  # fmt: skip
_OPERATIONS = tuple(f"src.ops.{name}" for name in ("numpy", "nn", "core", "math", "linalg", "image"))


def check_config(
    config: Any, framework: Framework, where: str, *, imports: tuple[str, ...] = (), unsafe: bool = False
) -> dict[str, Any]:
    """Raises `UsageError` unless everything that `config` names is on Keras's own lists, registered with Keras, or from
    one of the modules in `imports`; returns what is from those modules and not registered, as Keras's `custom_objects`.

    Nothing is imported and nothing of the config is run. `unsafe` also lets pass marshalled lambdas, and what Keras has
    that loads further files or calls any operation; it never lets a module be imported that the user has not named.
    """
    strings, objects = _content(config)
    own = {name: obj for name, obj in _defined_in(imports, framework).items() if name in strings}
    check = _Check(framework, where, {**registered(framework), **own}, unsafe)
    for described in objects:
        check.check(described)
    return own


def check_model_config(
    config: Any, framework: Framework, where: str, *, imports: tuple[str, ...] = (), unsafe: bool = False
) -> dict[str, Any]:
    """As `check_config`, for a model's config. Raises `CorruptCheckpointError` where it describes anything else."""
    own = check_config(config, framework, where, imports=imports, unsafe=unsafe)
    known = {**registered(framework), **own}
    described = config if isinstance(config, dict) else {}
    found = _Check(framework, where, known, unsafe).classes_of(described)
    model = keras_module(framework).Model
    if not found or not all(isclass(each) and issubclass(each, model) for each in found):
        name = str(described.get("class_name"))[:80]
        raise CorruptCheckpointError(f"{where}: its config describes {name!r}, which is not a model; nothing was run")
    return own


def decoded(
    config: Any, framework: Framework, where: str, *, unsafe: bool = False, of_saved_model: bool = False
) -> dict[str, Any]:
    """What the text of a config in HDF5, or in a SavedModel, becomes in Keras's hands, from what JSON makes of it.

    Keras's decoder for these turns some objects into tensors and types, which are nothing that could be checked by its
    name; they are refused without `unsafe`. `of_saved_model` takes tuples and shapes, which Keras writes there alone.
    Raises `UsageError`, `CorruptCheckpointError` where it is nested too deeply.
    """
    try:
        found = _decoded_by_keras(config, framework) if unsafe else _decoded(config, where, of_saved_model)
    except RecursionError as error:
        raise CorruptCheckpointError(f"{where}: its config is nested too deeply") from error
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{where}: its config describes no object")
    return found


def _decoded_by_keras(config: Any, framework: Framework) -> Any:
    return kerases.of(framework).decoded(config)


def _decoded(value: Any, where: str, of_saved_model: bool) -> Any:
    if isinstance(value, list):
        return [_decoded(each, where, of_saved_model) for each in value]
    if not isinstance(value, dict):
        return value
    name, items = value.get("class_name"), value.get("items")
    if name == "__ellipsis__":
        return ...
    if name == "__bytes__" and isinstance(value.get("value"), str):
        return value["value"].encode()
    if of_saved_model and name == "__tuple__" and isinstance(items, list):
        return tuple(_decoded(each, where, of_saved_model) for each in items)
    if of_saved_model and name == "TensorShape" and isinstance(items, list | None):
        return None if items is None else [each if isinstance(each, int) else None for each in items]
    if isinstance(name, str) and name in _SPECIAL:
        raise UsageError(_refusal(where, f"{name!r}, which Keras turns into another value than it says"))
    return {key: _decoded(each, where, of_saved_model) for key, each in value.items()}


def operations(config: Any, framework: Framework) -> dict[str, Any]:
    """Keras 3's operations that a config names without their module, as `custom_objects`: HDF5 files do, and Keras does
    not find them again."""
    if framework == "tf_keras":
        return {}
    found: dict[str, Any] = {}
    for described in _content(config)[1]:
        name = described["class_name"]
        if isinstance(name, str) and "module" not in described and at(framework, "src.layers", name) is None:
            for each in (at(framework, place, name) for place in _OPERATIONS):
                if isclass(each) and is_allowed_class(framework, each):
                    found[name] = each
    return found


def _content(config: Any) -> tuple[set[str], list[dict[str, Any]]]:
    """All strings of a config, and all that describes an object in it. No recursion: nobody has bounded its depth."""
    strings: set[str] = set()
    objects: list[dict[str, Any]] = []
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            strings.add(value)
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if "class_name" in value or _CONSTANT in value:
                objects.append(value)
    return strings, objects


class _Check:
    def __init__(self, framework: Framework, where: str, known: dict[str, Any], unsafe: bool) -> None:
        self._framework = framework
        self._where = where
        self._known = known
        self._unsafe = unsafe

    def check(self, described: dict[str, Any]) -> None:
        """Raises unless one described object, without those inside of it, is one that may be made."""
        if "class_name" not in described:
            if self._framework == "tf_keras":
                self._refuse_unless_unsafe("a constant that is a text to decode")
            return
        class_name, inner = described["class_name"], described.get("config")
        if not isinstance(class_name, str):
            self._refuse(f"a class called {str(class_name)[:80]!r}")
        if class_name in _PLAIN:
            return
        if class_name == "__lambda__":
            self._refuse_unless_unsafe("a lambda as marshalled code")
            return
        if class_name == "__typespec__":
            self._check_type_spec(described)
            return
        module, name = described.get("module"), inner if class_name == "function" else class_name
        key = name if class_name == "function" else described.get("registered_name", name)
        if not isinstance(name, str) or not isinstance(key, str | None) or not isinstance(module, str | None):
            self._refuse(f"something called {str(name)[:80]!r}")
        found = self._find(module, name)
        if not all(map(self._is_allowed, found)) or not (found or self._is_known(key, name, module)):
            self._refuse(f"{module}.{name}" if module and module != "builtins" else repr(name))
        # Both Kerases write "function" there for one that is not registered.
        if class_name == "function" and described.get("registered_name") not in (None, name, "function", *self._known):
            self._refuse(f"a function called {name!r} and {str(described['registered_name'])[:80]!r}")
        # Old formats go by the name alone, whatever else is said.
        by_name = [] if name in self._known else self._find(None, name)
        if not all(map(self._is_harmless, by_name)):
            self._refuse(repr(name))
        for each in (*found, *by_name):
            if isclass(each):
                self._check_class(each, inner if isinstance(inner, dict) else {})

    def classes_of(self, described: dict[str, Any]) -> list[Any]:
        """What Keras would make an object of, all that the same words could mean to it."""
        name = described.get("class_name")
        key = described.get("registered_name", name)
        known = [self._known[each] for each in (key, name) if isinstance(each, str) and each in self._known]
        module = described.get("module")
        return known or (self._find(module, name) if isinstance(name, str) else [])

    def _is_known(self, key: str | None, name: str, module: str | None) -> bool:
        """Whether Keras finds something registered, or handed over, before it looks at the module. Its class is called
        by that name: old formats look for no other."""
        if key is not None and key in self._known:
            return name in (key, key.rpartition(">")[2], getattr(self._known[key], "__name__", None))
        # Keras up to 3.6 wrote functions without their package.
        return module == "builtins" and any(known.endswith(f">{name}") for known in self._known)

    def _find(self, module: str | None, name: str) -> list[Any]:
        """What Keras would find under a name if nothing registered has it; empty where Keras knows nothing of it."""
        if module is None or module == "builtins":
            places = _PLACES[self._framework] + (_OPERATIONS if self._framework == "keras" else ())
            found = [at(self._framework, place, name) for place in places]
            found.append(_layer_of_old(name) if self._framework == "tf_keras" else None)
            return [each for each in found if isinstance(each, (type, FunctionType))]
        root, _, rest = module.partition(".")
        if root == "tensorflow" and self._framework == "tf_keras":
            return [each for each in (of_tensorflow(module, name),) if each is not None]
        if root not in ("keras", self._framework):
            return []
        named = public(self._framework, f"{module}.{name}")
        return [each for each in (named or at(self._framework, rest, name),) if each is not None]

    def _is_allowed(self, found: Any) -> bool:
        if isclass(found):
            return is_allowed_class(self._framework, found, unsafe=self._unsafe)
        return isinstance(found, FunctionType) and (self._unsafe or is_allowed_function(self._framework, found))

    def _is_harmless(self, found: Any) -> bool:
        """Whether it does no harm if it is made instead of a registered class of that name."""
        return self._is_allowed(found) or (isclass(found) and not runs_code(found))

    def _check_class(self, found: type, inner: dict[str, Any]) -> None:
        """What layers of Keras's own run or read that is named otherwise than as a class."""
        name = found.__name__
        if name == "Lambda" and isinstance(inner.get("function"), (list, tuple)):
            self._refuse_unless_unsafe("a Lambda layer with marshalled code")
        if isinstance(inner.get("vocabulary"), str):
            file = inner["vocabulary"]
            self._refuse_unless_unsafe(f"a {name} layer that reads its vocabulary from the file {file!r}")
        if self._framework == "tf_keras":
            self._check_functions(name, inner)
            self._check_operation(name, inner)

    def _check_functions(self, name: str, inner: dict[str, Any]) -> None:
        """A function that a layer of tf_keras holds is one that is known by its name, not code."""
        for key, value in inner.items():
            if name not in _HOLD_FUNCTIONS:
                return
            if key.endswith("_module") and name != "Lambda":  # all of it goes over the globals of that layer's module
                self._check_module(name, value, inner.get(key.removesuffix("_module")))
            if not key.endswith("_type"):
                continue
            if not isinstance(value, str) or value not in _NOT_CODE:
                self._refuse_unless_unsafe(f"a {name} layer with marshalled code")
            function = inner.get(key.removesuffix("_type"))
            if value == "function" and not isinstance(function, (str, dict)):
                self._refuse(f"a {name} layer with the function {str(function)[:80]!r}")
            if value == "function" and isinstance(function, str) and function not in self._known:
                self._refuse(f"the function {function!r}")

    def _check_module(self, name: str, module: Any, function: Any) -> None:
        known = self._known.get(function) if isinstance(function, str) else None
        if module not in (None, "builtins", getattr(known, "__module__", None)):
            self._refuse_unless_unsafe(f"a {name} layer that takes over the module {str(module)[:80]!r}")

    def _check_operation(self, name: str, inner: dict[str, Any]) -> None:
        """What a layer of tf_keras calls only computes, and what it takes of a tensor is a tensor's."""
        function, symbol = inner.get("function"), inner.get("cls_symbol")
        if name in _CALL_OPERATIONS and not is_allowed_operation(function):
            self._refuse_unless_unsafe(f"a {name} layer that calls tf.{str(function)[:80]}")
        if name == "ClassMethod" and not is_allowed_attribute(inner.get("method_name"), str(symbol)):
            self._refuse_unless_unsafe(
                f"a ClassMethod layer that calls tf.{str(symbol)[:80]}.{str(inner.get('method_name'))[:80]}"
            )
        if name in _TAKE_ATTRIBUTES and not is_allowed_attribute(inner.get("attr_name")):
            self._refuse_unless_unsafe(f"an {name} layer that takes {str(inner.get('attr_name'))[:80]!r} of a tensor")

    def _check_type_spec(self, described: dict[str, Any]) -> None:
        module, name = described.get("module"), described.get("spec_name")
        is_loaded = isinstance(module, str) and module.startswith("tensorflow.python.") and module in sys.modules
        if not (is_loaded and isinstance(name, str) and name in _TYPE_SPECS):
            self._refuse(f"the type spec {module}.{name}")

    def _refuse_unless_unsafe(self, what: str) -> None:
        if not self._unsafe:
            raise UsageError(_refusal(self._where, f"{what}, which may run or read whatever its author wanted"))

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            _refusal(
                self._where,
                f"{what}, which is not on the list of {self._framework}'s own layers, optimizers and the like that may "
                "be made from a file, and is not registered",
            )
        )


def _refusal(where: str, what: str) -> str:
    return f"{where}: the model's config has {what}; nothing was run. {_WAYS}"


def without_files(config: Any, where: str) -> Any:
    """A copy of a config in which lookup layers read no vocabulary from a file: the checkpoint holds their words.

    Raises `CorruptCheckpointError` where it is nested too deeply.
    """
    try:
        return _without_files(config)
    except RecursionError as error:
        raise CorruptCheckpointError(f"{where}: its config is nested too deeply") from error


def _without_files(config: Any) -> Any:
    if isinstance(config, dict):
        copy = {key: _without_files(value) for key, value in config.items()}
        if isinstance(copy.get("vocabulary"), str) and "output_mode" in copy:
            copy["vocabulary"] = None
        return copy
    if isinstance(config, list):
        return [_without_files(value) for value in config]
    return config


# What is known


def _layer_of_old(name: str) -> Any:
    """What tf_keras's older formats find under the name of a layer."""
    return tf_keras.layer_of_old(name)


def registered(framework: Framework) -> dict[str, Any]:
    """What the program has registered with a Keras, by its names there."""
    saving = keras_module(framework).saving
    return {**saving.get_custom_objects(), **kerases.of(framework).objects_in_scope()}


def known_to_program(framework: Framework, imports: Sequence[str]) -> dict[str, str]:
    """What `registered` knows, and what is from the imported modules: by its name there, where it is defined."""
    known = {**registered(framework), **_defined_in(imports, framework)}
    return {
        name: f"{getattr(obj, '__module__', '')}:{getattr(obj, '__qualname__', type(obj).__qualname__)}"
        for name, obj in known.items()
    }


def needed_of_program(config: Any, framework: Framework, imports: Sequence[str]) -> dict[str, str]:
    """What of that a config may mean: of what is registered by any string in it, with its package or without; of what
    is only defined where an object is described, as the name of its class or function."""
    strings, objects = _content(config)
    named, ours = set(_named(objects)), registered(framework)
    return {
        name: where
        for name, where in known_to_program(framework, imports).items()
        if name in named or (name in ours and not strings.isdisjoint((name, name.rpartition(">")[2])))
    }


def _named(objects: list[dict[str, Any]]) -> Iterator[str]:
    for described in objects:
        inner = described.get("config")
        function = inner.get("function") if isinstance(inner, dict) else inner  # older formats hold it by its name
        for name in (described.get("class_name"), described.get("registered_name"), function):
            if isinstance(name, str):
                yield name


def _defined_in(imports: Sequence[str], framework: Framework) -> dict[str, Any]:
    """The Keras classes, and the functions, that the imported modules and those below them define, by name."""
    own = kinds(framework)
    return {
        name: obj
        for module in loaded(imports)
        for name, obj in vars(module).items()
        if getattr(obj, "__module__", None) == module.__name__
        and (isinstance(obj, FunctionType) or (isclass(obj) and issubclass(obj, own)))
    }


def loaded(imports: Sequence[str]) -> Iterator[ModuleType]:
    """The modules named, and those below them, that this program has loaded."""
    for name, module in list(sys.modules.items()):
        if any(name == wanted or name.startswith(f"{wanted}.") for wanted in imports) and ismodule(module):
            yield module
