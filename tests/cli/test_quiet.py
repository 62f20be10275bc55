"""TensorFlow's notes do not bury what a verb says; errors, and why TensorFlow aborts, are shown."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from ckptflow.cli.programs import prepare
from tests.processes import run_python

NAMES = ("tensorflow", "absl")

ABORTING = """
import logging
import os
del os.environ["TF_CPP_MIN_LOG_LEVEL"]
from ckptflow.cli.programs import prepare
prepare()
import absl.logging
import tensorflow as tf
assert isinstance(logging.getLogger("absl"), absl.logging.ABSLLogger)
absl.logging.warning("a note")
tf.get_logger().warning("a note")
tf.get_logger().error("an error")
tf.experimental.dlpack.to_dlpack(tf.constant("text"))
"""


def test_why_tensorflow_aborts_is_shown_and_notes_are_not() -> None:
    ran = run_python("-c", ABORTING, fresh=True)
    assert ran.returncode == -signal.SIGABRT
    assert "ERROR:tensorflow:an error" in ran.stderr
    assert "Check failed: " in ran.stderr
    assert "a note" not in ran.stderr
    assert "cuInit" not in ran.stderr  # that there is no GPU is no error


@pytest.mark.parametrize(("level", "expected"), [(None, ("3", logging.ERROR)), ("1", ("1", logging.NOTSET))])
def test_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, level: str | None, expected: tuple[str, int]
) -> None:
    for name in NAMES:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    prepare()
    assert [(os.environ["TF_CPP_MIN_LOG_LEVEL"], logging.getLogger(name).level) for name in NAMES] == [expected] * 2
