"""The house keeps its shape: who imports whom, how long a file is, and who loads TensorFlow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.private_uses import private_uses
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

# Private names of ckptflow that another module uses, by file. This is to become empty: nothing is added.
OURS: dict[str, set[str]] = {
    "ckptflow/storage/raw.py": {"_client", "_fs", "_has_direct", "_mapped", "_name", "_open", "_path"},
    "tests/commit/test_together.py": {"ckptflow.commit.together._PAUSES_S"},
}
# Private names of other libraries, by file, and what they are needed for: nothing public tells or does it.
OTHERS: dict[str, tuple[str, set[str]]] = {
    "ckptflow/job/background.py": ("Python: who calls is on the stack alone", {"_getframe"}),
    "ckptflow/callbacks/callback.py": (
        "Keras 3: whether hooks run late is decided before set_model; TensorFlow: whether a strategy has a coordinator",
        {"_async_predict", "_async_test", "_async_train", "_should_use_with_coordinator"},
    ),
    "ckptflow/callbacks/input.py": (
        "tf.data: what a data set is made of, and whether a shuffle has a seed",
        {"_inputs", "_seed", "_seed2", "tensorflow.python.data.ops.shuffle_op._ShuffleDataset"},
    ),
    "ckptflow/callbacks/loops.py": (
        "both Keras: a fit cannot be told the batch to begin with, nor asked for its iterator",
        {
            "_adapter",
            "_current_iterator",
            "_distributed_dataset",
            "_enumerate_iterator",
            "_get_iterator",
            "_getframe",
            "_inferred_steps",
            "_initial_epoch",
            "_initial_step",
            "_num_batches",
            "_step_increment",
            "_steps_seen",
            "_symbolic_build",
            "_train_counter",
        },
    ),
    "ckptflow/callbacks/others.py": ("both Keras: the public learning_rate is its value", {"_learning_rate"}),
    "ckptflow/interop/keras/config.py": (
        "tf_keras: what a model was built with, and a legacy optimizer's build",
        {"_build_input_shape", "_create_all_weights"},
    ),
    "ckptflow/interop/keras/files.py": ("tf_keras: what a model was built with", {"_build_input_shape"}),
    "ckptflow/interop/keras/legacy.py": (
        "both Keras: how it was compiled, all layers of a nested model, the table of a layer of strings",
        {"_compile_config", "_flatten_layers", "_lookup_layer"},
    ),
    "ckptflow/interop/keras/places.py": (
        "both Keras: the order in which its own files are written",
        {"_flatten_layers", "_save_state"},
    ),
    "ckptflow/interop/untrusted/keras_trust.py": (
        "Keras: the classes of a custom_object_scope",
        {"_THREAD_LOCAL_CUSTOM_OBJECTS"},
    ),
    "ckptflow/interop/keras/weights.py": ("both Keras: reads weights from a folder", {"_load_state"}),
    "ckptflow/interop/model.py": ("both Keras: all layers of a nested model", {"_flatten_layers"}),
    "ckptflow/interop/untrusted/probe.py": (
        "Python: ends a forked process without what its parent registered",
        {"_exit"},
    ),
    "ckptflow/interop/tensorflow/reusable.py": (
        "TensorFlow and tf_keras: a function attached for one export, and the concrete ones that it has",
        {"_delete_tracking", "_filter_shards", "_list_all_concrete_functions", "_track_trackable"},
    ),
    "ckptflow/interop/tensorflow/signatures.py": (
        "both Keras and TensorFlow: inputs and outputs by name, what a function was traced for, whose a capture is",
        {"_build_shapes_dict", "_inputs_struct", "_keras_history", "_list_all_concrete_functions", "_parent_trackable"},
    ),
    "ckptflow/preemption/notices.py": ("Python: leaves at once, from any thread", {"_exit"}),
    "ckptflow/state/build.py": (
        "tf_keras: a recurrent layer's states, and a legacy optimizer's build",
        {"_create_all_weights", "_states"},
    ),
    "ckptflow/state/bundles.py": (
        "TensorFlow: what tf.train.Checkpoint calls of a table or any trackable; Keras: a lookup's size",
        {
            "_deleted_key",
            "_empty_key",
            "_frozen_vocab_size",
            "_gather_saveables_for_checkpoint",
            "_restore_from_tensors",
            "_serialize_to_tensors",
            "_value_shape",
        },
    ),
    "ckptflow/state/capture.py": ("TensorFlow: the number of elements, without an operation", {"_num_elements"}),
    "ckptflow/state/configs.py": ("tf_keras: whether a model is functional", {"_is_graph_network"}),
    "ckptflow/state/entries.py": ("TensorFlow: a distributed iterator's parts", {"_iterator", "_iterators"}),
    "ckptflow/state/iterators.py": (
        "TensorFlow: what tf.train.Checkpoint calls of an iterator",
        {"_restore_from_tensors", "_serialize_to_tensors"},
    ),
    "ckptflow/state/keras3.py": (
        "Keras 3: which variables an optimizer was built for, and its own",
        {"_trainable_variables", "_variables"},
    ),
    "ckptflow/state/kinds.py": (
        "TensorFlow and Keras 3: their wrappers, and what is in them",
        {"_DictWrapper", "_TupleWrapper", "_policy", "_v", "_value", "_variable"},
    ),
    "ckptflow/state/leaves.py": ("TensorFlow: the rank, without making a shape", {"_rank"}),
    "ckptflow/state/light.py": (
        "tf_keras: the calls that a functional model consists of",
        {"_flatten_layers", "_inbound_nodes"},
    ),
    "ckptflow/state/strategies.py": (
        "TensorFlow: where a parameter server strategy runs",
        {"_cluster_coordinator", "_cluster_resolver"},
    ),
    "ckptflow/state/tf_keras.py": (
        "tf_keras and TensorFlow: whether a model is functional, the key of a slot, what Nadam counts in Python",
        {"_is_graph_network", "_momentums", "_u_product_counter", "_unique_id"},
    ),
    "ckptflow/state/tree.py": ("Keras 3: whether a variable has got another value", {"_value"}),
    "ckptflow/state/walker.py": (
        "TensorFlow: where a shard of a variable begins; Keras 3: which variables an optimizer was built for",
        {"_trainable_variables", "_var_offsets"},
    ),
    "ckptflow/state/weights.py": ("both Keras: all layers of a nested model", {"_flatten_layers"}),
    "ckptflow/storage/clients.py": (
        "fsspec: options and path in a URL; gcsfs: a request without its own retries",
        {"_get_kwargs_from_urls", "_request", "_strip_protocol"},
    ),
    "ckptflow/storage/remote.py": (
        "fsspec: the folder of a path",
        {"_parent"},
    ),
    "ckptflow/storage/remote_files.py": ("fsspec: the folder of a path", {"_parent"}),
}
# What takes out rules of the protocol, and what tries them, hold on to public names: the code below can be rewritten.
KEPT_APART = sorted(
    path for folder in ("ckptflow", "tests/protocol", "tests/commit") for path in (ROOT / folder).rglob("*.py")
)


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


def privates_of_others(path: Path) -> dict[str, int]:
    return private_uses(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", KEPT_APART, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_used_at_home(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    allowed = OURS.get(name, set()) | OTHERS.get(name, ("", set[str]()))[1]
    assert {private: line for private, line in privates_of_others(path).items() if private not in allowed} == {}


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
    places = {path for path in MODULES for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.Call) and "StateMismatchError" in ast.unparse(node.func)}  # fmt: skip
    assert [str(path.relative_to(PACKAGE)) for path in places] == ["format/offer.py"]


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
