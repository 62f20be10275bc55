"""Vocabularies of a file go into a model of the user's, or the import is refused before anything is changed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import CorruptCheckpointError, StateMismatchError
from tests.interop.models import KERASES

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def tagger(framework: str, words: list[str] | None, *, kind: str = "StringLookup", **more: Any) -> Any:
    """Without `words`, adapted to others."""
    kit = FRAMEWORKS[framework]
    lookup = getattr(kit.layers, kind)(vocabulary=words, name="words", **more)
    if words is None:
        lookup.adapt(np.asarray(["x", "y", "y", "z", "z", "z"]))
    model = kit.Sequential([kit.layers.Input((1,), dtype="string"), lookup])
    model.add(kit.layers.Dense(2) if more.get("output_mode") == "tf_idf" else kit.layers.Embedding(9, 2))
    return model


def words_of(model: Any) -> list[str]:
    return [str(word) for word in model.get_layer("words").get_vocabulary()]


@pytest.mark.parametrize(
    ("kind", "suffix", "framework"),
    [
        ("StringLookup", "keras", "keras"),
        ("TextVectorization", "h5", "keras"),
        ("StringLookup", "h5", "tf_keras"),
        ("TextVectorization", "keras", "tf_keras"),
    ],
)
def test_a_vocabulary_in_the_config_comes(kind: str, suffix: str, framework: str, tmp_path: Path) -> None:
    model = tagger(framework, ["b", "a", "c"], kind=kind)
    model.save(tmp_path / f"m.{suffix}")
    for number, words in enumerate((["a", "b", "c"], ["q"], None)):
        if words is None and (framework, suffix) == ("tf_keras", "h5"):
            continue  # one that was adapted has its counts among the weights, as no legacy file of tf_keras does
        mine = tagger(framework, words, kind=kind)
        ckptflow.import_model(tmp_path / f"m.{suffix}", tmp_path / f"run-{number}", model=mine)
        assert words_of(mine) == words_of(model)
        assert np.array_equal(mine.layers[-1].get_weights()[0], model.layers[-1].get_weights()[0])


@pytest.mark.parametrize("framework", KERASES)
def test_weights_of_a_vocabulary_come(framework: str, tmp_path: Path) -> None:
    model = tagger(framework, ["b", "a"], output_mode="tf_idf", idf_weights=[0.25, 0.5])
    model.save(tmp_path / "m.keras")
    mine = tagger(framework, ["a", "b"], output_mode="tf_idf", idf_weights=[1.0, 2.0])
    ckptflow.import_model(tmp_path / "m.keras", tmp_path / "run", model=mine)
    assert words_of(mine) == words_of(model)
    data = np.asarray([["a"]])
    given = [FRAMEWORKS["keras"].ops.convert_to_tensor(data) if framework == "keras" else data]
    assert np.allclose(mine(given[0]), model(given[0]))


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_vocabulary_that_cannot_be_taken_is_refused(suffix: str, framework: str, tmp_path: Path) -> None:
    tagger(framework, ["a", "b"]).save(tmp_path / f"m.{suffix}")
    mine = tagger(framework, ["a", "b"], num_oov_indices=2)
    before = mine.layers[-1].get_weights()
    with pytest.raises(StateMismatchError, match="string_lookup: its vocabulary: num_oov_indices is 1 in"):
        ckptflow.import_model(tmp_path / f"m.{suffix}", tmp_path / "run", model=mine)
    assert np.array_equal(before, mine.layers[-1].get_weights())


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_vocabulary_for_no_layer_keeps_no_weights_out(
    suffix: str, framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the input looks the words up now."""
    model = tagger(framework, ["a", "b"])
    model.save(tmp_path / f"m{suffix}")
    kit = FRAMEWORKS[framework]
    shape = model.layers[-1].get_weights()[0].shape
    mine = kit.Sequential([kit.layers.Input((1,), dtype="int64"), kit.layers.Embedding(*shape)])
    ckptflow.import_model(tmp_path / f"m{suffix}", tmp_path / "run", model=mine)
    np.testing.assert_array_equal(mine.get_weights()[0], model.layers[-1].get_weights()[0])
    assert "string_lookup does not come: model= has no layer for it" in caplog.text


def with_vocabulary(path: Path, text: bytes) -> Path:
    other = path.with_name("other.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.infolist():
            new.writestr(each.filename, text if each.filename.endswith("vocabulary.txt") else old.read(each))
    return other


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("text", [b"\n", b"", b"a\na\n", b"a\n\nb"])
def test_nothing_is_changed_by_words_that_cannot_be(text: bytes, framework: str, tmp_path: Path) -> None:
    tagger(framework, None).save(tmp_path / "m.keras")
    mine = tagger(framework, None)
    before = [words_of(mine), *mine.layers[-1].get_weights()]
    with pytest.raises(StateMismatchError, match="string_lookup: its vocabulary"):
        ckptflow.import_model(with_vocabulary(tmp_path / "m.keras", text), tmp_path / "run", model=mine)
    assert before[0] == words_of(mine)
    assert np.array_equal(before[1], mine.layers[-1].get_weights()[0])


@pytest.mark.parametrize("is_given", [True, False])
def test_words_take_memory(is_given: bool, tmp_path: Path) -> None:
    """Each is an object; a small file packs millions of them."""
    tagger("keras", None).save(tmp_path / "m.keras")
    path = with_vocabulary(tmp_path / "m.keras", b"a\n" * 2**21)
    assert path.stat().st_size < 2**17
    with pytest.raises(CorruptCheckpointError, match=r"assets/ and weights take more than .*CKPTFLOW_FOREIGN_MEMORY"):
        ckptflow.import_model(path, tmp_path / "run", model=tagger("keras", None) if is_given else None)
