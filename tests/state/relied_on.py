"""What is tried of the private names that ckptflow relies on: each name with what it is for, and a check."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tf_keras

Check = Callable[[Path], None]  # called with an empty folder


class Relied(NamedTuple):
    """Private names, each with its module in `state/private`, what ckptflow needs them for, and a check of them."""

    names: str
    what_for: str
    check: Check


CHECKS: list[Relied] = []
KERASES = {"keras": keras, "tf_keras": tf_keras}


def relied_on(names: str, what_for: str) -> Callable[[Check], Check]:
    """Registers a check."""

    def register(check: Check) -> Check:
        CHECKS.append(Relied(names, what_for, check))
        return check

    return register


@functools.cache
def model_of(framework: str) -> Any:
    """A small functional model with a model in it, that was trained for a step."""
    kit = KERASES[framework]
    inner = kit.Sequential([kit.Input((3,)), kit.layers.Dense(3, name="inner")])
    inputs = kit.Input((3,))
    model = kit.Model(inputs, kit.layers.Dense(1, name="outer")(inner(inputs)))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((4, 3)), np.ones((4, 1)), batch_size=2, verbose=0)
    return model
