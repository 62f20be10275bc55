"""The public names: complete, documented, and the tree of errors as it is drawn."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re
import textwrap
from pathlib import Path

import pytest

import ckptflow
from ckptflow import errors

ROOT = Path(__file__).resolve().parent.parent
ERRORS = [getattr(errors, name) for name in errors.__all__]


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """name → (parent's name, builtin's name) as drawn in the docstring of errors.py."""
    found: dict[str, tuple[str, str | None]] = {}
    parents: list[str] = []
    lines = textwrap.dedent((errors.__doc__ or "").split("\n\n")[1])
    for line in lines.splitlines():
        match = re.match(r"((?:[│ ] {3})*(?:[├└]── )?)(\w+Error)(?: \((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            found[match[2]] = (parents[depth - 1] if depth else "Exception", match[3])
            parents[depth:] = [match[2]]
    return found


def test_all_is_complete() -> None:
    for name in ckptflow.__all__:
        assert getattr(ckptflow, name) is not None
    assert set(ckptflow.__all__) == {"__version__", *ckptflow._LAZY, *errors.__all__}
    assert dir(ckptflow) == sorted(ckptflow.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ckptflow.no_such_name


def test_each_public_name_is_explained() -> None:
    pages = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    names = [name for name in ckptflow.__all__ if name != "__version__"]
    assert [name for name in names if not re.search(rf"\b{name}\b", pages)] == []
    assert [name for name in names if not inspect.getdoc(getattr(ckptflow, name))] == []


def test_the_tree_of_errors_is_as_drawn() -> None:
    real = {
        error.__name__: (
            error.__bases__[0].__name__,
            next((base.__name__ for base in error.__bases__[1:] if hasattr(builtins, base.__name__)), None),
        )
        for error in ERRORS
    }
    assert drawn_tree() == real


def test_every_error_is_exported() -> None:
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    defined = {name for name, value in classes.items() if value.__module__ == errors.__name__}
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error.__name__))
def test_errors_survive_pickling(error: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error("what, where and why")))  # noqa: S301
    assert type(again) is error
    assert str(again) == "what, where and why"
