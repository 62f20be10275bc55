"""Keras 3's private names. Keras is loaded by whoever calls what needs it."""

from __future__ import annotations

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from ckptflow.state.private.attribute import Attribute, PrivateView

# Variables, layers, optimizers: attributes

# A variable's tensor or TensorFlow variable: inside of an autocast scope the public `value` is a cast copy. None where
# it was not made yet.
VALUE = "_value"
value_of = attrgetter(VALUE)
# What Keras tracks of a layer, whatever attribute holds it: its public lists also have what is in other layers.
TRACKED = ("_trainable_variables", "_non_trainable_variables", "_seed_generators", "_layers", "_metrics")
LISTS_OF_LAYERS = ("_layers", "_metrics")
# Of a model, in the order in which they are named: compile() makes them.
OF_TRAINING = ("_loss_tracker", "_compile_metrics", "optimizer")
# The model in a Sequential that has the same layers.
FUNCTIONAL = "_functional"
# An optimizer's lists: what it trains, its own, and what keeps the two.
TRAINED, ALL = "_trainable_variables", "_variables"
OF_OPTIMIZERS = (ALL, TRAINED, "_tracker")
OF_METRICS = ("_variables", "_metrics")
trained_by = attrgetter(TRAINED)  # which variables an optimizer was built for
variables_of_optimizer = attrgetter(ALL)  # the public `variables` also has those of an optimizer that it wraps
# How TensorFlow's object graphs call these, and what else a model and an optimizer have there.
EDGES_OF_MODELS = frozenset({FUNCTIONAL, "_operations", "_layers", "_tracked", "keras_api"})
ITERATIONS = "_iterations"
COUNTERS = frozenset({ITERATIONS, "iterations", "iter"})
RATES = frozenset({ALL, "_learning_rate", "learning_rate", "decay"})

# The structure of a functional model's inputs: the public `inputs` is a flat list.
INPUTS = "_inputs_struct"
# The shapes that a model was built for, by argument.
SHAPES = "_build_shapes_dict"


def layer_of(symbol: Any) -> Any:
    """The layer or operation that gave a symbol, or None."""
    return getattr(getattr(symbol, "_keras_history", None), "operation", None)


def is_functional(model: Any) -> bool:
    """Whether a model was made of inputs and outputs: its class is not public."""
    from keras.src.models.functional import Functional

    return isinstance(model, Functional)


def trace(model: Any, inputs: Any) -> None:
    """Calls a model on symbols: the public `compute_output_spec` does not where the class says the shape itself."""
    from keras.src import backend

    backend.compute_output_spec(model.call, inputs)


# A layer that GPTQ or AWQ has calibrated: it has the one variable in the place of the other, which is deleted, and says
# so by an attribute that is in no config. Keras sets it in `load_own_variables`.
CALIBRATED = {"gptq": "is_gptq_calibrated", "awq": "is_awq_calibrated"}
CALIBRATED_KERNEL, KERNEL = "quantized_kernel", "_kernel"


# Configs


def serialization() -> Any:
    """The module that makes configs, and objects of them. Its scopes are not public: `ObjectSharingScope`, without
    which a layer that stands twice is two, and `SafeModeScope`, which the old formats look at."""
    from keras.src.saving import serialization_lib

    return serialization_lib


def symbol(name: str) -> Any:
    """What is public under a full name, as deserializing looks it up."""
    from keras.src.api_export import get_symbol_from_name

    return get_symbol_from_name(name)


def objects_in_scope() -> dict[str, Any]:
    """The classes of the `custom_object_scope`s that are open: `get_custom_objects` tells those without one."""
    from keras.src.backend.common import global_state

    return global_state.get_global_attribute("custom_objects_scope_dict") or {}


def forget_unmade() -> None:
    """Takes back the variables of this thread that were asked for and not made: the next model that is built, whatever
    that is, would make them first."""
    if "keras" in sys.modules:
        from keras.src.backend.common import global_state

        global_state.set_global_attribute("uninitialized_variables", [])


def settings() -> dict[str, Any]:
    """What decides beside a config what is built in this thread, as JSON: how often each name was given is not
    public."""
    import keras
    from keras.src.backend.common import global_state

    return {
        "floatx": keras.config.floatx(),
        "image_data_format": keras.config.image_data_format(),
        # Of a copy: a DTypePolicyMap takes the names off its policies.
        "dtype_policy": keras.dtype_policies.serialize(copy.deepcopy(keras.config.dtype_policy())),
        "names": dict(global_state.get_global_attribute("object_name_uids") or {}),
    }


