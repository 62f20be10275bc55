"""What the variables may take that are made as something in storage says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ckptflow.errors import UsageError
from ckptflow.state.private.keras import forget_unmade


class VariablesRefusedError(UsageError):
    """Variables would take more than goes with what is stored for them."""


def machine_bytes() -> int:
    """The memory of this machine: what bounds those whose length is only claimed, or comes of holes in a file."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def limited(max_bytes: int | None, where: str, way: str) -> Iterator[None]:
    """Variables made inside of it may not take more than `max_bytes` together: none that would is ever allocated,
    also later.

    Raises `VariablesRefusedError`, at the end where Keras swallows what is raised inside of it. `way` is what can be
    done then.
    """
    if max_bytes is None:
        yield
        return
    import tensorflow as tf

    taken = 0
    refused: list[VariablesRefusedError] = []

    def create(make_next: Any, **settings: Any) -> Any:
        nonlocal taken
        taken += _size_bytes(settings)
        if taken > max_bytes:
            refused.append(
                VariablesRefusedError(
                    f"{where}: its config asks for variables of more than {max_bytes:,} bytes, far more than there is "
                    f"to put into them; no more was allocated. {way}"
                )
            )
            raise refused[0]
        return make_next(**settings)

    try:
        with tf.variable_creator_scope(create):
            yield
    except Exception as error:
        forget_unmade()
        if refused and error is not refused[0]:
            raise refused[0] from error
        raise
    if refused:
        forget_unmade()
        raise refused[0]


def _size_bytes(settings: dict[str, Any]) -> int:
    """What a variable is about to take: by its shape, or by making its initial value as symbols, never as memory."""
    import tensorflow as tf

    shape, dtype, value = settings.get("shape"), settings.get("dtype"), settings["initial_value"]
    if shape is None:
        try:
            if callable(value):
                with tf.Graph().as_default():
                    made = tf.convert_to_tensor(value())
                shape, dtype = made.shape, made.dtype
            else:
                shape, dtype = value.shape, value.dtype
        except Exception:  # nothing to go by: it is made as it is
            return 0
    elements = tf.TensorShape(shape).num_elements() or 0
    return int(elements) * int(tf.as_dtype(dtype or tf.float32).size or 1)
