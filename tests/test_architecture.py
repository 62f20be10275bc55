"""The house keeps its shape: who imports whom, how long a file is, and who loads TensorFlow."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.private_uses import PUBLIC, private_uses
from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ckptflow"
MAX_LINES = 420

# A room imports from rows above its own, and from itself. What is not named here is a face, in the last row.
ROWS: tuple[tuple[set[str], ...], ...] = (
    ({"errors", "printable"}, {"decoding"}, {"events"}, {"spans"}, {"stops"}, {"threads"}),
    ({"format"}, {"storage"}),
    ({"state"}, {"transfer"}, {"places"}),
    ({"peers"},),
    ({"commit"},),
    ({"job", "manager", "overview", "reading"},),
    ({"interop"}, {"bench"}, {"report"}, {"testing"}),
)
FACES_ROW = len(ROWS)
TENSORFLOW = {"tensorflow", "keras", "tf_keras"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

# Private names of ckptflow that another module uses, by file. This is to become empty: nothing is added.
OURS: dict[str, set[str]] = {
    "tests/commit/test_together.py": {"ckptflow.commit.together._PAUSES_S"},
}
# Private names of other libraries, by file, and what they are needed for: nothing public tells or does it. Those of
# TensorFlow and both Kerases stand in `state/private` and nowhere else.
OTHERS: dict[str, tuple[str, set[str]]] = {
    "ckptflow/interop/untrusted/probe.py": (
        "Python: ends a forked process without what its parent registered",
        {"_exit"},
    ),
    "ckptflow/preemption/notices.py": ("Python: leaves at once, from any thread", {"_exit"}),
    "ckptflow/storage/clients.py": (
        "fsspec: options and path in a URL; gcsfs: a request without its own retries; aiohttp: how it works",
        {
            "_create_connection",
            "_create_connector",
            "_get_kwargs_from_urls",
            "_get_session",
            "_request",
            "_response_class",
            "_strip_protocol",
        },
    ),
    "ckptflow/storage/aws_sessions.py": (
        "botocore: how it starts a credential process; aiobotocore: with what it asks a machine for credentials",
        {"_fetcher", "_get_session", "_popen", "_profile_provider_builder", "_role_fetcher", "_session"},
    ),
    "ckptflow/storage/by_fsspec.py": (
        "fsspec: the folder of a path, whether an asynchronous class lists in its own way; gcsfs: where its server is",
        {"_find", "_location", "_parent"},
    ),
}
FRAMEWORKS = "ckptflow/state/private/"
# How modules begin that the frameworks do not show, and an attribute that leads to such.
HIDDEN = (
    "tensorflow.core.",
    "tensorflow.python.",
    "tensorflow.dtensor.",
    "tensorflow.lite.",
    "keras.src",
    "tf_keras.src",
)
# What takes out rules of the protocol, and what tries them, hold on to public names: the code below can be rewritten.
KEPT_APART = sorted(
    path for folder in ("ckptflow", "tests/protocol", "tests/commit") for path in (ROOT / folder).rglob("*.py")
)
OF_FRAMEWORKS = [
    path
    for path in MODULES
    if path.relative_to(PACKAGE).parts[0] in ("callbacks", "interop", "job", "peers", "preemption", "state")
    and not str(path.relative_to(ROOT)).startswith(FRAMEWORKS)
]
# Texts that are names of nothing there: suffixes of names in configs, ours, and a child in a SavedModel.
TEXTS = frozenset({"_config", "_module", "_type", "_ckptflow_resources", "_all_variables", "_misc_assets"})


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """What a file says; it is read once for all that asks."""
    return ast.parse(path.read_text())


def room_of(module: str) -> tuple[int, str]:
    """(row, room) of `commit.catalog` or `manager`; a room of several files has its first name."""
    head = module.split(".")[0]
    for row, rooms in enumerate(ROWS):
        for room in rooms:
            if head in room:
                return row, min(room)
    return FACES_ROW, head


def imports_of(tree: ast.AST, *, with_typing: bool = True) -> Iterator[str]:
    """Every absolute module name imported anywhere in `tree`, or all but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not with_typing:
            for other in node.orelse:
                yield from imports_of(other, with_typing=with_typing)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: relative import; rooms are named in full")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports_of(node, with_typing=with_typing)


