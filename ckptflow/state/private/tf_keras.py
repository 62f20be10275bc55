"""tf_keras's private names. tf_keras is loaded by whoever calls what needs it."""

from __future__ import annotations

import contextlib
import json
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ckptflow.state.private.attribute import Attribute, PrivateView

# Layers and models: attributes

NAME = "_name"  # a layer's: the public one is a property, which a user may have made another one
# A recurrent layer's states from batch to batch, in variables that nothing tracks, and whether it keeps them.
STATEFUL, STATES = "_stateful", "_states"
# Those of a layer without those of the layers in it.
WEIGHTS = ("_trainable_weights", "_non_trainable_weights")
# Where it keeps what it tracks, and what an optimizer first told TensorFlow of its children.
TRACKED = "_self_tracked_trackables"
COALESCED = "_coalesced_children"
# Of a functional model, and long; nothing in them is a setting.
OF_GRAPHS = frozenset({"_layer_call_argspecs", "_nodes_by_depth", "_tensor_usage_count"})
# The shape that a model was built with; a file without it cannot be loaded.
BUILT_WITH = "_build_input_shape"


def is_functional(model: Any) -> bool:
    """Whether a model was made of inputs and outputs."""
    return bool(getattr(model, "_is_graph_network", False))


def calls_in(layer: Any) -> list[Any]:
    """The calls of a layer that functional models consist of, with their arguments."""
    return list(layer._inbound_nodes)


def without_autocast(variable: Any) -> Any:
    """The variable under mixed precision's wrapper, whose public attributes are all those of a cast one."""
    from tf_keras.src.mixed_precision.autocast_variable import AutoCastVariable

    while isinstance(variable, AutoCastVariable):
        variable = variable._variable
    return variable


# What Keras 2.13 called `layers` in its files.
LAYERS_OF_2_13 = "_layer_checkpoint_dependencies"


# Optimizers: attributes. A legacy one keeps slots and hyperparameters outside of TensorFlow's graph

SLOTS, HYPER, HYPERS_MADE = "_slots", "_hyper", "_hypers_created"
INDEX = "_index_dict"  # of a new one: the place in each list of slots, by variable
BUILT = "_built"
VARIABLES = ("_variables", "_weights")  # its own, of a new or of a legacy one
OF_OPTIMIZERS = (*VARIABLES, "_trainable_variables", HYPER, SLOTS, INDEX, COALESCED)
U_PRODUCTS = "_u_product_counter"  # what Nadam counts in plain Python


def inner_optimizer(optimizer: Any) -> Any:
    """The one under an optimizer that scales losses, else itself: the public attribute has another name by class."""
    return vars(optimizer).get("_optimizer", optimizer)


class Nadam(PrivateView):
    """Of the optimizer of that name: no variable has it."""

    u_products = Attribute(U_PRODUCTS)
    momentums = Attribute("_momentums")


def make_slots(optimizer: Any, variables: list[Any]) -> None:
    """Builds a legacy optimizer, which else happens in its first step."""
    optimizer._create_all_weights(variables)


# Configs


def serialization() -> Any:
    """The module that makes configs, and objects of them. Its scopes are not public: `ObjectSharingScope`, without
    which a layer that stands twice is two, and `SafeModeScope`, which the old formats look at."""
    from tf_keras.src.saving import serialization_lib

    return serialization_lib


def objects_in_scope() -> dict[str, Any]:
    """The classes of the `custom_object_scope`s that are open: `get_custom_objects` tells those without one."""
    from tf_keras.src.saving import object_registration

    found: dict[str, Any] = object_registration._THREAD_LOCAL_CUSTOM_OBJECTS.__dict__
    return found


def settings() -> dict[str, Any]:
    """What decides beside a config what is built in this thread, as JSON: how often each name was given, and which
    layers have been called what, is not public."""
    import tf_keras
    from tf_keras.src import backend

    return {
        "floatx": tf_keras.backend.floatx(),
        "image_data_format": tf_keras.backend.image_data_format(),
        "dtype_policy": tf_keras.mixed_precision.global_policy().name,
        "names": [list(backend.PER_GRAPH_OBJECT_NAME_UIDS.get(graph, {}).items()) for graph in _naming_graphs()],
        "observed": sorted(map(str, backend.OBSERVED_NAMES)),
    }


def use_settings(found: dict[str, Any]) -> None:
    """Has what is built in this thread go by what another process's `settings` were."""
    import tf_keras
    from tf_keras.src import backend

    tf_keras.backend.set_floatx(found["floatx"])
    tf_keras.backend.set_image_data_format(found["image_data_format"])
    tf_keras.mixed_precision.set_global_policy(found["dtype_policy"])
    for graph, counts in zip(_naming_graphs(), found["names"], strict=True):
        names = {tuple(name) if isinstance(name, list) else name: count for name, count in counts}
        backend.PER_GRAPH_OBJECT_NAME_UIDS[graph] = defaultdict(int, names)
    backend.OBSERVED_NAMES.clear()
    backend.OBSERVED_NAMES.update(found["observed"])


def _naming_graphs() -> tuple[Any, ...]:
    """Those by which it counts names: of layers, and of what functional models consist of."""
    import tensorflow as tf
    from tf_keras.src import backend

    return tf.compat.v1.get_default_graph(), backend.get_graph()


