"""What a Keras config may name. Configs are read from storage, and Keras turns the names in them into classes and
functions, and, where it is let, into code.

What each Keras would do with a hostile one, by its source (Keras 3.15, tf_keras 2.21): tf_keras imports any module and
takes any attribute of it (`os.system` as an activation), its op layers call any symbol of TensorFlow while the model is
built (`io.gfile.remove` on a constant), its lookup layers read any file as a vocabulary; Keras 3 hands out any public
symbol but a few (`keras.datasets.imdb.load_data` as an activation); both unmarshal lambdas, tf_keras from HDF5 without
asking. So what a config names is looked up here first, as Keras would, and nothing is handed to Keras that names
anything but Keras's own layers, optimizers and so on, what is registered with Keras, and what comes from modules that
the user named.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Literal, NoReturn

from ckptflow.errors import CorruptCheckpointError, UsageError

Framework = Literal["keras", "tf_keras"]

_PLAIN = frozenset(
    {"__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__keras_tensor__"}
)  # how Keras writes values
_TYPE_SPECS = frozenset({"TensorSpec", "RaggedTensorSpec", "SparseTensorSpec"})
_RUN_CODE = frozenset({"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TensorFlowOpLayer"})
_OF_TENSORS = frozenset({"RaggedTensor", "SparseTensor"})  # whose class methods and attributes op layers may use
_NOT_MATH = frozenset({"deserialize", "serialize", "get", "function"})
_CHANGE_STATE = ("set_", "clear_", "reset_", "enable_", "disable_", "batch_set_", "manual_")

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
        "src.mixed_precision.loss_scale_optimizer", "src.initializers.initializers_v1",
    ),
}  # fmt: skip
_OPERATIONS = tuple(f"src.ops.{name}" for name in ("numpy", "nn", "core", "math", "linalg", "image"))
_FUNCTIONS: dict[Framework, tuple[str, ...]] = {
    "keras": ("keras.src.activations.", "keras.src.losses.", "keras.src.metrics.", "keras.src.ops."),
    "tf_keras": ("tf_keras.src.activations", "tf_keras.src.losses", "tf_keras.src.metrics.", "tf_keras.src.backend"),
}
# Where TensorFlow defines what computes and does nothing else; `tf.io` and its kin are elsewhere, or named below.
_OPS = ("tensorflow.python.ops.", "tensorflow.python.framework.constant_op", "tensorflow.python.framework.tensor_conv")
_NO_OPS = frozenset(
    {"script_ops", "io_ops", "gen_io_ops", "logging_ops", "gen_logging_ops", "gen_script_ops", "summary_ops_v2",
     "custom_gradient", "batch_ops", "map_fn", "functional_ops", "while_loop", "lookup_ops", "gen_lookup_ops",
     "data_flow_ops", "state_ops", "variables", "variable_scope", "gen_dataset_ops", "gen_experimental_dataset_ops"}
)  # fmt: skip
_OP_PLACES = frozenset(
    {"", "math", "math.special", "nn", "linalg", "image", "signal", "strings", "bitwise", "sparse", "ragged", "random",
     "sets", "quantization", "experimental.numpy", "__operators__", "dtypes", "debugging", "io", "audio"}
)  # fmt: skip


def check_config(
    config: Any, framework: Framework, where: str, *, imports: tuple[str, ...] = (), unsafe: bool = False
) -> dict[str, Any]:
    """Raises `UsageError` unless everything that `config` names is Keras's own, registered with Keras, or from one of
    the modules in `imports`; returns what is from those modules and not registered, as Keras's `custom_objects`.

    Nothing is imported and nothing of the config is run. `unsafe` also lets marshalled lambdas pass, and layers that
    load further files or call any operation; it never lets a module be imported that the user has not named.
    """
    strings, objects = _content(config)
    own = {name: obj for name, obj in _defined_in(imports, framework).items() if name in strings}
    check = _Check(framework, where, {*_registered(framework), *own}, unsafe)
    for described in objects:
        check.check(described)
    return own


def operations(config: Any, framework: Framework) -> dict[str, Any]:
    """Keras 3's operations that a config names without their module, as `custom_objects`: HDF5 files do, and Keras does
    not find them again."""
    if framework == "tf_keras":
        return {}
    found: dict[str, Any] = {}
    for described in _content(config)[1]:
        name = described["class_name"]
        if isinstance(name, str) and "module" not in described and _at(framework, "src.layers", name) is None:
            for each in (_at(framework, place, name) for place in _OPERATIONS):
                if inspect.isclass(each) and issubclass(each, _kinds(framework)):
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
            if "class_name" in value and not {"config", "module", "registered_name"}.isdisjoint(value):
                objects.append(value)
    return strings, objects


def keras_module(framework: Framework) -> Any:
    """The module `keras` or `tf_keras`, imported. Raises `UsageError` where tf_keras is not installed."""
    try:
        return importlib.import_module(framework)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this is a {framework} model and {framework} is not installed: pip install {framework}"
        ) from (error)


class _Check:
    def __init__(self, framework: Framework, where: str, known: set[str], unsafe: bool) -> None:
        self._framework = framework
        self._where = where
        self._known = known
        self._unsafe = unsafe
        self._kinds = _kinds(framework)

    def check(self, described: dict[str, Any]) -> None:
        """Raises unless one described object, without those inside of it, is one that may be made."""
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
        if not all(map(self._is_harmless, found)) or not (found or self._is_known(key, name, module)):
            self._refuse(f"{module}.{name}" if module and module != "builtins" else repr(name))
        for each in found:
            if inspect.isclass(each):
                self._check_class(each, inner if isinstance(inner, dict) else {})

    def _is_known(self, key: str | None, name: str, module: str | None) -> bool:
        """Whether Keras finds something registered, or handed over, before it looks at the module."""
        if key in self._known:
            return True
        # Keras up to 3.6 wrote functions without their package.
        return module == "builtins" and any(known.endswith(f">{name}") for known in self._known)

    def _find(self, module: str | None, name: str) -> list[Any]:
        """What Keras would find under a name if nothing registered has it; empty where Keras knows nothing of it."""
        if module is None or module == "builtins":
            places = _PLACES[self._framework] + (_OPERATIONS if self._framework == "keras" else ())
            found = [_at(self._framework, place, name) for place in places]
            return [each for each in found if isinstance(each, (type, FunctionType))]
        root, _, rest = module.partition(".")
        if root not in ("keras", self._framework):
            return []
        public = _public(self._framework, f"{module}.{name}")
        return [each for each in (public or _at(self._framework, rest, name),) if each is not None]

    def _is_harmless(self, found: Any) -> bool:
        if inspect.isclass(found):
            return issubclass(found, self._kinds) and (self._unsafe or found.__name__ not in _RUN_CODE)
        return isinstance(found, FunctionType) and _computes(found, _FUNCTIONS[self._framework])

    def _check_class(self, found: type, inner: dict[str, Any]) -> None:
        """What layers of Keras's own run or read that is named otherwise than as a class."""
        name = found.__name__
        if name == "Lambda" and isinstance(inner.get("function"), (list, tuple)):
            self._refuse_unless_unsafe("a Lambda layer with marshalled code")
        if isinstance(inner.get("vocabulary"), str):
            file = inner["vocabulary"]
            self._refuse_unless_unsafe(f"a {name} layer that reads its vocabulary from the file {file!r}")
        if self._framework == "keras":
            return
        for key, value in inner.items():
            if key.endswith("_type") and value == "lambda":
                self._refuse_unless_unsafe(f"a {name} layer with marshalled code")
            elif key.endswith("_type") and value == "function":
                function = inner.get(key.removesuffix("_type"))
                if isinstance(function, str) and function not in self._known:
                    self._refuse(f"the function {function!r}")
        if name in ("TFOpLambda", "SlicingOpLambda") and not _is_op(inner.get("function")):
            self._refuse_unless_unsafe(f"a layer that calls tf.{inner.get('function')}")
        if name == "ClassMethod" and inner.get("cls_symbol") not in _OF_TENSORS:
            self._refuse_unless_unsafe(f"a layer that calls a method of tf.{inner.get('cls_symbol')}")
        attribute = inner.get("attr_name", inner.get("method_name", ""))
        if name in ("ClassMethod", "InstanceMethod", "InstanceProperty") and str(attribute).startswith("_"):
            self._refuse(f"a layer that takes the attribute {attribute!r}")
        if isinstance(inner.get("vocabulary"), str):
            self._refuse_unless_unsafe(
                f"a {name} layer that reads its vocabulary from the file {inner['vocabulary']!r}"
            )

    def _check_type_spec(self, described: dict[str, Any]) -> None:
        module, name = described.get("module"), described.get("spec_name")
        is_loaded = isinstance(module, str) and module.startswith("tensorflow.python.") and module in sys.modules
        if not (is_loaded and isinstance(name, str) and name in _TYPE_SPECS):
            self._refuse(f"the type spec {module}.{name}")

    def _refuse_unless_unsafe(self, what: str) -> None:
        if not self._unsafe:
            raise UsageError(
                f"{self._where}: the model has {what}, which runs or reads whatever its author wanted; nothing was "
                "run. If you trust where it comes from, say unsafe=True (--unsafe)"
            )

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"{self._where}: the model's config names {what}, which is no layer, optimizer or the like of "
            f"{self._framework}'s own and is not registered; nothing was run. If it is yours, import the module that "
            "registers it with register_keras_serializable (--import), or hand the model over (model=)"
        )


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


