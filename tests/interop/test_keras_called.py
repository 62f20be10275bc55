"""Weights that go by their places into layers that were called otherwise: named, where shapes do not tell."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

from ckptflow import import_model
from ckptflow.interop.keras.called import warn_of_names

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
SIGN = "its weights go by their places"


def make(framework: str, *names: str) -> Any:
    kit = FRAMEWORKS[framework]
    return kit.Sequential([kit.layers.Input((4,)), *(kit.layers.Dense(4, name=name) for name in names)])


def imported(source: Path, run: Path, framework: str, *names: str, partial: bool = False) -> list[Any]:
    model = make(framework, *names)
    import_model(source, run, model=model, partial=partial)
    return model.get_weights()  # type: ignore[no-any-return]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if SIGN in message]


@pytest.mark.parametrize(
    ("framework", "suffix", "partial"),
    [
        ("keras", ".keras", False),
        ("keras", ".h5", False),
        ("keras", ".weights.h5", False),
        ("keras", ".weights.h5", True),
        ("tf_keras", "-weights.h5", False),
        ("tf_keras", "-weights.h5", True),
    ],
)
def test_other_names_at_a_place_are_told(
    framework: str, suffix: str, partial: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(framework, "enc", "dec")
    path = tmp_path / f"m{suffix}"
    (model.save_weights if "weights" in suffix else model.save)(str(path))
    with caplog.at_level(logging.WARNING, "ckptflow"):
        for number, names in enumerate((("enc", "dec"), ("left", "right"))):
            caplog.clear()
            found = imported(path, tmp_path / f"run-{number}", framework, *names, partial=partial)
            assert all(map(np.array_equal, found, model.get_weights()))  # as Keras does
            told = warnings(caplog)
            if number == 0:
                assert told == []
            else:
                (said,) = told
                assert f"enc -> {names[0]}, dec -> {names[1]}" in said


ONE, TWO = ((4, 4), (4,)), ((4, 2), (2,))


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([("a", "a", ONE), ("b", "b", ONE)], None),
        ([("a", "x", ONE), ("b", "y", TWO)], None),  # shapes decide
        ([("a", "x", ONE), ("b", "b", ONE)], "a -> x"),
        ([("dense", "dense_4", ONE), ("dense_1", "dense_5", ONE)], None),  # the model made again
        ([("dense_1", "dense_2", ONE), ("dense_2", "dense_3", ONE)], None),
        ([("dense_9", "dense_10", ONE), ("dense_10", "dense_11", ONE)], None),
        ([("conv", "conv_7", ONE), ("conv_1", "conv_8", ONE), ("up", "up_2", ONE), ("up_1", "up_3", ONE)], None),
        ([("dense", "dense_1", ONE), ("dense_1", "dense", ONE)], "dense -> dense_1, dense_1 -> dense"),
    ],
)
def test_what_is_told(pairs: list[Any], told: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ckptflow"):
        warn_of_names("file", pairs)
    assert [message.partition("one another: ")[2].partition(". If")[0] for message in warnings(caplog)] == (
        [told] if told else []
    )
