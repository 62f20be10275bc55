"""Matching lists every difference and changes nothing; assigning takes memory over without sharing it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import msgspec
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow.errors import StateMismatchError, UsageError
from ckptflow.format import dtypes
from ckptflow.format.offer import HINT
from ckptflow.state.assign import match
from ckptflow.state.capture import capture
from ckptflow.state.leaves import _EMPTY_DTYPES, Landing, host_array
from ckptflow.state.renaming import likely_renames
from ckptflow.state.tree import walk
from tests.interop.models import without_graph
from tests.state import roundtrip
from tests.state.cases_keras3 import X, Y
from tests.state.test_tree import names

LARGE = (64, 1024)


def address(variable: Any) -> int:
    return int(host_array(tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)).ctypes.data)


@pytest.mark.parametrize("dtype", ["float32", "string"])
def test_what_is_larger_than_the_memory_is_said_by_name(dtype: str) -> None:
    offer = roundtrip.save({"v": tf.Variable(tf.zeros([1], dtype))}).offer()
    variable = tf.Variable(tf.zeros([], dtype), shape=tf.TensorShape(None))
    encoded_bytes = 2**48 if dtype == "string" else None
    record = msgspec.structs.replace(offer.tensors[0], shape=(2**23, 2**23), encoded_bytes=encoded_bytes)
    restoring = match(walk({"v": variable}), dataclasses.replace(offer, tensors=(record,)))
    with pytest.raises(UsageError, match=r"v takes 256\.0 TiB, and there is not enough memory"):
        restoring.open(restoring.wanted[0])


@pytest.mark.parametrize("dtype", sorted(_EMPTY_DTYPES))
def test_memory_that_became_a_variables_value_is_its_own(dtype: str) -> None:
    size_bytes = int(np.prod(LARGE)) * dtypes.item_size_bytes(dtype)
    assert size_bytes >= Landing.SMALL_BYTES
    pattern = np.random.default_rng(1).integers(0, 2, size_bytes, dtype=np.uint8)
    variables = [tf.Variable(tf.zeros(LARGE, dtype)) for _ in range(2)]
    saved = roundtrip.save({"0": variables[0], "1": variables[1]})
    restoring = match(walk({"0": variables[0], "1": variables[1]}), saved.offer())
    views = []
    for wanted in restoring.wanted:
        views.append(restoring.open(wanted))
        views[-1][:] = pattern + wanted.tensor if dtype != "bool" else pattern
    garbage = [
        tf.zeros(LARGE, dtype) + tf.ones([], dtype) if dtype != "bool" else tf.ones(LARGE, dtype) for _ in range(4)
    ]
    kept = [view.copy() for view in views]
    for wanted in restoring.wanted:
        restoring.finish(wanted)
    restoring.complete()
    del garbage
    assert address(variables[0]) != address(variables[1])
    for variable, view, values in zip(variables, views, kept, strict=True):
        held = host_array(variable.read_value()).reshape(-1).view(np.uint8)
        assert (held == values).all()
        assert held.ctypes.data == view.ctypes.data  # no second copy was made
        del held
        variable.assign(tf.zeros_like(variable))
        assert (view == values).all()  # an update does not write into memory that is still looked at
        assert not host_array(variable.read_value()).reshape(-1).view(np.uint8).any()


def test_a_restored_variable_is_still_held_without_a_copy() -> None:
    variable = tf.Variable(tf.random.normal(LARGE))
    saved = roundtrip.save({"v": variable})
    variable.assign_add(tf.ones(LARGE))
    roundtrip.restore({"v": variable}, saved)
    assert address(variable) == address(variable)
    snapshot = capture(walk({"v": variable}), is_chief=True)
    assert snapshot.data(0).ctypes.data == address(variable)
    variable.assign_add(tf.ones(LARGE))
    assert (snapshot.data(0) == saved.data[0]).all()


def _module(**shapes: Any) -> dict[str, Any]:
    module = tf.Module()
    for name, value in shapes.items():
        setattr(module, name, tf.Variable(value))
    return {"m": module}


def test_all_differences_are_in_one_message_and_nothing_is_changed() -> None:
    saved = roundtrip.save(_module(same=1.0, gone=1.0, shape=np.zeros((2, 3)), dtype=np.zeros(2, np.float32)))
    state = _module(same=5.0, new=1.0, shape=np.ones((3, 2)), dtype=np.ones(2, np.int32))
    with pytest.raises(StateMismatchError) as raised:
        match(walk(state), saved.offer())
    message = str(raised.value)
    for line in (
        "m/new: in the state, not in the checkpoint",
        "m/gone: in the checkpoint, not in the state",
        "m/shape: shape (2, 3) in the checkpoint, (3, 2) in the state",
        "m/dtype: dtype float32 in the checkpoint, int32 in the state",
    ):
        assert line in message
    assert message.count("\n") == 5
    assert state["m"].same.numpy() == 5.0


def test_a_renamed_prefix_is_one_short_message_with_the_rename_that_fits() -> None:
    variables = {f"layer_{i:04}": tf.Variable(float(i)) for i in range(3000)}
    saved = roundtrip.save({"model": variables, "same": tf.Variable(1.0)})
    state = {"net": variables, "same": tf.Variable(1.0)}
    with pytest.raises(StateMismatchError) as raised:
        match(walk(state), saved.offer())
    assert str(raised.value).splitlines()[1:] == [
        "  net/…: 3,000 names, such as net/layer_0000: in the state, not in the checkpoint",
        "  model/…: 3,000 names, such as model/layer_0000: in the checkpoint, not in the state",
        'One prefix explains all of it: pass rename={"model": "net"}.',
    ]
    match(walk(state), saved.offer(), rename={"model": "net"})


def test_many_differences_are_cut_and_a_rename_that_does_not_fit_is_not_advised() -> None:
    saved = roundtrip.save({f"old{i}": {"x": tf.Variable([0.0] * i)} for i in range(30)})
    with pytest.raises(StateMismatchError) as raised:
        match(walk({f"new{i}": {"x": tf.Variable(0.0)} for i in range(30)}), saved.offer())
    lines = str(raised.value).splitlines()
    assert lines[21:] == ["  and 40 more", HINT]


@pytest.mark.parametrize(
    ("missing", "unexpected", "first"),
    [
        ({"net/a/kernel"}, {"model/a/kernel", "other"}, {"model": "net"}),
        ({"model/b/kernel", "model/b/bias"}, {"model/a/kernel", "model/a/bias"}, {"model/a": "model/b"}),
        ({"model/backbone/a/kernel"}, {"model/a/kernel"}, {"model": "model/backbone"}),
        ({"x"}, {"y"}, {}),
    ],
)
def test_the_likeliest_rename(missing: set[str], unexpected: set[str], first: dict[str, str]) -> None:
    assert next(likely_renames(missing, unexpected), {}) == first


def test_partial_restores_what_fits_and_reports_the_rest() -> None:
    saved = roundtrip.save(_module(same=1.0, gone=1.0, shape=np.zeros((2, 3))))
    state = _module(same=5.0, new=7.0, shape=np.ones((3, 2)))
    restoring = roundtrip.restore(state, saved, partial=True)
    assert restoring.missing == ("m/new", "m/shape")
    assert restoring.unexpected == ("m/gone", "m/shape")
    assert state["m"].same.numpy() == 1.0
    assert state["m"].new.numpy() == 7.0


@pytest.mark.parametrize(
    "rename",
    [{"old": "m"}, {"old/": "m/"}, {"old/a": "m/a", "old": "m"}, lambda name: name.replace("old", "m")],
    ids=["prefix", "slash", "longest", "callable"],
)
def test_rename(rename: Any) -> None:
    saved = roundtrip.save({"old": _module(a=1.0, b=2.0)["m"]})
    state = _module(a=0.0, b=0.0)
    roundtrip.restore(state, saved, rename=rename)
    assert (state["m"].a.numpy(), state["m"].b.numpy()) == (1.0, 2.0)


def _with_head(head: str, is_entry: bool, model_name: str = "model") -> dict[str, Any]:
    """A model that is compiled, built, and trained for a step, its optimizer the model's own or an entry by itself."""
    layers = [keras.layers.Dense(3, name="body"), keras.layers.Dense(1, name=head)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    without_graph(model).train_on_batch(X, Y)
    return {model_name: model, **({"optimizer": model.optimizer} if is_entry else {})}


@pytest.mark.parametrize("is_entry_after", [False, True], ids=["to-own", "to-entry"])
@pytest.mark.parametrize("is_entry_before", [False, True], ids=["own", "entry"])
def test_rename_takes_a_variables_slots_along(is_entry_before: bool, is_entry_after: bool) -> None:
    before = _with_head("head", is_entry_before)
    saved = roundtrip.save(before)
    cases = (
        ("model", {"model/head": "model/classifier"}),
        ("net", {"model": "net", "model/head/": "net/classifier/"}),
    )
    for model_name, rename in cases:
        after = _with_head("classifier", is_entry_after, model_name)
        restoring = roundtrip.restore(after, saved, rename=rename)
        assert (restoring.missing, restoring.unexpected) == ((), ())
        old, new = before["model"], after[model_name]
        for left, right in ((old, new), (old.optimizer, new.optimizer)):
            assert len(left.variables) == len(right.variables)
            for one, other in zip(left.variables, right.variables, strict=True):
                np.testing.assert_array_equal(one.numpy(), other.numpy())
        assert np.abs(new.optimizer._momentums[-2].numpy()).max() > 0


def test_rename_of_a_slot_by_its_own_name_goes_first() -> None:
    before, after = _with_head("head", False), _with_head("classifier", False)
    slots = "model/optimizer/velocity"
    rename = {
        "model/head": "model/classifier",
        f"{slots}/head/bias": f"{slots}/gone",
        f"{slots}/body": f"{slots}/gone_too",
    }
    restoring = roundtrip.restore(after, roundtrip.save(before), partial=True, rename=rename)
    own = [f"{slots}/body/bias", f"{slots}/body/kernel"]
    assert restoring.missing == (*own, f"{slots}/classifier/bias")
    assert restoring.unexpected == (*own, f"{slots}/head/bias")


def test_rename_that_cannot_be_meant() -> None:
    saved = roundtrip.save(_module(a=1.0, b=2.0))
    tree = walk(_module(a=1.0, b=2.0))
    with pytest.raises(UsageError, match="nothing that is called"):
        match(tree, saved.offer(), rename={"typo": "m"})
    with pytest.raises(UsageError, match="both"):
        match(tree, saved.offer(), rename={"m/a": "m/b"})


def test_names_match_through_aliases_of_either_side() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.train_on_batch(X, Y)
    for first, second in (
        ({"model": model}, {"model": model, "optimizer": model.optimizer}),
        ({"model": model, "optimizer": model.optimizer}, {"model": model}),
    ):
        assert names(first) != names(second)
        restoring = roundtrip.restore(second, roundtrip.save(first))
        assert (restoring.missing, restoring.unexpected) == ((), ())


def test_metrics_are_outside_strictness() -> None:
    def make(metrics: list[str]) -> Any:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=metrics)
        return model

    trained = without_graph(make(["mae"]))
    trained.train_on_batch(X, Y)
    saved = roundtrip.save(trained)
    assert any(spec.metric for spec in saved.specs)
    for other in (make([]), make(["mae", "mse"])):
        restoring = roundtrip.restore(other, saved)
        assert (restoring.missing, restoring.unexpected) == ((), ())