def layer_of_old(name: str) -> Any:
    """What older formats find under the name of a layer."""
    from tf_keras.src.layers import serialization

    serialization.populate_deserializable_objects()
    return serialization.LOCAL.ALL_OBJECTS.get(name)


def decoded(config: Any) -> Any:
    """What JSON of HDF5's old format, or of a SavedModel, becomes in Keras's hands."""
    from tf_keras.src.saving.legacy.saved_model import json_utils

    return json_utils.decode(json.dumps(config))


def model_of_old_config(config: dict[str, Any], custom_objects: dict[str, Any]) -> Any:
    """A model from a config as HDF5 and SavedModels have it; `load_model` reads one only in its file."""
    from tf_keras.src.saving.legacy import model_config, serialization
    from tf_keras.src.saving.legacy.saved_model.utils import keras_option_scope

    with (
        serialization.SharedObjectLoadingScope(),
        keras_option_scope(save_traces=False, in_tf_saved_model_scope=True),
    ):
        return model_config.model_from_config(config, custom_objects=custom_objects)


# Files: `load_weights` takes all of one, or nothing


def load_old_weights(group: Any, model: Any) -> None:
    """Gives a model what is in a group of an HDF5 file of the old format."""
    from tf_keras.src.saving.legacy.hdf5_format import load_weights_from_hdf5_group

    load_weights_from_hdf5_group(group, model)


def weights_as_loaded(layer: Any, weights: list[Any], version: str, backend: str | None) -> list[Any]:
    """A layer's weights from HDF5, turned from those of one implementation into those of another."""
    from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading

    found: list[Any] = preprocess_weights_for_loading(layer, weights, version, backend)
    return found


def load_without(skipped: Sequence[Any], file: str, model: Any, **options: Any) -> None:
    """As `model.load_weights` does, which has no way to leave objects out."""
    from tf_keras.src.saving import saving_lib

    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(file)) if file.endswith(".keras") else None
        store = saving_lib.H5IOStore("model.weights.h5" if archive else file, archive=archive, mode="r")
        stack.enter_context(contextlib.closing(store))
        saving_lib._load_state(
            model,
            weights_store=store,
            assets_store=None,
            inner_path="",
            visited_trackables=set(map(id, skipped)),
            **options,
        )


def load_assets(folder: str, model: Any) -> None:
    """Gives a model what a `.keras` file has for its layers beside weights."""
    from tf_keras.src.saving import saving_lib

    saving_lib._load_state(
        model,
        weights_store=None,
        assets_store=saving_lib.DiskIOStore(folder, mode="r"),
        inner_path="",
        visited_trackables=set(),
    )


def save_state(model: Any, store: Any, visited: set[int]) -> None:
    """Has Keras write a model's weights into `store`, which stands for a file: in which place it puts which is not
    public. `visited` is told of each object before what is in it."""
    from tf_keras.src.saving import saving_lib

    saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path="", visited_trackables=visited)


def store_class() -> type:
    """What `store` has to be of."""
    return object


def make_metrics(model: Any) -> None:
    """Gives a compiled model the variables of its metrics, which it makes with its first batch."""
    from tf_keras.src.saving.legacy.saving_utils import try_build_compiled_arguments

    try_build_compiled_arguments(model)


@contextlib.contextmanager
def listing_only(is_listed: Callable[[Any], bool]) -> Iterator[None]:
    """While `model.save` writes a SavedModel, the lists of variables in it have only what `is_listed`.

    Over a global of tf_keras's: its lists are properties of each layer that are made while it is saved, and nothing
    that a model or layer could override is asked of what is in them.
    """
    from tf_keras.src.saving.legacy.saved_model import save_impl

    of_lists = save_impl._filter_shards
    save_impl._filter_shards = lambda found: [each for each in of_lists(found) if is_listed(each)]
    try:
        yield
    finally:
        save_impl._filter_shards = of_lists


# A fit that runs: a callback is neither handed its loop nor can it say at which batch an epoch begins


class FitModel(PrivateView):
    """The model that is fitted."""

    batch = Attribute("_train_counter")  # the number that hooks are told


class FitData(PrivateView):
    """What its batches come from: a DataHandler."""

    adapter = Attribute("_adapter")
    distributed = Attribute("_dataset")  # by the strategy, if there is one
    initial_epoch = Attribute("_initial_epoch")
    initial_step = Attribute("_initial_step")
    inferred_steps = Attribute("_inferred_steps")  # the public one cannot be set
    step_increment = Attribute("_step_increment")  # nor this one
    has_run_out = Attribute("_insufficient_data")  # before the end of the fit, which then ends

    @property
    def dataset(self) -> Any:
        """What its adapter was made with, or None."""
        return vars(self.adapter).get("_dataset")

    @property
    def is_of_arrays(self) -> bool:
        """Whether Keras has made one dataset of arrays, of as many epochs as the fit has."""
        from tf_keras.src.engine import data_adapter

        return isinstance(self.adapter, (data_adapter.TensorLikeDataAdapter, data_adapter.ListsOfScalarsDataAdapter))


def fit_data_class() -> type | None:
    """The class of a fit's data, if tf_keras is loaded."""
    if "tf_keras" not in sys.modules:
        return None
    from tf_keras.src.engine.data_adapter import DataHandler

    found: type = DataHandler
    return found
