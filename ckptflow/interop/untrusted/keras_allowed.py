"""What a Keras config may name without being trusted: a list of what is allowed, not of what is known to be bad.

Classes are those that each Keras makes public as layers, losses, metrics and so on, and a few more that its files name;
those which load files or run code that they carry are taken out. Functions are public activations, losses and metrics,
and Keras 3's operations. Operations of TensorFlow are in `tf_operations`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Literal

from ckptflow.errors import UsageError
from ckptflow.state.private import keras, tensorflow

Framework = Literal["keras", "tf_keras"]

_PUBLIC: dict[Framework, tuple[str, ...]] = {
    "keras": (
        "layers", "models", "optimizers", "optimizers.legacy", "optimizers.schedules", "losses", "metrics",
        "initializers", "regularizers", "constraints", "mixed_precision", "dtype_policies", "quantizers",
        "distillation", "random",
    ),
    "tf_keras": (
        "layers", "layers.experimental", "layers.experimental.preprocessing", "models", "optimizers",
        "optimizers.legacy", "optimizers.experimental", "optimizers.schedules", "losses", "metrics",
        "metrics.experimental", "initializers", "regularizers", "constraints", "mixed_precision", "experimental",
    ),
}  # fmt: skip
# What files name besides: what Keras puts into a model by itself, and what its applications and old files are made of.
_BESIDES: dict[Framework, tuple[tuple[str, str], ...]] = {
    "keras": (
        ("src.models.functional", "Functional"),
        ("src.losses.losses", "LossFunctionWrapper"),
        ("src.activations.activations", "Mish ReLU"),
        ("src.layers.preprocessing.feature_space", "FeatureSpace Feature Cross TFDConcat TFDIdentity"),
        ("src.applications.convnext", "LayerScale StochasticDepth"),
        ("src.applications.inception_resnet_v2", "CustomScaleLayer"),
        ("src.optimizers.loss_scale_optimizer", "LossScaleOptimizer"),
    ),
    "tf_keras": (
        ("src.engine.functional", "Functional"),
        ("src.engine.base_layer", "AddLoss AddMetric"),
        ("src.layers.core.tf_op_layer", "TFOpLambda SlicingOpLambda ClassMethod InstanceMethod InstanceProperty"),
        ("src.layers.normalization.batch_normalization_v1", "BatchNormalization"),
        ("src.layers.rnn.cell_wrappers", "DeviceWrapper DropoutWrapper ResidualWrapper"),
        ("src.layers.rnn.cudnn_gru", "CuDNNGRU"),
        ("src.layers.rnn.cudnn_lstm", "CuDNNLSTM"),
        ("src.layers.rnn.gru_v1", "GRU GRUCell"),
        ("src.layers.rnn.lstm_v1", "LSTM LSTMCell"),
        ("src.losses", "LossFunctionWrapper"),
        ("src.metrics.base_metric", "Reduce SumOverBatchSize SumOverBatchSizeMetricWrapper"),
        ("src.mixed_precision.loss_scale_optimizer", "LossScaleOptimizer LossScaleOptimizerV3"),
        ("src.optimizers.schedules.learning_rate_schedule", "LinearCosineDecay NoisyLinearCosineDecay"),
        ("src.applications.convnext", "LayerScale StochasticDepth"),
        ("src.applications.inception_resnet_v2", "CustomScaleLayer"),
        ("src.initializers.initializers_v1",
         "HeNormal HeUniform LecunNormal LecunUniform RandomNormal RandomUniform TruncatedNormal"),
    ),
}  # fmt: skip
# Initializers of TensorFlow's own, which tf_keras's applications and old files name.
_OF_TENSORFLOW = {
    "tensorflow.python.ops.init_ops": """Constant GlorotNormal GlorotUniform Identity Ones Orthogonal RandomNormal
        RandomUniform TruncatedNormal VarianceScaling Zeros""",
    "tensorflow.python.ops.init_ops_v2": """Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal
        LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros""",
}
# Public, but not to be made from an untrusted file: they load files, or run what the config holds.
_RUN_CODE = frozenset(
    {"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TensorFlowOpLayer", "DynamicLookup",
     "DynamicEmbedding", "DenseFeatures", "SequenceFeatures"}
)  # fmt: skip
_FUNCTIONS = ("activations", "losses", "metrics")
_OTHER_FUNCTIONS: dict[Framework, tuple[tuple[str, str], ...]] = {
    "keras": (
        ("src.metrics.accuracy_metrics", "accuracy"),
        ("src.metrics.regression_metrics", "cosine_similarity"),
        ("src.metrics.metrics_utils", "confusion_matrix"),
    ),
    "tf_keras": (
        ("src.metrics.accuracy_metrics", "accuracy"),
        ("src.metrics.regression_metrics", "cosine_similarity"),
    ),
}
_MAKE_OBJECTS = frozenset({"deserialize", "serialize", "get"})
_OPERATIONS = "keras.src.ops."
_CALL_FUNCTIONS = frozenset(  # those that are given, by an operation of Keras 3
    {"AssociativeScan", "Cond", "CustomGradient", "ForiLoop", "JVP", "Map", "Scan", "Switch", "Vectorize",
     "VectorizedMap", "WhileLoop", "associative_scan", "cond", "custom_gradient", "fori_loop", "jvp", "map", "scan",
     "switch", "vectorize", "vectorized_map", "while_loop"}
)  # fmt: skip


def is_allowed_class(framework: Framework, found: type, *, unsafe: bool = False) -> bool:
    """Whether a config may have an object of this class made. `unsafe` allows any of Keras's own kinds."""
    if unsafe and issubclass(found, kinds(framework)):
        return True
    if framework == "keras" and found.__module__.startswith(_OPERATIONS):
        return issubclass(found, kinds(framework)) and found.__name__ not in _CALL_FUNCTIONS
    return found in _classes(framework)