def test_tables_lose_the_keys_that_are_not_in_the_checkpoint() -> None:
    experimental = tf.lookup.experimental
    state = {
        "mutable": experimental.MutableHashTable(tf.string, tf.int64, 0),
        "dense": experimental.DenseHashTable(tf.int64, tf.int64, 0, empty_key=-1, deleted_key=-2),
    }
    empty = roundtrip.save(state)
    state["mutable"].insert(["a"], [1])
    state["dense"].insert([1, 2], [10, 20])
    saved = roundtrip.save(state)
    assert dict(zip([spec.name for spec in saved.specs], saved.shapes, strict=True))["dense/keys"] == (2,)
    state["mutable"].insert(["b"], [1])
    state["dense"].insert([1, 3], [11, 30])
    roundtrip.restore(state, saved)
    assert (int(state["mutable"].size()), int(state["dense"].size())) == (1, 2)
    assert state["dense"].lookup(tf.constant([1, 2, 3], tf.int64)).numpy().tolist() == [10, 20, 0]
    roundtrip.restore(state, empty)
    assert (int(state["mutable"].size()), int(state["dense"].size())) == (0, 0)


class _TwoInputs(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = keras.layers.Dense(2), keras.layers.Dense(2)

    def call(self, left: Any, right: Any) -> Any:
        return self.left(left) + self.right(right)


def test_a_model_that_cannot_be_built_names_the_missing_call() -> None:
    trained = _TwoInputs()
    trained(X, Y)
    saved = roundtrip.save({"net": trained})
    fresh = _TwoInputs()
    with pytest.raises(UsageError, match=r"net.*0 of the 4 variables.*net\(inputs\)"):
        roundtrip.restore({"net": fresh}, saved)
    fresh(X, Y)
    roundtrip.restore({"net": fresh}, saved)
    roundtrip.assert_equal(saved, roundtrip.save({"net": fresh}))


def _two_models() -> dict[str, Any]:
    models = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]) for _ in range(2)]
    return {"a": models[0], "b": models[1], "optimizer": keras.optimizers.Adam()}


