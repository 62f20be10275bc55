"""Which of TensorFlow's operations a layer of tf_keras may call."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.util import dispatch, tf_export

from ckptflow.errors import UsageError
from ckptflow.interop.untrusted.keras_trust import check_config
from ckptflow.interop.untrusted.tf_operations import is_allowed_attribute, is_allowed_operation

# By what they would do: read, write, load code, call what they are given, change the process.
_HOSTILE = """
random.fixed_unigram_candidate_sampler nn.fixed_unigram_candidate_sampler io.decode_proto compat.v1.io.decode_proto
io.read_file io.write_file io.matching_files io.gfile.remove io.gfile.copy io.gfile.rmtree io.gfile.makedirs
load_op_library load_library saved_model.load compat.v1.saved_model.load print compat.v1.Print debugging.Assert
debugging.enable_check_numerics debugging.experimental.enable_dump_debug_info debugging.set_log_device_placement
random.set_seed compat.v1.set_random_seed random.set_global_generator experimental.numpy.random.seed
config.run_functions_eagerly config.set_visible_devices config.experimental.enable_tensor_float_32_execution
compat.v1.disable_eager_execution compat.v1.enable_v2_behavior compat.v1.reset_default_graph
experimental.numpy.experimental_enable_numpy_behavior numpy_function py_function map_fn vectorized_map while_loop cond
scan foldl function ragged.map_flat_values sparse.map_values custom_gradient recompute_grad summary.create_file_writer
summary.trace_on profiler.experimental.start data.TFRecordDataset data.experimental.load lookup.TextFileInitializer
train.load_checkpoint train.list_variables compat.v1.train.NewCheckpointReader distribute.experimental_set_strategy
tpu.experimental.initialize_tpu_system quantization.experimental.QuantizationOptions raw_ops.ReadFile
raw_ops.WriteFile raw_ops.PyFunc raw_ops.FixedUnigramCandidateSampler raw_ops.DecodeProtoV2 raw_ops.PrintV2
raw_ops.Save raw_ops.RestoreV2 raw_ops.InitializeTableFromTextFileV2 raw_ops.TFRecordDataset
keras.backend.clear_session keras.backend.set_floatx keras.backend.set_epsilon keras.backend.set_image_data_format
keras.backend.batch_set_value keras.backend.print_tensor keras.backend.set_learning_phase keras.utils.get_file
keras.utils.set_random_seed keras.models.load_model keras.losses.deserialize keras.activations.get
keras.datasets.imdb.load_data keras.mixed_precision.set_global_policy keras.config.enable_unsafe_deserialization
os.system builtins.exec __operators__ math
"""
PATHS = ("file", "path", "dir", "source", "stream", "handle", "device", "container", "shared_name")
PURE_ALL_THE_SAME = {"source", "top_paths", "direction"}  # texts to split, how many to return, which way to sort


def layer(symbol: Any) -> dict[str, Any]:
    config = {"name": "op", "function": symbol}
    return {"module": "tf_keras.src.layers.core.tf_op_layer", "class_name": "TFOpLambda", "config": config,
            "registered_name": "TFOpLambda"}  # fmt: skip


def test_what_does_more_than_compute_is_refused() -> None:
    for symbol in (*_HOSTILE.split(), None, 3, ["math.add"], "", "."):
        assert not is_allowed_operation(symbol), symbol
        with pytest.raises(UsageError, match="--unsafe"):
            check_config(layer(symbol), "tf_keras", "x")
        check_config(layer(symbol), "tf_keras", "x", unsafe=True)


def test_every_public_name_is_on_the_list_or_refused() -> None:
    passed = [name for name in tf_export._NAME_TO_SYMBOL_MAPPING if is_allowed_operation(name)]
    assert "math.reduce_mean" in passed
    for name in passed:
        found = tf_export.get_symbol_from_name(name)
        parameters = set(inspect.signature(found).parameters) - PURE_ALL_THE_SAME
        assert not [each for each in parameters if any(word in each for word in PATHS)], name
        assert not {"fn", "func", "body", "cond", "op"} & parameters, name


def test_what_people_call_is_allowed() -> None:
    """Each name of tf.math, tf.nn and tf.linalg that tf_keras keeps as a layer, but the few that call functions."""
    for place in ("math", "nn", "linalg", "bitwise", "signal", "strings", "sets"):
        module = getattr(tf, place)
        for name, found in vars(module).items():
            if not callable(found) or not hasattr(found, dispatch.FALLBACK_DISPATCH_ATTR):
                continue
            symbol = tf_export.get_canonical_name_for_symbol(found, add_prefix_to_v1_names=True)
            unusual = ("candidate_sampler", "_backprop_", "window_fn", "_v2", "with_space")
            assert is_allowed_operation(symbol) or any(word in name for word in unusual), symbol
    inputs = tf_keras.Input((3,))
    outputs = tf_keras.backend.mean(tf.nn.relu(inputs)[:, 1:], axis=1) + tf_keras.losses.mse(inputs, inputs)
    model = tf_keras.Model(inputs, tf.concat([outputs[:, tf.newaxis], tf.abs(inputs)], 1))
    check_config(tf_keras.saving.serialize_keras_object(model), "tf_keras", "x")


def test_what_a_layer_takes_of_a_tensor() -> None:
    ragged = tf_keras.Input((None,), ragged=True)
    model = tf_keras.Model(ragged, [ragged.to_tensor(), ragged.values, ragged.row_lengths(), ragged * 2.0])
    check_config(tf_keras.saving.serialize_keras_object(model), "tf_keras", "x")
    for name in (
        "__class__",
        "__reduce__",
        "_numpy",
        "graph",
        "op",
        "eval",
        "consumers",
        "numpy",
        "",
        None,
        ["values"],
    ):
        assert not is_allowed_attribute(name), name
    assert is_allowed_attribute("from_row_splits", "RaggedTensor")
    assert not is_allowed_attribute("from_row_splits", "io.TFRecordWriter")
    assert not is_allowed_attribute("__init__", "RaggedTensor")
