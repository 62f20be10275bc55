"""Which private names of others a module uses: a leading underscore, on what is not its own.

An approximation without types: `x._y` is the module's own if `x` is `self` or `cls`, or if a class of the module has a
`_y` and no annotation says that `x` is of a class from elsewhere: that of a parameter, of a local variable, or of what
an attribute of `self` was made from.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

PUBLIC = {"_asdict", "_fields", "_make", "_replace"}  # of every named tuple
BY_NAME = {"delattr", "getattr", "hasattr", "setattr"}

Annotations = dict[str, set[str]]  # the names in each one's annotation


def private_uses(tree: ast.Module) -> dict[str, int]:
    """The private names of others that are used, imported ones as `module._name`; each with a line where that is."""
    found = _Uses(tree)
    found.visit(tree)
    return found.lines


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


class _Uses(ast.NodeVisitor):
    def __init__(self, tree: ast.Module) -> None:
        self.lines: dict[str, int] = {}
        self._own = set(_defined(tree))
        self._classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        self._variables: Annotations = {}
        self._fields: Annotations = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # the name is ast's
        before, self._fields = self._fields, _fields(node)
        self.generic_visit(node)
        self._fields = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self._variables = self._variables, self._variables | _variables(node)
        self.generic_visit(node)
        self._variables = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._meet(node, node.value, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(
                func=ast.Name(id=verb) | ast.Attribute(attr=verb), args=[of, ast.Constant(value=str(name)), *_]
            ) if verb in BY_NAME:
                self._meet(node, of, name)
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[ast.Constant(value=str(path)), *_]):
                self._import(node, path)  # of a MonkeyPatch
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._import(node, f"{node.module}.{alias.name}")

    def _import(self, node: ast.stmt | ast.expr, name: str) -> None:
        if any(is_private(part) for part in name.split(".")):
            self.lines[name] = node.lineno

    def _meet(self, node: ast.expr, of: ast.expr, name: str) -> None:
        if is_private(name) and not self._is_own(of, name):
            self.lines[name] = node.lineno

    def _is_own(self, of: ast.expr, name: str) -> bool:
        match of:
            case ast.Name(id="self" | "cls"):
                return True
            case ast.Name(id=variable):
                kinds = self._variables.get(variable, set())
            case ast.Attribute(value=ast.Name(id="self"), attr=field):
                kinds = self._fields.get(field, set())
            case _:
                kinds = set()
        return name in self._own and (not kinds or bool(kinds & self._classes))


def _defined(tree: ast.Module) -> Iterator[str]:
    """The attributes of the module's classes, and of `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name
            case ast.ClassDef(body=body):
                for statement in body:
                    match statement:
                        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                            yield name
                        case ast.Assign(targets=targets):
                            yield from (target.id for target in targets if isinstance(target, ast.Name))
                        case ast.AnnAssign(target=ast.Name(id=name)):
                            yield name


def _names(annotation: ast.expr | None) -> set[str]:
    """The classes in an annotation; `Any` and `object` say nothing."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if annotation is None:
        return set()
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} - {"Any", "object"}


def _variables(function: ast.FunctionDef) -> Annotations:
    """The annotations of its parameters and local variables."""
    every = function.args
    found = {arg.arg: _names(arg.annotation) for arg in (*every.posonlyargs, *every.args, *every.kwonlyargs)}
    for node in ast.walk(function):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                found[name] = _names(annotation)
    return found


def _fields(of: ast.ClassDef) -> Annotations:
    """The annotations of what is in `self`: of the class, of the assignment, or of the parameter that is assigned."""
    found: Annotations = {}
    for method in of.body:
        match method:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                found[name] = _names(annotation)
            case ast.FunctionDef():
                given = _variables(method)
                for node in ast.walk(method):
                    match node:
                        case ast.AnnAssign(
                            target=ast.Attribute(value=ast.Name(id="self"), attr=name), annotation=annotation
                        ):
                            found[name] = _names(annotation)
                        case ast.Assign(
                            targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Name(id=given_as)
                        ) if given_as in given:
                            found[name] = given[given_as]
    return found
