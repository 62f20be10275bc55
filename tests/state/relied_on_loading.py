"""Checks of the private names by which a part of a file is not loaded, or a model is made in another process first."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ckptflow.state.private import kerases
from tests.state.relied_on import KERASES, model_of, relied_on


@relied_on("kerases.loading_without", "an optimizer that is to stay as it was made, though a file has a state for it")
def _loading_without(folder: Path) -> None:
    for name, kit in KERASES.items():
        made, path = model_of(name), str(folder / f"{name}.keras")
        places: list[str] = []
        made.save(path)

        def is_left(found: Any, place: str, kit: Any = kit, places: list[str] = places) -> bool:
            places.append(place)
            return isinstance(found, kit.optimizers.Optimizer)

        with kerases.loading_without(name, is_left):
            loaded = kit.models.load_model(path)
        assert "optimizer" in {place.rpartition("/")[2] for place in places}
        assert all(map(np.array_equal, loaded.get_weights(), made.get_weights()))
        assert int(made.optimizer.iterations.numpy()) == int(kit.models.load_model(path).optimizer.iterations.numpy())
        assert int(loaded.optimizer.iterations.numpy()) == 0 < int(made.optimizer.iterations.numpy())


@relied_on("keras.forget_unmade", "that variables which were refused for their size are not made with the next model")
def _forget_unmade(folder: Path) -> None:
    kit, private = KERASES["keras"], kerases.of("keras")
    for forget, asked_again in ((lambda: None, True), (private.forget_unmade, False)):
        asked: list[int] = []

        def refuse(*args: Any, asked: list[int] = asked, **settings: Any) -> Any:
            asked.append(1)
            raise MemoryError

        with contextlib.suppress(MemoryError):
            private.trace(kit.Sequential([kit.layers.Dense(1, kernel_initializer=refuse)]), kit.KerasTensor((None, 2)))
        assert asked
        forget()
        asked.clear()
        with contextlib.suppress(MemoryError):
            private.trace(kit.Sequential([kit.layers.Dense(1)]), kit.KerasTensor((None, 2)))
        assert bool(asked) == asked_again
        private.forget_unmade()


@relied_on(
    "keras.settings keras.use_settings tf_keras.settings tf_keras.use_settings",
    "the same model in a process of its own, before it is built here",
)
def _settings(folder: Path) -> None:
    for name, kit in KERASES.items():

        def made(kit: Any = kit) -> list[str]:
            inputs = kit.Input((3,))
            return [inputs.name, kit.layers.Dense(1).name, kit.Sequential().name, kit.Model(inputs, inputs).name]

        private = kerases.of(name)
        kit.layers.Dense(1, name="dense_1")
        before, first, second = private.settings(), made(), made()
        assert len({*first, *second}) == len(first + second)
        private.use_settings(json.loads(json.dumps(before)))
        assert made() == first
        assert made() == second