# What there is


def _kinds(framework: Framework) -> tuple[type, ...]:
    keras = keras_module(framework)
    names = (
        "layers.Layer", "optimizers.Optimizer", "losses.Loss", "metrics.Metric", "initializers.Initializer",
        "regularizers.Regularizer", "constraints.Constraint", "optimizers.schedules.LearningRateSchedule",
        "dtype_policies.DTypePolicy", "dtype_policies.DTypePolicyMap", "Operation", "Quantizer",
        "quantizers.QuantizationConfig", "random.SeedGenerator", "distillation.DistillationLoss",
        "src.layers.preprocessing.feature_space.Feature", "src.layers.preprocessing.feature_space.Cross",
        "src.optimizers.base_optimizer.BaseOptimizer", "optimizers.legacy.Optimizer", "mixed_precision.Policy",
        "mixed_precision.LossScaleOptimizer", "src.initializers.initializers_v1.Initializer",
        "src.mixed_precision.loss_scale_optimizer.BaseLossScaleOptimizer",
    )  # fmt: skip
    kinds = []
    for name in names:
        place, _, last = name.rpartition(".")
        found = _at(framework, place, last) or getattr(getattr(keras, place, None), last, None)
        if inspect.isclass(found):
            kinds.append(found)
    if framework == "tf_keras":  # its initializers of TensorFlow 1 are TensorFlow's own
        from tensorflow.python.ops import init_ops

        kinds.append(init_ops.Initializer)
    return tuple(kinds)


