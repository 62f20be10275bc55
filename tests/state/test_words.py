"""Vocabularies that Keras can give and not take, weights of another dtype, and names that a Keras made up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, StateMismatchError, UnsupportedStateError
from ckptflow.state.children import automatic_base
from ckptflow.state.tree import walk
from tests.state.test_configs import KERASES


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize(
    ("words", "encoding", "what"),
    [([b"\xff\xfe", b"a"], "utf-8", "is not UTF-8"), (["\u00e4", "a"], "latin-1", "is not ASCII")],
)
def test_words_that_cannot_be_set_again_are_told_and_fit_a_layer_that_has_them(
    tmp_path: Path, framework: str, words: list[Any], encoding: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    def made() -> Any:
        return KERASES[framework].layers.StringLookup(encoding=encoding, name="words")

    layer = made()
    layer.adapt(tf.constant(words))
    with CheckpointManager(tmp_path, {"layer": layer}) as manager:
        manager.save(1)
    assert f"StringLookup words: its vocabulary {what}" in caplog.text
    with CheckpointManager(tmp_path, {"layer": layer}) as manager:
        assert manager.restore_latest() is not None
    with (
        CheckpointManager(tmp_path, {"layer": made()}, read_only=True) as manager,
        pytest.raises(StateMismatchError, match=f"its vocabulary {what}"),
    ):
        manager.restore_latest()


@pytest.mark.parametrize("framework", KERASES)
def test_weights_of_words_keep_their_dtype(tmp_path: Path, framework: str) -> None:
    def made() -> Any:
        return KERASES[framework].layers.StringLookup(output_mode="tf_idf", dtype="float64")

    layer = made()
    layer.adapt(tf.constant([["a", "b"], ["a", "c"], ["a", "d"]]))
    with CheckpointManager(tmp_path, {"layer": layer}) as manager:
        manager.save(1)
    other = made()
    with CheckpointManager(tmp_path, {"layer": other}) as manager:
        manager.restore_latest()
    assert other.idf_weights.dtype == layer.idf_weights.dtype
    np.testing.assert_array_equal(other.idf_weights.numpy(), layer.idf_weights.numpy())


def test_a_name_that_keras_made_of_a_private_class_is_one_by_class() -> None:
    assert automatic_base("private__residual_3", "_Residual") == "private__residual"
    assert automatic_base("_residual", "_Residual") == "_residual"
    assert automatic_base("private_residual", "Residual") is None


def test_an_iterator_of_arrays_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedStateError, match=r"as_numpy_iterator\(\) cannot be saved; hold iter\(dataset\)"):
        walk({"batches": tf.data.Dataset.range(3).as_numpy_iterator()})


def test_a_file_that_is_closed_holds_nothing(tmp_path: Path) -> None:
    import h5py

    class Model(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = tf.Variable(1.0)
            self.source = h5py.File(tmp_path / "a.h5", "w")

    model = Model()
    model.source.close()
    assert [leaf.name for leaf in walk({"m": model}).leaves] == ["m/weight"]


def test_a_mapping_that_cannot_be_looked_at_is_not_an_empty_one() -> None:
    """Its variables would be left out: at the start, and when a save looks again."""

    class Registry(Mapping[str, Any]):
        is_open = True

        def __init__(self) -> None:
            self.items_of = {"w": tf.Variable(1.0)}

        def __getitem__(self, key: str) -> Any:
            return self.items_of[key]

        def __len__(self) -> int:
            return len(self.items_of)

        def __iter__(self) -> Iterator[str]:
            if not self.is_open:
                raise RuntimeError("dictionary changed size during iteration")
            return iter(self.items_of)

    model, registry = tf.Module(), Registry()
    model.registry = registry
    tree = walk({"m": model})
    assert [leaf.name for leaf in tree.leaves] == ["m/registry/w"]
    Registry.is_open = False
    for look in (tree.is_stale, lambda: walk({"m": model}), lambda: walk({"r": registry})):
        with pytest.raises(UnsupportedStateError, match=r"Registry in the state cannot be looked at .*changed size"):
            look()


@pytest.mark.parametrize("framework", KERASES)
def test_a_feature_space_encodes_the_words_that_it_got(tmp_path: Path, framework: str) -> None:
    """Its encoders are made with the first call, for the words that are there then."""
    space = KERASES[framework].utils.FeatureSpace

    def adapted(words: list[str]) -> Any:
        features = space({"word": space.string_categorical()}, output_mode="concat")
        features.adapt(tf.data.Dataset.from_tensor_slices({"word": words}).batch(2))
        features({"word": tf.constant(words[:1])})
        return features

    saved, other = adapted(["a", "b", "c", "d"]), adapted(["x", "y"])
    with CheckpointManager(tmp_path, {"features": saved}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"features": other}) as manager:
        manager.restore_latest()
    asked = {"word": tf.constant([["a"], ["d"], ["x"]])}
    np.testing.assert_array_equal(np.asarray(other(asked)), np.asarray(saved(asked)))
