"""What a class of the user's own writes into Keras's files besides variables is not saved, and the manager says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

from ckptflow import CheckpointManager


def made(kit: Any, save: Callable[..., None], **more: Any) -> Any:
    """A layer with two variables and a table that is none, and with what it saves by itself."""

    def build(self: Any, shape: Any) -> None:
        self.table = np.zeros(3, "f4")
        self.scale = self.add_weight(shape=(3,), initializer="zeros", name="scale")
        self.shift = self.add_weight(shape=(3,), initializer="ones", name="shift")
        self.built = True

    def call(self: Any, x: Any) -> Any:
        return x * self.scale + self.shift

    layer = type("Mine", (kit.layers.Layer,), {"build": build, "call": call, "save_own_variables": save} | more)
    return kit.Sequential([kit.Input((3,)), layer(name="mine")])


def all_by_super(self: Any, store: Any) -> None:
    super(type(self), self).save_own_variables(store)
    store["table"] = self.table


def as_arrays(self: Any, store: Any) -> None:
    store["a"], store["b"], store["table"] = self.scale.numpy(), self.shift.numpy(), self.table


def no_table(self: Any, store: Any) -> None:
    super(type(self), self).save_own_variables(store)


def variables_as_arrays(self: Any, store: Any) -> None:
    store["a"], store["b"] = np.asarray(self.scale), np.asarray(self.shift)


def fails(self: Any, store: Any) -> None:
    raise RuntimeError("from the test")


@pytest.mark.parametrize("kit", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("save", [all_by_super, as_arrays])
def test_what_no_variable_holds_is_told_by_name_and_once(
    tmp_path: Path, kit: Any, save: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it is equal to a variable that is stored as well: both are zeros."""
    with CheckpointManager(tmp_path, {"model": made(kit, save)}) as manager:
        assert "model/mine: what its save_own_variables() writes under table, in no variable, is not saved" in (
            caplog.text
        )
        caplog.clear()
        manager.save(1)
    assert "save_own_variables" not in caplog.text


@pytest.mark.parametrize("kit", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("save", [no_table, variables_as_arrays, fails])
def test_what_variables_hold_is_not(
    tmp_path: Path, kit: Any, save: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "ckptflow")
    with CheckpointManager(tmp_path, {"model": made(kit, save)}) as manager:
        manager.save(1)
    assert "not saved" not in caplog.text


def test_python_state_holds_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {
        "get_state": lambda self: self.table.tolist(),
        "set_state": lambda self, state: setattr(self, "table", state),
    }
    model = made(keras, all_by_super, **more)
    model.layers[0].table[:] = 7
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(1)
    again = made(keras, all_by_super, **more)
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        manager.restore_latest()
    assert list(again.layers[0].table) == [7, 7, 7]
    assert "not saved" not in caplog.text


def test_what_is_built_later_is_told_then(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layer = type(made(keras, all_by_super).layers[0])()
    with CheckpointManager(tmp_path, {"layer": layer}) as manager:
        assert "not saved" not in caplog.text
        layer(np.zeros((1, 3)))
        manager.save(1)
    assert "layer: what its save_own_variables() writes under table" in caplog.text


def test_assets_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = made(keras, no_table, save_assets=lambda self, folder: None)
    with CheckpointManager(tmp_path, {"model": model}):
        assert "model/mine: what its save_assets() writes" in caplog.text