def test_an_optimizer_over_several_models_is_built_for_the_same_variables() -> None:
    trained, fresh = _two_models(), _two_models()
    trained["optimizer"].build([*trained["a"].trainable_variables, trained["b"].trainable_variables[0]])
    saved = roundtrip.save(trained)
    roundtrip.restore(fresh, saved)
    roundtrip.assert_equal(saved, roundtrip.save(fresh))


def test_an_optimizer_whose_model_is_not_known_names_the_missing_call() -> None:
    trained, fresh = _two_models(), _two_models()
    trained["optimizer"].build([*trained["a"].trainable_variables, *trained["b"].trainable_variables])
    fresh["c"] = fresh.pop("b")
    with pytest.raises(UsageError, match=r"2 entries of state could be its model; call optimizer\.build\("):
        roundtrip.restore(fresh, roundtrip.save(trained))


class Two(keras.Model):  # type: ignore[misc]
    """A model whose second optimizer trains a part of it, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.generate, self.judge = keras.layers.Dense(2), keras.layers.Dense(1)
        self.second = keras.optimizers.Adam()

    def call(self, x: Any) -> Any:
        return self.judge(self.generate(x))


def test_a_second_optimizer_for_a_part_of_a_model() -> None:
    trained, fresh = Two(), Two()
    trained.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    fresh.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    trained.train_on_batch(X, Y)
    trained.second.build(trained.judge.trainable_variables)
    saved = roundtrip.save(trained)
    roundtrip.restore(fresh, saved)
    roundtrip.assert_equal(saved, roundtrip.save(fresh))
    assert "variables" not in saved.models["model/optimizer"]  # those of its model
    assert saved.models["model/second"]["variables"] == ["model/judge/kernel", "model/judge/bias"]


def test_a_module_with_a_legacy_optimizer_beside_it() -> None:
    def make() -> dict[str, Any]:
        module = tf.Module()
        module.w = tf.Variable(tf.random.normal([4]))
        return {"net": module, "optimizer": tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)}

    trained, fresh = make(), make()
    trained["optimizer"].apply_gradients([(tf.ones([4]), trained["net"].w)])
    saved = roundtrip.save(trained)
    assert "optimizer/momentum/net/w" in saved.by_name()
    roundtrip.restore(fresh, saved)
    roundtrip.assert_equal(saved, roundtrip.save(fresh))
