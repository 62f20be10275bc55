"""Runs that the tests of exports and imports share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckptflow.interop.untrusted import probe
from tests.interop.doors import make_model, save
from tests.interop.models import without_graph


@pytest.fixture
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process for each file, where there are many, made by the test, and no parser dies of them.

    That sound files of every format pass it is tried by `test_architectures`, `test_doors` and `test_outside`.
    """
    monkeypatch.setattr(probe, "check", lambda *_, **__: None)


@pytest.fixture(scope="module")
def trained() -> Any:
    model = without_graph(make_model())
    model.fit(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32), epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def run(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("run") / "run")
    save(url, {"model": trained})
    return url


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("plain") / "run")
    save(url, {"w": tf.Variable([1.0, 2.0]), "v": tf.Variable(3)})
    return url