def broken_rules(module: str, tree: ast.AST) -> list[str]:
    """What `module` ("commit.catalog") imports that it may not."""
    row, room = room_of(module)
    found = []
    for name in imports_of(tree):
        if name.startswith("ckptflow."):
            other_row, other = room_of(name.removeprefix("ckptflow."))
            # `from ckptflow import __version__` is the package itself
            if name != "ckptflow.__version__" and not (other_row < row or other == room):
                found.append(f"{module} (row {row}) imports {name} (row {other_row})")
    if row < FACES_ROW and room not in ("state", "peers", "interop"):
        names = (name.split(".")[0] for name in imports_of(tree, with_typing=False))
        found += [f"{module} imports {name}" for name in names if name in TENSORFLOW]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_from_above(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert broken_rules(module, tree_of(path)) == []


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The names of modules that import one another, each the one before it; none if there is no such circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_one_another() -> None:
    """Not even inside functions: what two modules need of each other is a third one's."""
    trees = {".".join(path.relative_to(ROOT).with_suffix("").parts): tree_of(path) for path in MODULES}
    named = {name: set(imports_of(tree)) for name, tree in trees.items()}
    parents = {name: {other.rpartition(".")[0] for other in others} for name, others in named.items()}
    assert circle({name: (named[name] | parents[name]) & trees.keys() for name in trees}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def defined(tree: ast.Module) -> set[str]:
    """The classes and the names of types at the top of a module."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if re.fullmatch("_*[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name) and "TypeVar" not in ast.dump(node):
                    names.add(name)
    return names


# One of each Keras, which `state/private/kerases.py` chooses between by the framework's name.
TWINS = {"FitData", "FitModel"}


def test_a_name_means_one_thing() -> None:
    """A class or a type has its name alone. Another module that means the same imports it."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for name in defined(tree_of(path)):
            found.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert {name for name, places in found.items() if len(places) > 1} == TWINS
    program = "class A:\n    pass\nB1 = dict[str, A]\nX_Y = 1\nT = TypeVar('T')\nOne: TypeAlias = A\n_Two = A"
    assert defined(ast.parse(program)) == {"A", "One", "_Two"}


def test_the_rules_find_what_they_forbid() -> None:
    assert broken_rules("format.shard", ast.parse("from ckptflow.storage.store import Store"))
    assert broken_rules("state.tree", ast.parse("def f():\n    import ckptflow.transfer.plan"))
    assert broken_rules("storage.local", ast.parse("from ckptflow import manager"))
    assert broken_rules("commit.prune", ast.parse("try:\n    import tensorflow as tf\nexcept ImportError: pass"))
    assert not broken_rules("manager", ast.parse("if TYPE_CHECKING:\n    import tensorflow as tf"))
    assert not broken_rules("state.tree", ast.parse("import tensorflow\nfrom ckptflow.state import leaves"))


def privates_of_others(path: Path) -> dict[str, int]:
    """Of frameworks none is told where they are at home."""
    if str(path.relative_to(ROOT)).startswith(FRAMEWORKS):
        return {}
    return private_uses(tree_of(path))


def hidden_in_frameworks(tree: ast.Module) -> list[str]:
    """What a module uses of TensorFlow and both Kerases that is not public, though its name does not begin with an
    underscore; and texts that are the names of private attributes."""
    found = [name for name in imports_of(tree) if name.startswith(HIDDEN)]
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="src" | "__internal__" as name):
                found.append(name)
            case ast.Constant(value=str(text)) if re.fullmatch(r"_[a-z]\w+", text) and text not in TEXTS | PUBLIC:
                found.append(text)
    return found


@pytest.mark.parametrize("path", KEPT_APART, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_used_at_home(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    allowed = OURS.get(name, set()) | OTHERS.get(name, ("", set[str]()))[1]
    assert {private: line for private, line in privates_of_others(path).items() if private not in allowed} == {}


@pytest.mark.parametrize("path", OF_FRAMEWORKS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_frameworks_stand_together(path: Path) -> None:
    assert hidden_in_frameworks(tree_of(path)) == []


@pytest.mark.parametrize(
    "program",
    [
        "from tensorflow.python.eager import context",
        "def f():\n    from tf_keras.src.saving import saving_lib",
        "keras.src.backend.floatx()",
        "tf.__internal__.tracking.Trackable",
        "vars(layer)['_trainable_weights']",
        "def f(found):\n    return found.get('_slots')",
    ],
)
def test_private_names_of_frameworks_are_found(program: str) -> None:
    assert hidden_in_frameworks(ast.parse(program))


def test_no_private_name_is_allowed_in_vain() -> None:
    listed = [*OURS.items(), *((name, privates) for name, (_, privates) in OTHERS.items())]
    unused = [(name, private) for name, privates in listed for private in privates - {*privates_of_others(ROOT / name)}]
    assert unused == []
    assert [private for _, privates in OTHERS.values() for private in privates if private.startswith("ckptflow.")] == []


@pytest.mark.parametrize(
    "program",
    [
        "def f(manager):\n    return manager._live",
        "class A:\n    def f(self):\n        return self._manager._live",
        "def f():\n    return g()._x",
        "def f(strategy):\n    return getattr(strategy, '_x', None)",
        "def f(patch):\n    patch.setattr(Coordinator, '_x', None)",
        "def f(patch):\n    patch.setattr('ckptflow.commit.prune._x', None)",
        "from ckptflow.commit.prune import _x",
        "import ckptflow._x.prune",
        # of the same name as one of its own
        "def f(manager: Manager):\n    return manager._x\n\nclass A:\n    _x = 1",
        "def f(manager: 'Manager | None'):\n    return manager._x\n\nclass A:\n    _x = 1",
        "def f():\n    found: Manager = g()\n    return found._x\n\nclass A:\n    _x = 1",
        "class A:\n    _x = 1\n    def __init__(self, of: Manager):\n        self.of = of\n        self.of._x",
        "class A:\n    _x = 1\n    of: Manager\n    def f(self):\n        return self.of._x",
        "def _x():\n    pass\n\ndef f(manager):\n    return manager._x",
    ],
)
def test_the_walk_finds_private_names_of_others(program: str) -> None:
    assert private_uses(ast.parse(program))


@pytest.mark.parametrize(
    "program",
    [
        "class A:\n    def f(self, other: A):\n        self._x = other._x",
        "class A:\n    def f(self, other: Any):\n        self._x = other._x if isinstance(other, A) else None",
        "class A:\n    def f(self):\n        return self._inherited",
        "def f(row):\n    return row._replace(x=1)._asdict()",
        "def f(x):\n    return x.__class__",
        "_x = 1\nprint(_x)",
        "from ckptflow import __version__",
    ],
)
def test_the_walk_leaves_the_rest(program: str) -> None:
    assert not private_uses(ast.parse(program))


@pytest.mark.parametrize("folder", ["ckptflow", "tests", "examples", "benchmarks"])
def test_files_stay_readable(folder: str) -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_one_place_says_that_a_source_does_not_fit() -> None:
    places = {path for path in MODULES for node in ast.walk(tree_of(path))
              if isinstance(node, ast.Call) and "StateMismatchError" in ast.unparse(node.func)}  # fmt: skip
    assert [str(path.relative_to(PACKAGE)) for path in places] == ["format/offer.py"]


def test_one_place_makes_json_into_a_type() -> None:
    """Which is safe in several threads, as `decode_json` says."""
    calls = [node for path in MODULES for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    assert [call.keywords for call in calls if ast.unparse(call.func) == "msgspec.json.decode" and call.keywords] == []


def kept_by_a_log(tree: ast.AST) -> list[int]:
    """The lines on which a logger gets an exception for its text: a kept record would keep all that it holds."""
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name]
    return [
        argument.lineno
        for handler in handlers
        for call in ast.walk(handler)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if isinstance(call.func.value, ast.Name) and call.func.value.id in ("logger", "_log")
        for argument in call.args
        if isinstance(argument, ast.Name) and argument.id == handler.name
    ]


def test_no_logger_is_handed_the_exception_that_is_handled() -> None:
    found = {str(path): lines for path in MODULES if (lines := kept_by_a_log(tree_of(path)))}
    assert found == {}
    assert kept_by_a_log(ast.parse("try:\n    f()\nexcept OSError as error:\n    logger.info('%s', error)")) == [4]


def test_each_module_says_its_role() -> None:
    silent = [str(path) for path in MODULES if not ast.get_docstring(tree_of(path))]
    assert silent == []


IMPORTS = {
    "import": "import ckptflow",
    "names": "import ckptflow; ckptflow.Checkpoint; ckptflow.KeepLast; ckptflow.open_checkpoint; ckptflow.FencedError",
    "preemption": "import ckptflow; ckptflow.PreemptionWatcher",
    "reading": "import ckptflow.reading, ckptflow.storage.store",
    "help": "from ckptflow.cli import main; sys.argv = ['ckptflow', '--help']; main()",
    "ls": "from ckptflow.cli import main; sys.argv = ['ckptflow', 'ls', sys.argv[1]]; main()",
    "show": "from ckptflow.interop.origin import find_provenance; assert find_provenance(sys.argv[1]) is None",
}


@pytest.mark.parametrize("case", IMPORTS)
def test_no_tensorflow_is_loaded(case: str, tmp_path: Path) -> None:
    program = f"""
import sys
try:
    {IMPORTS[case]}
except SystemExit as done:
    assert not done.code, done.code
loaded = sorted(set(sys.modules) & {TENSORFLOW!r})
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
