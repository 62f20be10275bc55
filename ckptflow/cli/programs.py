"""What the verbs share that run the user's code: modules to import, objects by name, a quiet TensorFlow."""

from __future__ import annotations

import logging
import os
import sys
import types
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer

Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module to import first, which registers custom classes. May be repeated.",
        show_default=False,
    ),
]
Unsafe = Annotated[
    bool,
    typer.Option("--unsafe", help="Also build what runs code of the file: Lambda layers, graphs. For trusted files."),
]


def prepare() -> None:
    """From here on modules are found in the current folder, as with `python -m`, and TensorFlow is quiet.

    Unless the user has said what it is to show. Level 3 hides errors that TensorFlow's C++ code logs: most reach the
    user as exceptions, and why it aborts is shown. At level 2 a machine without a GPU has a line of an error more.
    """
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        with suppress(ImportError):  # it comes with TensorFlow, and makes a logger of a class of its own
            import_module("absl.logging")
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def load_object(name: str | None, *, is_made: bool = False) -> Any:
    """What MODULE:NAME names, or None; with `is_made`, what it returns where it is a function or a class.

    Raises ValueError for what is not there.
    """
    if name is None:
        return None
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"{name!r} is not of the form MODULE:NAME")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        return found() if is_made and _is_maker(found) else found
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error


def _is_maker(found: Any) -> bool:
    """Whether calling it makes the object: a function or a class, but not a model, which can be called as well."""
    return isinstance(found, (types.FunctionType, types.BuiltinFunctionType, type))