def _at(framework: Framework, place: str, name: str) -> Any:
    """What a module of a Keras's own, named from its root, has under a name. Imports nothing."""
    module = sys.modules.get(f"{framework}.{place}" if place else framework)
    return vars(module).get(name) if inspect.ismodule(module) else None


def _public(framework: Framework, name: str) -> Any:
    """What a Keras's own table of public names has under a full name."""
    if framework == "keras":
        from keras.src.api_export import get_symbol_from_name

        return get_symbol_from_name(name)
    from tensorflow.python.util.tf_export import get_symbol_from_name as get_any

    return get_any(f"compat.v1.{name}" if "__internal__.legacy" in name else name)


def _registered(framework: Framework) -> set[str]:
    saving = keras_module(framework).saving
    names = set(saving.get_custom_objects())
    if framework == "tf_keras":
        from tf_keras.src.saving import object_registration

        names |= set(object_registration._THREAD_LOCAL_CUSTOM_OBJECTS.__dict__)
    else:
        from keras.src.backend.common import global_state

        names |= set(global_state.get_global_attribute("custom_objects_scope_dict", {}))
    return names


def _defined_in(imports: tuple[str, ...], framework: Framework) -> dict[str, Any]:
    """The Keras classes, and the functions, that the imported modules and those below them define, by name."""
    kinds = _kinds(framework)
    return {
        name: obj
        for module in _loaded(imports)
        for name, obj in vars(module).items()
        if getattr(obj, "__module__", None) == module.__name__
        and (isinstance(obj, FunctionType) or (inspect.isclass(obj) and issubclass(obj, kinds)))
    }


def _loaded(imports: tuple[str, ...]) -> Iterator[Any]:
    for name, module in list(sys.modules.items()):
        if any(name == wanted or name.startswith(f"{wanted}.") for wanted in imports) and inspect.ismodule(module):
            yield module


def _computes(function: FunctionType, places: tuple[str, ...]) -> bool:
    """Whether a function is one of those that compute: an activation, a loss, an operation."""
    name = function.__name__
    return f"{function.__module__}.".startswith(places) and name not in _NOT_MATH and not name.startswith(_CHANGE_STATE)


def _is_op(symbol: Any) -> bool:
    """Whether a public name of TensorFlow is that of an operation which only computes."""
    if not isinstance(symbol, str):
        return False
    found = _public("tf_keras", symbol)
    if found is None or not callable(found) or inspect.isclass(found):
        return False
    module = str(getattr(found, "__module__", ""))
    if isinstance(found, FunctionType) and module.startswith("tf_keras."):
        return _computes(found, _FUNCTIONS["tf_keras"])
    place, _, name = symbol.removeprefix("compat.v1.").rpartition(".")
    if place == "io" and not name.startswith(("decode_", "parse_", "serialize_tensor")):
        return False
    if place == "debugging" and not name.startswith(("assert_", "check_numerics")):
        return False
    return place in _OP_PLACES and module.startswith(_OPS) and module.rpartition(".")[2] not in _NO_OPS