def runs_code(found: type) -> bool:
    """Whether a public class loads files, or runs what its config holds."""
    return found.__name__ in _RUN_CODE


def is_allowed_function(framework: Framework, found: FunctionType) -> bool:
    """Whether a config may name this function of Keras's own."""
    return found in _functions(framework)


@functools.cache
def _classes(framework: Framework) -> frozenset[type]:
    named = {each for place in _PUBLIC[framework] for each in _held(framework, place)}
    named |= {at(framework, place, name) for place, names in _BESIDES[framework] for name in names.split()}
    if framework == "tf_keras":
        named |= {of_tensorflow(place, name) for place, names in _OF_TENSORFLOW.items() for name in names.split()}
    own = kinds(framework)
    return frozenset(each for each in named if inspect.isclass(each) and issubclass(each, own) and not runs_code(each))


@functools.cache
def _functions(framework: Framework) -> frozenset[FunctionType]:
    named = {each for place in _FUNCTIONS for each in _held(framework, place)}
    named |= {at(framework, place, name) for place, names in _OTHER_FUNCTIONS[framework] for name in names.split()}
    if framework == "keras":
        places = ("ops", "ops.image", "ops.linalg", "ops.nn", "ops.numpy")
        named |= {each for place in places for each in _held(framework, place)}
    return frozenset(
        each
        for each in named
        if isinstance(each, FunctionType) and each.__name__ not in _MAKE_OBJECTS | _CALL_FUNCTIONS
    )


def _held(framework: Framework, place: str) -> Iterator[Any]:
    """The classes and functions that a module of a Keras's own has."""
    module = sys.modules.get(f"{framework}.{place}")
    held = vars(module).values() if inspect.ismodule(module) else ()
    return (each for each in held if isinstance(each, (type, FunctionType)))


def keras_module(framework: Framework) -> Any:
    """The module `keras` or `tf_keras`, imported. Raises `UsageError` where tf_keras is not installed."""
    try:
        return importlib.import_module(framework)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this is a {framework} model and {framework} is not installed: pip install {framework}"
        ) from error


@functools.cache
def kinds(framework: Framework) -> tuple[type, ...]:
    """The base classes of all that a config describes."""
    module = keras_module(framework)
    names = (
        "layers.Layer", "optimizers.Optimizer", "losses.Loss", "metrics.Metric", "initializers.Initializer",
        "regularizers.Regularizer", "constraints.Constraint", "optimizers.schedules.LearningRateSchedule",
        "dtype_policies.DTypePolicy", "dtype_policies.DTypePolicyMap", "Operation", "Quantizer",
        "quantizers.QuantizationConfig", "random.SeedGenerator", "distillation.DistillationLoss",
        "src.layers.preprocessing.feature_space.Feature", "src.layers.preprocessing.feature_space.Cross",
        "src.optimizers.base_optimizer.BaseOptimizer", "optimizers.legacy.Optimizer", "optimizers.OptimizerMap",
        "mixed_precision.Policy",
        "mixed_precision.LossScaleOptimizer", "src.initializers.initializers_v1.Initializer",
        "src.mixed_precision.loss_scale_optimizer.BaseLossScaleOptimizer",
    )  # fmt: skip
    found = []
    for name in names:
        place, _, last = name.rpartition(".")
        each = at(framework, place, last) or getattr(getattr(module, place, None), last, None)
        if inspect.isclass(each):
            found.append(each)
    if framework == "tf_keras":
        found += [of_tensorflow(place, "Initializer") for place in _OF_TENSORFLOW]
    return tuple(found)


def at(framework: Framework, place: str, name: str) -> Any:
    """What a module of a Keras's own, named from its root, has under a name. Imports nothing."""
    module = sys.modules.get(f"{framework}.{place}" if place else framework)
    return vars(module).get(name) if inspect.ismodule(module) else None


def of_tensorflow(module: str, name: str) -> Any:
    """An initializer of TensorFlow's own; None for anything else."""
    return getattr(sys.modules.get(module), name, None) if module in _OF_TENSORFLOW else None


def public(framework: Framework, name: str) -> Any:
    """What a Keras's own table of public names has under a full name."""
    if framework == "keras":
        return keras.symbol(name)
    return tensorflow.symbol(f"compat.v1.{name}" if "__internal__.legacy" in name else name)
