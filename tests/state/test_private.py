"""Every private name of TensorFlow, Keras and tf_keras that ckptflow relies on exists and does what it is used for.

A new release of one of them fails here first, and says what the name is for.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ckptflow.state import private
from tests.state import relied_on_kerases as relied_on_kerases
from tests.state import relied_on_loading as relied_on_loading
from tests.state import relied_on_tensorflow as relied_on_tensorflow
from tests.state.relied_on import CHECKS, Relied


@pytest.mark.parametrize("relied", CHECKS, ids=lambda relied: relied.check.__name__.lstrip("_"))
def test_what_is_relied_on(relied: Relied, tmp_path: Path) -> None:
    try:
        relied.check(tmp_path)
    except Exception as error:
        raise AssertionError(f"no longer as it was: {relied.names}; needed for: {relied.what_for}") from error


def names_in(module: str) -> set[str]:
    """The names that a module of private names has for others."""
    tree = ast.parse((Path(private.__path__[0]) / f"{module}.py").read_text())
    found: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            case ast.ImportFrom(names=names):
                found |= {alias.name for alias in names if alias.asname}
    return {f"{module}.{name}" for name in found if not name.startswith("_")}


@pytest.mark.parametrize("module", ["tensorflow", "keras", "tf_keras", "kerases"])
def test_each_private_name_is_tried(module: str) -> None:
    assert names_in(module) == {
        name for names, _, _ in CHECKS for name in names.split() if name.startswith(f"{module}.")
    }
