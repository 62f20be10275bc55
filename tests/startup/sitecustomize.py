"""What each Python of the tests does as it starts: TensorFlow and Keras find neither JAX nor scikit-learn.

Where these are installed, as they are for the tests, TensorFlow and Keras import them for what is not used here, and an
import of TensorFlow takes half as long again. Programs that import them for themselves get them.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

_NOT_FOR_THEM = {"jax", "sklearn"}
_THEM = {"tensorflow", "keras", "tf_keras"}


class _NotForThem:
    """A finder that finds nothing, and refuses what one of them asks for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in _NOT_FOR_THEM and _who_asks(sys._getframe(1)) in _THEM:
            raise ModuleNotFoundError(f"{name} is not for TensorFlow and Keras in the tests", name=name)


def _who_asks(frame: FrameType | None) -> str:
    """The package of the first caller that is not the import itself."""
    while frame is not None and "importlib._bootstrap" in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]


sys.meta_path.insert(0, _NotForThem())
