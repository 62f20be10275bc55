"""What a bundle is: state that is no variable, and is read and written as a whole, as tables and iterators are.

A bundle has named parts, each one tensor in the checkpoint. `read` gives all parts at one moment and may be called only
between two training steps; `write` puts all of them back, replacing whatever is there.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.format.dtypes import Array

OUT_OF_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)


class NotPutBackError(Exception):
    """A rehearsal has changed an object, which does not accept the state that it had before. `fits` says whether it
    accepted the new one, and may be written once more."""

    fits = False


class Bundle(ABC):
    """One object that becomes several tensors of sizes known only when they are captured.

    `obj` is that object. `stock_names`: what TensorFlow's own checkpoints call the parts, where they hold the same.
    """

    obj: Any
    dtypes: dict[str, str]
    stock_names: Mapping[str, str] = {}

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """Every part's value, a tensor that nothing else writes to, or an array."""

    @abstractmethod
    def write(self, parts: Mapping[str, Array]) -> None:
        """Replaces the object's state by `parts`."""

    def misfit(self, parts: Mapping[str, Array]) -> str:
        """Why `write` cannot take these parts; empty if it can. Leaves the object as it is, or raises
        `NotPutBackError`; what else it raises says why, too. What says nothing of the parts, an interrupt or
        `OUT_OF_MEMORY`, is raised, and may leave the object changed.

        Tried on the object, which gets its own parts back: its dtypes and shapes may be the same where it refuses the
        values, and others where it grows.
        """
        before = self.held()
        try:
            with self.put_back_if_stopped(before):
                self.write(parts)
        except Exception as error:
            if isinstance(error, OUT_OF_MEMORY):
                raise
            self.put_back(before)
            other = [name for name in sorted(before) if np.shape(before[name]) != np.shape(parts[name])]
            shapes = [f"{name} has shape {np.shape(before[name])}, {np.shape(parts[name])} there" for name in other]
            return f"{'; '.join(shapes)}: {said(error)}" if shapes else said(error)
        try:
            self.put_back(before)
        except NotPutBackError as error:
            error.fits = True
            raise
        return ""

    def holds(self, parts: Mapping[str, Array]) -> bool:
        """Whether these parts, of its dtypes, are its state now, bit for bit."""
        now = self.held()
        return now.keys() == parts.keys() and all(_is_same(part, parts[name]) for name, part in now.items())

    def held(self) -> dict[str, Array]:
        """What `write` puts back later."""
        parts = {name: part.numpy() if tf.is_tensor(part) else part for name, part in self.read().items()}
        return {name: np.array(part, object) if isinstance(part, bytes) else part for name, part in parts.items()}

    def put_back(self, before: Mapping[str, Array]) -> None:
        """Writes what `held` gave. Raises `NotPutBackError` if that fails, too."""
        try:
            self.write(before)
        except Exception as error:
            raise NotPutBackError(f"its previous state cannot be restored: {said(error)}") from error

    @contextlib.contextmanager
    def put_back_if_stopped(self, before: Mapping[str, Array]) -> Iterator[None]:
        """Where a trial ends by what says nothing of the parts: puts back what can be, and that error it stays."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, OUT_OF_MEMORY):
                with contextlib.suppress(NotPutBackError):
                    self.put_back(before)
            raise


def _is_same(one: Array, other: Array) -> bool:
    if one.dtype == object or other.dtype == object:
        return one.shape == other.shape and bool(one.tolist() == other.tolist())
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def said(error: Exception) -> str:
    """What an error of anyone's says, with its kind."""
    return f"{type(error).__name__}: {says(error)}"


def says(error: Exception) -> str:
    """The first line of it, without TensorFlow's name of the operation."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return re.sub(r"^\{\{.*?\}\} ", "", str(text).partition("\n")[0])[:300]