def use_settings(found: dict[str, Any]) -> None:
    """Has what is built in this thread go by what another process's `settings` were."""
    import keras
    from keras.src.backend.common import global_state

    keras.config.set_floatx(found["floatx"])
    keras.config.set_image_data_format(found["image_data_format"])
    keras.config.set_dtype_policy(keras.dtype_policies.deserialize(found["dtype_policy"]))
    global_state.set_global_attribute("object_name_uids", defaultdict(int, found["names"]))


def decoded(config: Any) -> Any:
    """What JSON of HDF5's old format becomes in Keras's hands."""
    from keras.src.legacy.saving import json_utils

    return json_utils.decode(json.dumps(config))


def model_of_old_config(config: dict[str, Any], custom_objects: dict[str, Any]) -> Any:
    """A model from a config as HDF5's old format has it; `load_model` reads one only in its file."""
    from keras.src.legacy.saving import saving_options, saving_utils

    with saving_options.keras_option_scope(use_legacy_config=True):
        return saving_utils.model_from_config(config, custom_objects=custom_objects)


# Files: `load_weights` takes all of one, or nothing


def load_old_weights(group: Any, model: Any) -> None:
    """Gives a model what is in a group of an HDF5 file of the old format."""
    from keras.src.legacy.saving.legacy_h5_format import load_weights_from_hdf5_group

    load_weights_from_hdf5_group(group, model)


def load_without(skipped: Sequence[Any], file: str, model: Any, **options: Any) -> None:
    """As the public `load_weights(objects_to_skip=)`, which does not take `.keras` files."""
    from keras.src.saving import saving_lib

    saving_lib.load_weights_only(model, file, objects_to_skip=skipped, **options)


def load_assets(folder: str, model: Any) -> None:
    """Gives a model what a `.keras` file has for its layers beside weights."""
    from keras.src.saving import saving_lib

    failed: dict[int, Any] = {}
    saving_lib._load_state(
        model,
        weights_store=None,
        assets_store=saving_lib.DiskIOStore(folder, mode="r"),
        inner_path="",
        visited_saveables=set(),
        failed_saveables=set(),
        error_msgs=failed,
    )
    if failed:
        raise ValueError(f"{[error for _, error in failed.values()]}")


def save_state(model: Any, store: Any, visited: set[int]) -> None:
    """Has Keras write a model's weights into `store`, which stands for a file: in which place it puts which is not
    public. `visited` is told of each object before what is in it."""
    from keras.src.saving import saving_lib

    saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path="", visited_saveables=visited)


def store_class() -> type:
    """What `store` has to be of."""
    from keras.src.saving import saving_lib

    found: type = saving_lib.H5IOStore
    return found


# A fit that runs: a callback is neither handed its loop nor can it say at which batch an epoch begins


class FitModel(PrivateView):
    """The model that is fitted."""

    initial_epoch = Attribute("_initial_epoch")  # with which its fit begins, whatever it was called with

    def make_metrics(self, element_spec: Any) -> None:
        """Makes the variables of its metrics, which else the first batch makes."""
        self.of._symbolic_build(data_batch=element_spec)


# Of a SwapEMAWeights: whether it has put the averages in the place of the model's weights, and swaps back next.
SWAPPED = "_ema_weights_in_model"


class FitData(PrivateView):
    """What its batches come from: an EpochIterator."""

    batches = Attribute("_enumerate_iterator")  # a generator of the batches of an epoch
    make_iterator = Attribute("_get_iterator")
    iterator = Attribute("_current_iterator")  # which serves several epochs, where steps_per_epoch is given
    steps_seen = Attribute("_steps_seen")  # of an epoch
    num_batches = Attribute("_num_batches")  # the public one cannot be set
    distributed = Attribute("_distributed_dataset")  # by the strategy, if there is one

    @property
    def dataset(self) -> Any:
        """What its adapter was made with, or None."""
        return vars(self.of.data_adapter).get("_dataset")


def run_hooks_in_time(callbacks: Any) -> None:
    """Has no hook of a list run late, on another thread: it was made before a callback was in it that is not for
    that."""
    if getattr(callbacks, "_async_train", False):
        callbacks._async_train = callbacks._async_test = callbacks._async_predict = False


def fit_data_class() -> type | None:
    """The class of a fit's data, if Keras is loaded."""
    if "keras" not in sys.modules:
        return None
    from keras.src.trainers.epoch_iterator import EpochIterator

    found: type = EpochIterator
    return found
