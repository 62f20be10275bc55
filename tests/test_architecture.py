"""The house keeps its shape: who imports whom, how long a file is, and who loads TensorFlow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ckptflow"
MAX_LINES = 420

# A room imports from rows above its own, and from itself. What is not named here is a face, in the last row.
ROWS: tuple[tuple[set[str], ...], ...] = (
    ({"errors", "printable"}, {"events"}, {"spans"}, {"threads"}),
    ({"format"}, {"storage"}),
    ({"state"}, {"transfer"}),
    ({"peers"},),
    ({"commit"},),
    ({"job", "manager", "overview", "reading"},),
    ({"interop"}, {"bench"}, {"report"}, {"testing"}),
)
FACES_ROW = len(ROWS)
TENSORFLOW = {"tensorflow", "keras", "tf_keras"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


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
    assert broken_rules(module, ast.parse(path.read_text())) == []


def test_the_rules_find_what_they_forbid() -> None:
    assert broken_rules("format.shard", ast.parse("from ckptflow.storage.store import Store"))
    assert broken_rules("state.tree", ast.parse("def f():\n    import ckptflow.transfer.plan"))
    assert broken_rules("storage.local", ast.parse("from ckptflow import manager"))
    assert broken_rules("commit.prune", ast.parse("try:\n    import tensorflow as tf\nexcept ImportError: pass"))
    assert not broken_rules("manager", ast.parse("if TYPE_CHECKING:\n    import tensorflow as tf"))
    assert not broken_rules("state.tree", ast.parse("import tensorflow\nfrom ckptflow.state import leaves"))


@pytest.mark.parametrize("folder", ["ckptflow", "tests", "examples", "benchmarks"])
def test_files_stay_readable(folder: str) -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_each_module_says_its_role() -> None:
    silent = [
        str(path) for path in MODULES if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
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
